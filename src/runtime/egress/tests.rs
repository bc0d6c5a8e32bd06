//! The proxy on real sockets: what it lets through, what it refuses, and that every bound of it holds.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::testbed::{Bed, Web, rules, until_end};
use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn what_is_listed_is_reached_by_request_and_by_tunnel_and_nothing_else() {
    let web = Web::answering(OK).await;
    let bed = Bed::listing(&[&web.address.to_string()]).await;
    let answer = bed.say(&format!("GET http://{}/a?b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", web.address)).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    let mut tunnel = bed.connect().await;
    tunnel.write_all(format!("CONNECT {} HTTP/1.1\r\n\r\n", web.address).as_bytes()).await.expect("sent");
    let mut head = [0; 19];
    tunnel.read_exact(&mut head).await.expect("an answer");
    assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&head));
    tunnel.write_all(b"GET /t HTTP/1.1\r\n\r\n").await.expect("sent");
    let through = until_end(&mut tunnel).await;
    assert!(through.ends_with("hello"), "{through}");
    assert_eq!(web.requests().len(), 2);

    let other = Web::answering(OK).await;
    assert_eq!(bed.status(&format!("GET http://{}/", other.address), "").await, 403);
    assert_eq!(bed.status(&format!("CONNECT {}", other.address), "").await, 403);
    assert!(other.requests().is_empty());
    assert_eq!(bed.realm.ledger.denied.lock().expect("no holder panics").as_slice(), [other.address.to_string()]);
    assert_eq!((bed.realm.ledger.allowed.load(Ordering::Relaxed), bed.realm.ledger.refused.load(Ordering::Relaxed)), (2, 2));
}

#[tokio::test]
async fn a_listed_name_that_leads_to_this_host_is_not_dialled_unless_the_address_is_listed_too() {
    let web = Web::answering(OK).await;
    let port = web.address.port();
    let target = format!("GET http://rebound.example:{port}/");
    let with = |list: &[&str], address: &str| {
        let hosts = BTreeMap::from([("rebound.example".to_owned(), address.parse().expect("an address"))]);
        EgressRules { hosts, ..rules(list) }
    };
    let named = format!("rebound.example:{port}");
    for inward in ["127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0"] {
        let bed = Bed::with(with(&[&named], inward), None).await;
        assert_eq!(bed.status(&target, "").await, 403, "{inward}");
        assert_eq!(bed.status(&format!("CONNECT {named}"), "").await, 403, "{inward}");
    }
    assert!(web.requests().is_empty());
    // The host's own resolver leads to loopback too.
    let local = Bed::listing(&[&format!("localhost:{port}")]).await;
    assert_eq!(local.status(&format!("GET http://localhost:{port}/"), "").await, 403);
    // The control.
    let bed = Bed::with(with(&[&named, &web.address.to_string()], "127.0.0.1"), None).await;
    assert_eq!(bed.status(&target, "").await, 200);
    assert_eq!(web.requests().len(), 1);
}

#[tokio::test]
async fn the_server_s_own_port_is_out_of_reach_even_where_the_list_names_it() {
    let web = Web::answering(OK).await;
    let listed = web.address.to_string();
    let request = format!("GET http://{listed}/");
    let any = SocketAddr::new("0.0.0.0".parse().expect("an address"), web.address.port());
    for api in [web.address, any] {
        let bed = Bed::with(rules(&[&listed]), Some(api)).await;
        assert_eq!(bed.status(&request, "").await, 403);
    }
    assert!(web.requests().is_empty());
    let bed = Bed::with(rules(&[&listed]), Some(SocketAddr::new(any.ip(), any.port() ^ 1))).await;
    assert_eq!(bed.status(&request, "").await, 200, "the control: the server listens elsewhere");
}

#[tokio::test]
async fn what_is_no_request_to_a_proxy_is_400_and_goes_nowhere() {
    let web = Web::answering(OK).await;
    let listed = web.address.to_string();
    let bed = Bed::listing(&[&listed]).await;
    for line in [
        "GET /".to_owned(),
        format!("GET https://{listed}/"),
        format!("GET ftp://{listed}/"),
        format!("GET http://user:word@{listed}/"),
        format!("CONNECT http://{listed}/"),
        "CONNECT 127.0.0.1".to_owned(),
        format!("CONNECT user@{listed}"),
        "OPTIONS *".to_owned(),
        format!("GET http://2130706433:{}/", web.address.port()),
        format!("GET http://127.1:{}/", web.address.port()),
        "GET http://".to_owned(),
        "GET\thttp://x/".to_owned(),
    ] {
        assert_eq!(bed.status(&line, "").await, 400, "{line}");
    }
    assert!(web.requests().is_empty());
    assert_eq!(bed.status(&format!("GET http://{listed}/"), "").await, 200, "the control");
}

