//! A server with one session at a time, the four deeds that faults are tried on, and the judge of what was said and left.
//!
//! Invariant: an answer is either the one right answer or an error of a known kind; a wait that does not end is a failure.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use codebeaker_client::Error;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tracer::Role;
use super::walls;
use crate::support::residue::{self, descendants};
use crate::support::server::RESIDUE_WAIT;
use crate::support::{Client, Server, Setup, eventually};

/// What is done while something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// `session.create`.
    Create,
    /// `execute_shell`.
    Execute,
    /// `write_file` over a file that is there.
    WriteFile,
    /// `session.close`.
    Close,
}

impl Deed {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::Execute, Self::WriteFile, Self::Close];
}

/// How a deed was answered.
#[derive(Debug)]
pub enum Answer {
    /// As without a fault.
    Right(Value),
    /// By an error of this kind.
    Typed(String),
    /// Not at all: the connection ended.
    Lost,
    /// By something that is neither.
    Wrong(String),
}

/// What `write_file` finds and what it writes.
const OLD: &str = "old";
const NEW: &str = "new";

/// What a failed command may be called here: none of them has a program that fails by itself.
const FAILURES: [&str; 4] = ["sandbox_gone", "io_error", "permission_denied", "program_not_found"];
/// How a session says that it is over.
const GONE: [&str; 2] = ["session_closed", "sandbox_gone"];
/// What a call may be refused with: closed, a wall, busy, internal.
const CODES: [i64; 4] = [1002, 1200, 1302, 1500];

/// A server whose sandboxes are all this trial's.
pub struct World {
    /// The server.
    pub server: Server,
    /// The server's groups, one a hierarchy.
    trees: BTreeSet<PathBuf>,
    /// The walls of a sandbox that nothing happened to.
    walls: String,
    next: Next,
}

/// Whether the next sandbox begins while one is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    WhenAskedFor,
    Ahead,
}

impl World {
    /// A server in a fresh directory.
    pub fn new() -> Self {
        Self::start_in(Next::WhenAskedFor, crate::support::fixture_user::directory_of(None), None)
    }

    /// The same, where the next sandbox begins while one is made.
    pub fn ahead() -> Self {
        Self::start_in(Next::Ahead, crate::support::fixture_user::directory_of(None), None)
    }

    fn start_in(next: Next, directory: TempDir, walls: Option<String>) -> Self {
        let setup = match next {
            Next::WhenAskedFor => Setup::without_pool(),
            Next::Ahead => Setup::plain().with_config("[pool]\nsandboxes_max = 0\nbegin_ahead = true\n"),
        };
        let server = Server::start_in(&setup, directory);
        let mut world = Self { server, trees: BTreeSet::new(), walls: String::new(), next };
        let mut client = world.client();
        let session = session(&mut client);
        let init = world.init().expect("a session has an init");
        world.trees = residue::cgroups_of(init).iter().filter_map(|group| tree_of(group)).collect();
        world.walls = walls.unwrap_or_else(|| {
            let walls = walls::of(&mut client, &session, init);
            walls::expect_whole(&walls);
            walls
        });
        close(&mut client, &session);
        world.expect_quiet("the start");
        world
    }

    /// Before `session.create` is tried where the next sandbox begins ahead: it has.
    pub fn begin_next(&self, client: &mut Client) {
        if self.next == Next::Ahead {
            let before = session(client);
            close(client, &before);
            assert!(eventually(Duration::from_secs(20), || self.init().is_some()), "the next sandbox has begun");
        }
    }

    /// A connection that waits longer than any bound of the server, and not for ever.
    pub fn client(&self) -> Client {
        let mut client = self.server.client();
        client.set_timeout(Duration::from_secs(60));
        client
    }

    fn inits(&self) -> Vec<i32> {
        let Some(launcher) = self.server.launcher() else { return Vec::new() };
        let below = descendants(launcher).into_iter();
        below.filter(|process| process.parent == launcher && !process.zombie).map(|process| process.identity.0).collect()
    }

    fn init(&self) -> Option<i32> {
        self.inits().first().copied()
    }

    /// Every process of the server's that lives, with its role.
    pub fn roles(&self) -> Vec<(i32, Role)> {
        let mut roles = vec![(self.server.pid(), Role::Server)];
        roles.extend(self.server.launcher().map(|launcher| (launcher, Role::Launcher)));
        roles.extend(self.inits().into_iter().map(|init| (init, Role::Init)));
        roles
    }

