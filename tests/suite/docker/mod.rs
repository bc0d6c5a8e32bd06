//! Sessions in containers of a real engine: the walls that are really there, what happens when server or engine die, what is left.
//!
//! What every runtime has in common is `conformance::matrix`. Invariant: an engine that a trial kills or stops is its own.

mod engines;
mod images;
mod walls;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::dockerd::Dockerd;
use crate::support::{Server, Session, Setup, eventually, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    let mut all = page(
        "docker",
        &[
            ("the walls of a container are there, as the engine and a program in it see them", walls::in_force),
            ("the strict profile has its own user, filter and limits in a container", walls::strict),
            ("two containers see nothing of each other", walls::apart),
            ("memory past the limit is out_of_memory, time past it timeout, and the session lives on", walls::verdicts),
            ("an output flood in a container is output_limit", walls::flood),
            ("a fork bomb in a container is pids_limit", walls::fork_bomb),
            ("what a program leaves running ends with it, in a container too", walls::descendants),
            ("a full disk in a container is disk_full, in /workspace and in /tmp", walls::disk),
            ("init in a container can't be signalled, read or changed by programs", walls::init),
        ],
    );
    all.extend(page(
        "docker",
        &[
            ("closing a session leaves no container, and other containers as they are", engines::close),
            ("a container that outlives its server is removed by the next start, and no other one", engines::crash),
            ("a server that ends while a container is being made leaves none", engines::ends_meanwhile),
            (
                "while the engine is gone sessions go on and new ones are refused, and when it is back all is well",
                engines::killed,
            ),
            ("an engine that hangs refuses new sessions in time and keeps nobody from closing", engines::hung),
            ("docker is taken unasked only where the OS sandbox can't be built, and says so", engines::fallback),
            ("an engine that is not there is not available and says what mends it", engines::missing),
            ("podman's socket serves as well, with the same walls and verdicts", engines::podman),
            ("an image of the store is imported once and runs", images::of_the_store),
            ("an image that only the engine has runs by its name, whatever it says of itself", images::of_the_engine),
            ("an image without any C library runs", images::without_libraries),
        ],
    ));
    all
}

/// A server that speaks to that engine.
fn setup(engine: &Dockerd) -> Setup {
    Setup::plain().with_config(&format!("[runtimes]\ndocker = \"{}\"\n", engine.socket().display()))
}

/// The server that trials share which do no harm to the engine.
fn shared() -> (Arc<Dockerd>, Arc<Server>) {
    let engine = crate::support::dockerd::dockerd();
    let server = setup(&engine).shared();
    (engine, server)
}

fn parameters(more: &Value) -> Value {
    let mut parameters = json!({"runtimeType": "Docker"});
    parameters.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    parameters
}

fn session<'a>(server: &'a Server, more: &Value) -> Session<'a> {
    Session::open(server, &parameters(more))
}

/// The container of a session.
fn container(session: &Session<'_>) -> String {
    format!("codebeaker-{}", session.environment())
}

/// Waits until the engine has no container of that name.
fn is_gone(engine: &Dockerd, name: &str) -> bool {
    eventually(Duration::from_secs(20), || !engine.containers().iter().any(|other| other == name))
}

/// What `runtime.list` says of Docker.
fn row(server: &Server) -> Value {
    let rows = server.client().ok("runtime.list", &json!({}));
    let rows = rows["runtimes"].as_array().expect("rows").clone();
    rows.into_iter().find(|row| row["type"] == "Docker").expect("every runtime is listed")
}