#[tokio::test]
async fn what_a_request_says_of_framing_host_and_connection_is_written_anew() {
    let web = Web::answering(OK).await;
    let bed = Bed::listing(&[&web.address.to_string()]).await;
    let smuggled = format!(
        "POST http://{0}/one HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\
         Connection: x-secret, close\r\nX-Secret: s\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\nUpgrade: h2c\r\n\
         Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nX-Kept: k\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET http://{0}/two HTTP/1.1\r\nHost: x\r\n\r\n",
        web.address
    );
    bed.say(&smuggled).await;
    let seen = web.requests();
    assert_eq!(seen.len(), 1, "what follows the body is no second request on the same connection to the outside: {seen:?}");
    let text = seen[0].to_lowercase();
    assert!(text.starts_with("post /one http/1.1\r\n"), "{text}");
    assert!(text.contains(&format!("host: {}\r\n", web.address)) && text.contains("x-kept: k\r\n"), "{text}");
    for gone in [
        "elsewhere",
        "x-secret",
        "proxy-authorization",
        "te:",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "content-length: 60",
        "/two",
    ] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    assert_eq!(text.matches("transfer-encoding: chunked").count() + text.matches("content-length: 3").count(), 1, "{text}");
    let twice = "Content-Length: 3\r\nContent-Length: 4\r\n";
    assert_eq!(bed.status(&format!("POST http://{}/", web.address), twice).await, 400);
    assert_eq!(web.requests().len(), 1);
}

/// What is logged, for a test to read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no holder panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_program_writes_for_a_destination_does_not_fill_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let bed = Bed::listing(&["a.example"]).await;
    assert_eq!(bed.status(&format!("GET ftp://a.example/{}", "x".repeat(20_000)), "").await, 400);
    let text = String::from_utf8(log.0.lock().expect("no holder panics").clone()).expect("a text");
    let line = text.lines().find(|line| line.contains("refused a connection outwards")).expect("a line");
    assert!(line.contains("ftp://a.example/xxx") && line.len() < 1000, "{} bytes", line.len());
}

#[tokio::test]
async fn each_request_of_a_connection_is_judged_by_itself() {
    let (web, other) = (Web::answering(OK).await, Web::answering(OK).await);
    let bed = Bed::listing(&[&web.address.to_string()]).await;
    let text = format!(
        "GET http://{0}/ HTTP/1.1\r\nHost: x\r\n\r\nGET http://{1}/ HTTP/1.1\r\nHost: {0}\r\nConnection: close\r\n\r\n",
        web.address, other.address
    );
    let answer = bed.say(&text).await;
    assert!(answer.contains("200 OK") && answer.contains("403 Forbidden"), "{answer}");
    assert_eq!((web.requests().len(), other.requests().len()), (1, 0));
}

#[tokio::test]
async fn huge_headers_are_refused_and_ordinary_ones_are_not() {
    let web = Web::answering(OK).await;
    let bed = Bed::listing(&[&web.address.to_string()]).await;
    let line = format!("GET http://{}/", web.address);
    assert_eq!(bed.status(&line, &format!("X: {}\r\n", "x".repeat(8 << 10))).await, 200);
    assert_eq!(bed.status(&line, &format!("X: {}\r\n", "x".repeat(64 << 10))).await, 431);
    assert_eq!(bed.status(&line, &"X: y\r\n".repeat(200)).await, 431);
    assert_eq!(web.requests().len(), 1);
}

fn bounded(web: &Web, bounds: EgressBounds) -> EgressRules {
    EgressRules { bounds, ..rules(&[&web.address.to_string()]) }
}

