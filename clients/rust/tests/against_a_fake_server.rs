//! The client against a tiny server of its own: replies out of order, notifications between, refusals, silence.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use codebeaker_client::{Connect, Error};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

fn serve(script: impl FnOnce(WebSocket<TcpStream>) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the client connects");
        script(tungstenite::accept(stream).expect("the client upgrades"));
    });
    (address, server)
}

fn request(socket: &mut WebSocket<TcpStream>) -> Value {
    let message = socket.read().expect("the client sends a request");
    serde_json::from_str(message.to_text().expect("text")).expect("JSON")
}

fn send(socket: &mut WebSocket<TcpStream>, value: &Value) {
    socket.send(Message::text(value.to_string())).expect("the client reads");
}

#[test]
fn replies_out_of_order_find_their_calls_and_events_keep_their_order() {
    let (address, server) = serve(|mut socket| {
        let (first, second) = (request(&mut socket), request(&mut socket));
        for seq in 0..3 {
            let params = json!({"subscription": 7, "result": {"seq": seq}});
            send(&mut socket, &json!({"jsonrpc": "2.0", "method": "session.output", "params": params}));
        }
        send(&mut socket, &json!({"jsonrpc": "2.0", "id": second["id"], "error": {"code": 1001, "message": "m"}}));
        send(&mut socket, &json!({"jsonrpc": "2.0", "id": first["id"], "result": first["params"]}));
    });
    let mut client = Connect::to(address).open().expect("the upgrade succeeds");
    let first = client.send("echo", &json!({"n": 1})).expect("sent");
    let second = client.send("fail", &json!({})).expect("sent");
    assert_eq!(client.wait(first).expect("a result"), json!({"n": 1}));
    assert!(matches!(client.wait(second), Err(Error::Rpc(error)) if error.code == 1001));
    for seq in 0..3 {
        assert_eq!(client.event(&json!(7)).expect("an event")["seq"], seq);
    }
    server.join().expect("the script ran to its end");
}

#[test]
fn a_silent_server_ends_the_wait_at_its_deadline() {
    let (address, server) = serve(|mut socket| {
        request(&mut socket);
        assert!(socket.read().is_err(), "the client hangs up without another frame");
    });
    let mut client =
        Connect { timeout: Duration::from_millis(200), ..Connect::to(address) }.open().expect("the upgrade succeeds");
    assert!(matches!(client.call("sleep", &json!({})), Err(Error::Deadline(_))));
    client.abort();
    server.join().expect("the script ran to its end");
}

#[test]
fn a_refused_upgrade_tells_its_status() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the client connects");
        let mut request = [0; 4096];
        let read = std::io::Read::read(&mut stream, &mut request).expect("the client sends its upgrade");
        let answer = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno";
        std::io::Write::write_all(&mut stream, answer.as_bytes()).expect("the client reads");
        String::from_utf8_lossy(&request[..read]).to_lowercase()
    });
    let refused = Connect::to(address).bearer("secret").path("/ws/jsonrpc").open();
    assert!(matches!(refused, Err(Error::Http { status: 401, .. })));
    let request = server.join().expect("the script ran to its end");
    assert!(request.starts_with("get /ws/jsonrpc http/1.1"), "{request}");
    assert!(request.contains("authorization: bearer secret"), "{request}");
}