    /// What has to be followed from the start to see calls of `counted`.
    pub fn seeds(&self, deed: Deed, counted: &[Role]) -> Vec<(i32, Role)> {
        let makes = |role: Role| deed == Deed::Create && role == Role::Launcher && counted.contains(&Role::Init);
        let parent = |role: Role| role == Role::Init && counted.contains(&Role::Program);
        self.roles().into_iter().filter(|(_, role)| counted.contains(role) || makes(*role) || parent(*role)).collect()
    }

    /// Fails unless no sandbox, zombie, group, file or mount is left; `after` says of what.
    pub fn expect_quiet(&self, after: &str) {
        let mut left = Vec::new();
        eventually(Duration::from_secs(20), || {
            left = self.left();
            left.is_empty()
        });
        assert!(left.is_empty(), "after {after}: {}", left.join("; "));
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let launcher = self.server.launcher();
        if launcher.is_none() {
            left.push("there is no launcher".to_owned());
        }
        let below = descendants(self.server.pid());
        left.extend(
            below.iter().filter(|process| Some(process.identity.0) != launcher).map(|process| format!("{process:?} is there")),
        );
        for tree in &self.trees {
            let entries = std::fs::read_dir(tree).into_iter().flatten().flatten();
            let groups = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("env_"));
            left.extend(groups.map(|group| format!("the group {} is there", group.path().display())));
        }
        // Its launcher and the groups above are among what was seen, and stay.
        let stays = |sentence: &String| sentence.starts_with("process ") || sentence.starts_with("the cgroup ");
        left.extend(self.server.left_after(Duration::ZERO).into_iter().filter(|sentence| !stays(sentence)));
        left
    }

    /// Descriptors of the server and of its launcher.
    pub fn descriptors(&self) -> (usize, usize) {
        let launcher = self.server.launcher().and_then(residue::open_descriptors);
        (self.server.open_descriptors(), launcher.unwrap_or(0))
    }

    /// After a deed that was answered as right: it is as it says.
    pub fn expect_done(&self, deed: Deed, client: &mut Client, session: &Value, after: &str) {
        match deed {
            Deed::Create => match perform(Deed::Execute, client, Some(session)) {
                // It stood, and the fault came to it later; the session says so.
                Answer::Typed(kind) if GONE.contains(&kind.as_str()) => {}
                Answer::Right(_) => {
                    let init = self.init().expect("a session that carries out commands has an init");
                    assert_eq!(walls::of(client, session, init), self.walls, "after {after} the session has other walls");
                }
                other => panic!("after {after} the session that was handed out says {other:?}"),
            },
            Deed::WriteFile => match content(client, session) {
                Ok(content) => assert_eq!(content, NEW, "after {after}"),
                Err(kind) => assert!(GONE.contains(&kind.as_str()), "after {after}: {kind}"),
            },
            Deed::Execute | Deed::Close => {}
        }
    }

    /// Starts the next server in the place of one that was killed.
    pub fn restarted(self, after: &str) -> Self {
        let ended = self.server.wait(Duration::from_secs(10));
        assert!(ended.is_some(), "after {after} the server was to be dead");
        let (trees, tracker) = (self.trees, self.server.take_tracker());
        let next = Self::start_in(self.next, self.server.into_directory(), Some(self.walls));
        let mut left: Vec<String> = trees.iter().filter(|tree| tree.exists()).map(|tree| tree.display().to_string()).collect();
        assert!(left.is_empty(), "after {after} a restart found and left {left:?}");
        // A process that was killed ends when the kernel comes to it.
        eventually(RESIDUE_WAIT, || {
            left = tracker.left(&next.server.state_dir());
            left.is_empty()
        });
        assert!(left.is_empty(), "after {after} and a restart: {left:?}");
        next
    }

    /// The end: nothing is left.
    pub fn end(self) {
        self.expect_quiet("everything");
        let left = self.server.end_and_check();
        assert!(left.is_empty(), "{}", left.join("; "));
        assert!(self.trees.iter().all(|tree| !tree.exists()), "{:?}", self.trees);
    }
}