#[tokio::test]
async fn a_request_whose_headers_never_end_is_ended() {
    let web = Web::answering(OK).await;
    let short = Duration::from_millis(300);
    let slow = Bed::with(bounded(&web, EgressBounds { header_timeout: short, ..EgressBounds::default() }), None).await;
    let mut stream = slow.connect().await;
    let dripping = async {
        for byte in b"GET http://x.example/ HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        until_end(&mut stream).await
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), dripping).await;
    assert!(ended.is_ok(), "headers that never end hold no connection");
}

#[tokio::test]
async fn a_tunnel_through_which_nothing_goes_is_ended() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address");
    let bounds = EgressBounds { idle_timeout: Duration::from_millis(300), ..EgressBounds::default() };
    let quiet = Bed::with(EgressRules { bounds, ..rules(&[&address.to_string()]) }, None).await;
    let mut tunnel = quiet.connect().await;
    tunnel.write_all(format!("CONNECT {address} HTTP/1.1\r\n\r\n").as_bytes()).await.expect("sent");
    let answer = tokio::time::timeout(Duration::from_secs(20), until_end(&mut tunnel)).await.expect("a silent tunnel ends");
    assert!(answer.starts_with("HTTP/1.1 200"), "it was one: {answer}");
}

#[tokio::test]
async fn bytes_past_the_budget_do_not_go_through_and_later_connections_are_refused() {
    let web = Web::answering(OK).await;
    let bed = Bed::with(bounded(&web, EgressBounds { bytes_max: 2000, ..EgressBounds::default() }), None).await;
    let line = format!("GET http://{}/", web.address);
    assert_eq!(bed.status(&line, "").await, 200);
    let mut tunnel = bed.connect().await;
    tunnel.write_all(format!("CONNECT {} HTTP/1.1\r\n\r\n", web.address).as_bytes()).await.expect("sent");
    // More than is left; the proxy hangs up before it has taken everything.
    tunnel.write_all(&vec![b'x'; 1 << 20]).await.ok();
    until_end(&mut tunnel).await;
    assert!(bed.realm.budget.is_used_up());
    assert!(bed.realm.budget.used() < 200_000, "{}", bed.realm.budget.used());
    assert_eq!(bed.say(&format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n")).await, "", "not even an answer goes through");
    assert_eq!(web.requests().len(), 1);
}

#[tokio::test]
async fn connections_past_the_bound_wait_until_another_one_ends() {
    let web = Web::answering(OK).await;
    let bed = Bed::with(bounded(&web, EgressBounds { connections_per_way_max: 2, ..EgressBounds::default() }), None).await;
    let (first, _second) = (bed.connect().await, bed.connect().await);
    let request = format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", web.address);
    let mut third = bed.connect().await;
    third.write_all(request.as_bytes()).await.expect("sent");
    let waits = tokio::time::timeout(Duration::from_millis(300), until_end(&mut third)).await;
    assert!(waits.is_err(), "it is not served while two are open: {waits:?}");
    drop(first);
    let answer = tokio::time::timeout(Duration::from_secs(20), until_end(&mut third)).await.expect("its turn comes");
    assert!(answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn a_way_out_that_nobody_uses_takes_no_place_of_the_server_and_one_that_is_used_does() {
    let web = Web::answering(OK).await;
    let egress = Egress::new(bounded(&web, EgressBounds { connections_max: 1, ..EgressBounds::default() }));
    let (quiet, busy) = (Bed::of(Arc::clone(&egress)).await, Bed::of(egress).await);
    let request = format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", web.address);
    let long = Duration::from_secs(20);
    // Twice each, so that whoever waits for the only place without a connection is in the other one's way.
    for bed in [&quiet, &quiet, &busy, &busy, &quiet] {
        let answer = tokio::time::timeout(long, bed.say(&request)).await.expect("the other one is silent");
        assert!(answer.ends_with("hello"), "{answer}");
    }
    // The control: the only place is taken by a connection that is open, and free when that has ended.
    let mut held = quiet.connect().await;
    held.write_all(format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", web.address).as_bytes()).await.expect("sent");
    tokio::time::timeout(long, held.read_u8()).await.expect("it has its place").expect("an answer");
    let mut waiting = busy.connect().await;
    waiting.write_all(request.as_bytes()).await.expect("sent");
    let waits = tokio::time::timeout(Duration::from_millis(300), until_end(&mut waiting)).await;
    assert!(waits.is_err(), "it is not served while the other one is open: {waits:?}");
    drop(held);
    let answer = tokio::time::timeout(long, until_end(&mut waiting)).await.expect("its turn comes");
    assert!(answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn a_way_out_that_is_closed_takes_its_tunnels_and_its_listener_along() {
    let web = Web::answering(OK).await;
    let mut bed = Bed::listing(&[&web.address.to_string()]).await;
    let mut tunnel = bed.connect().await;
    tunnel.write_all(format!("CONNECT {} HTTP/1.1\r\n\r\n", web.address).as_bytes()).await.expect("sent");
    let mut head = [0; 12];
    tunnel.read_exact(&mut head).await.expect("an answer");
    bed.serving.abort();
    (&mut bed.serving).await.expect_err("it was aborted");
    // At once, and not a moment later.
    assert!(tokio::net::TcpStream::connect(bed.address).await.is_err(), "nobody listens any more");
    let ended = tokio::time::timeout(Duration::from_secs(20), until_end(&mut tunnel)).await;
    assert!(ended.is_ok(), "the tunnel ends with it");
    assert!(web.requests().is_empty());
}

#[tokio::test]
async fn what_a_sandbox_hands_out_is_taken_for_a_listener_only_when_it_is_one() {
    let egress = Egress::new(rules(&["a.example"]));
    let environment = EnvironmentId::random();
    let handed = |what: OwnedFd| {
        let egress = &egress;
        let environment = &environment;
        async move {
            let (mut way, door) = egress.open_for_programs(environment).expect("a socket");
            socket::send(door.as_fd(), &[1], &[what.as_fd()], Wait::No).expect("sent");
            drop(door);
            way.is_open().await
        }
    };
    assert!(!handed(std::fs::File::open("/dev/null").expect("a file").into()).await);
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    assert!(!handed(elsewhere.into()).await, "a listener of another address");
    let (mut way, door) = egress.open_for_programs(&environment).expect("a socket");
    drop(door);
    assert!(!way.is_open().await, "nothing came");
}

#[tokio::test]
async fn an_install_reaches_its_index_and_what_goes_with_it_and_programs_never_do() {
    let index: IndexUrl = "https://index.example/simple".parse().expect("an index");
    let egress = Egress::new(EgressRules {
        package_hosts: Allowlist::parse(&["files.example".to_owned()]).expect("patterns"),
        indexes: BTreeMap::from([(PackageSyntax::Pep508, index)]),
        ..rules(&["programs.example"])
    });
    let names = |list: &Allowlist| {
        ["index.example", "files.example", "programs.example"]
            .map(|host| list.names(&Destination::parse(host, Some(443)).expect("a destination")))
    };
    assert_eq!(names(&egress.of_programs()), [false, false, true]);
    let install = |syntax, grant| egress.of_install(syntax, grant).as_ref().map(names);
    assert_eq!(install(PackageSyntax::Pep508, NetworkGrant::Installs), Some([true, true, false]));
    assert_eq!(install(PackageSyntax::Pep508, NetworkGrant::Programs), Some([true, true, true]));
    assert_eq!(install(PackageSyntax::Pep508, NetworkGrant::None), None);
    assert_eq!(install(PackageSyntax::Npm, NetworkGrant::Installs), None, "there is no registry");
}

#[test]
fn enforcement_says_what_is_reached() {
    let index: IndexUrl = "https://index.example/simple".parse().expect("an index");
    let egress = Egress::new(EgressRules {
        indexes: BTreeMap::from([(PackageSyntax::Pep508, index)]),
        ..rules(&["programs.example:8443"])
    });
    let told = |grant| {
        let row = |name: &str| WallState {
            name: name.into(),
            state: crate::sandbox::enforcement::WallStatus::Enforced,
            detail: "empty".into(),
        };
        let mut walls = [row("pid"), row("network")];
        egress.tell(&mut walls, grant);
        walls.map(|row| row.detail)
    };
    assert_eq!(told(NetworkGrant::None), ["empty", "empty"]);
    let [other, installs] = told(NetworkGrant::Installs);
    assert_eq!(other, "empty");
    assert!(installs.contains("index.example:443") && !installs.contains("programs"), "{installs}");
    let [_, programs] = told(NetworkGrant::Programs);
    assert!(programs.contains("programs.example:8443") && programs.contains("index.example:443"), "{programs}");
}
