//! Records a command in a session of a running server.
//!
//! The server knows nothing of it: the command is an ordinary `execute_shell`, and the session's init, found on this host by its
//! control group, is followed meanwhile. Invariant: the session goes on as before, whatever becomes of this program.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};

use super::super::client::{Client, ServerArgs, block_on};
use super::super::exec::Execution;
use super::super::streams::{Interrupts, OutputPump, standard_input};
use super::super::{CliError, CommonArgs};
use super::record::{Run, not_followed};
use super::tracer::Tracer;
use crate::seccomp::Arch;
use crate::seccomp::record::Recording;
use crate::sys::CallError;
use crate::sys::process;

/// The number of SIGCHLD, which wakes an init and tells it nothing.
const SIGCHLD: i32 = 17;

/// Runs `command` in the session `id`.
pub(super) fn record(
    common: &CommonArgs,
    server: &ServerArgs,
    id: &str,
    command: &[String],
    arch: Arch,
) -> Result<Run, CliError> {
    let (program, args) = command.split_first().ok_or_else(|| CliError::usage("nothing to run"))?;
    let command = json!({ "type": "execute_shell", "commandName": program, "args": args });
    block_on(async move {
        let mut interrupts = Interrupts::listen()?;
        let mut client = Client::connect(common, server).await?;
        let session = client.call("session.get", json!({ "sessionId": id })).await?;
        let following = Following::start(init_of(text(&session, "environmentId")?)?, arch)?;
        let mut execution = Execution::new(id, OutputPump::to_standard_streams()?, standard_input);
        let outcome = execution.run(&mut client, command, &mut interrupts).await;
        let recording = following.end();
        client.close().await;
        let profile = text(&session["enforcement"]["profile"], "name")?.to_owned();
        Ok(Run { recording: recording?, code: outcome?, profile })
    })
    .map_err(CliError::not_set_up)
}

fn text<'a>(answer: &'a Value, field: &str) -> Result<&'a str, CliError> {
    answer[field].as_str().ok_or_else(|| CliError::new(format!("the server's answer has no `{field}`")))
}

/// A thread that follows an init: ptrace(2) ties tracees to a thread, and they go on when it ends.
struct Following {
    init: i32,
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<Recording, CallError>>,
}

impl Following {
    fn start(init: i32, arch: Arch) -> Result<Self, CliError> {
        let over = Arc::new(AtomicBool::new(false));
        let (began, wait) = mpsc::channel();
        let stop = Arc::clone(&over);
        let follow = move || {
            Tracer::new(arch).follow_running(
                init,
                move || {
                    began.send(()).ok();
                },
                &stop,
            )
        };
        let thread = thread::Builder::new().name("tracer".into()).spawn(follow);
        let thread = thread.map_err(|error| CliError::new(format!("no thread for the tracer: {error}")))?;
        let following = Self { init, over, thread };
        // The sender is dropped unused when it could not be followed.
        if wait.recv().is_err() {
            return following.end().and(Err(CliError::new("the session ended before it could be followed")));
        }
        Ok(following)
    }

    fn end(self) -> Result<Recording, CliError> {
        self.over.store(true, Ordering::Release);
        // An init that has ended needs no waking: its tracer has heard of that.
        if !self.thread.is_finished() {
            process::kill(self.init, SIGCHLD).ok();
        }
        let followed = self.thread.join().map_err(|_| CliError::new("the tracer failed"))?;
        followed.map_err(not_followed)
    }
}

/// The init of an environment on this host: the first process of its namespace, in the control group of that name.
fn init_of(environment: &str) -> Result<i32, CliError> {
    let all = std::fs::read_dir("/proc").map_err(|error| CliError::new(format!("/proc can't be read: {error}")))?;
    let found = all.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        is_init_of(&entry.path(), environment).then_some(pid)
    });
    found.ok_or_else(|| {
        CliError::new("the session's processes can't be found on this host")
            .hint("run it as root on the server's own host; the server needs control groups (`codebeaker doctor`)")
    })
}

fn is_init_of(process: &Path, environment: &str) -> bool {
    let read = |name: &str| std::fs::read_to_string(process.join(name)).unwrap_or_default();
    let in_group = read("cgroup").lines().any(|line| line.split('/').any(|part| part == environment));
    in_group && read("status").lines().filter_map(|line| line.strip_prefix("NSpid:")).any(is_first_of_its_namespace)
}

/// Whether the last of a process's ids, one for each namespace it is in, is 1.
fn is_first_of_its_namespace(ids: &str) -> bool {
    let mut ids = ids.split_whitespace();
    ids.next().is_some() && ids.next_back() == Some("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_told_from_its_programs_and_from_the_hosts() {
        assert!(is_first_of_its_namespace("\t4711\t1") && is_first_of_its_namespace("9 12 1"));
        assert!(!is_first_of_its_namespace("\t4712\t2") && !is_first_of_its_namespace("1"));
    }
}