/// The server's own group above a session's.
fn tree_of(group: &std::path::Path) -> Option<PathBuf> {
    let named =
        |path: &&std::path::Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("codebeaker-"));
    group.ancestors().find(named).map(std::path::Path::to_path_buf)
}

fn judge(deed: Deed, answer: Result<Value, Error>) -> Answer {
    match answer {
        Err(Error::Rpc(error)) => {
            let whole = error.data["hint"].is_string() && error.data["retryable"].is_boolean();
            if whole && CODES.contains(&error.code) {
                Answer::Typed(error.kind().to_owned())
            } else {
                Answer::Wrong(format!("refused with {error}"))
            }
        }
        Err(Error::Deadline(what)) => Answer::Wrong(format!("a hang: {what}")),
        Err(_) => Answer::Lost,
        Ok(value) if is_right(deed, &value) => Answer::Right(value),
        Ok(value) => match value["errorKind"].as_str() {
            Some(kind) if value["success"] == false && FAILURES.contains(&kind) => Answer::Typed(kind.to_owned()),
            Some(_) | None => Answer::Wrong(value.to_string()),
        },
    }
}

fn is_right(deed: Deed, value: &Value) -> bool {
    match deed {
        Deed::Create => value["sessionId"].is_string() && value["enforcement"].is_object(),
        Deed::Close => value["closed"] == true,
        Deed::WriteFile => value["success"] == true,
        Deed::Execute => value["success"] == true && value["result"]["stdout"] == "right\n",
    }
}

/// What the file holds, or what reading it was refused with.
fn content(client: &mut Client, session: &Value) -> Result<String, String> {
    let read = json!({"sessionId": session["sessionId"], "command": {"type": "read_file", "path": "file"}});
    match client.call("session.execute", &read) {
        Ok(answer) if answer["success"] == true => {
            Ok(answer["result"]["content"].as_str().expect("content is a string").to_owned())
        }
        Ok(answer) => Err(answer["errorKind"].as_str().expect("a failure has a kind").to_owned()),
        Err(Error::Rpc(error)) => Err(error.kind().to_owned()),
        Err(error) => panic!("the connection must live: {error}"),
    }
}

/// A session with a file in it.
pub fn session(client: &mut Client) -> Value {
    // A launcher that was killed after its last answer is noticed a moment later; until then a call may be told to come again.
    let parameters = json!({"language": "bash", "memoryLimitMB": 64});
    let mut made = Err(Error::Closed);
    eventually(Duration::from_secs(30), || {
        made = client.call("session.create", &parameters);
        !matches!(&made, Err(Error::Rpc(error)) if error.code == 1302)
    });
    let session = made.unwrap_or_else(|error| panic!("a session can be made again: {error}"));
    let write = json!({"type": "write_file", "path": "file", "content": OLD});
    let written = client.ok("session.execute", &json!({"sessionId": session["sessionId"], "command": write}));
    assert_eq!(written["success"], true, "{written}");
    session
}

/// Does a deed and judges its answer; `session` is absent for `Create`.
pub fn perform(deed: Deed, client: &mut Client, session: Option<&Value>) -> Answer {
    let id = session.map_or(Value::Null, |session| session["sessionId"].clone());
    let execute = |command: Value| json!({"sessionId": id, "command": command});
    let answer = match deed {
        Deed::Create => client.call("session.create", &json!({"language": "bash", "memoryLimitMB": 64})),
        Deed::Execute => client.call(
            "session.execute",
            &execute(json!({"type": "execute_shell", "commandName": "bash", "args": ["-c", "echo right"]})),
        ),
        Deed::WriteFile => {
            client.call("session.execute", &execute(json!({"type": "write_file", "path": "file", "content": NEW})))
        }
        Deed::Close => client.call("session.close", &json!({"sessionId": id})),
    };
    judge(deed, answer)
}

/// After a deed that failed: the file is whole, old or new, or there is no session any more. Then the session is closed.
pub fn clear(client: &mut Client, session: &Value, after: &str) {
    match content(client, session) {
        Ok(content) => assert!(content == OLD || content == NEW, "after {after} the file holds `{content}`"),
        Err(kind) => assert!(GONE.contains(&kind.as_str()), "after {after}: {kind}"),
    }
    close(client, session);
}

/// Closes a session, however it is.
pub fn close(client: &mut Client, session: &Value) {
    client.ok("session.close", &json!({"sessionId": session["sessionId"]}));
}
