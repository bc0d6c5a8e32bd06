//! What travels on the control sockets: server ↔ launcher, server ↔ init.
//!
//! Every receiver treats a message as untrusted: `sys::channel` bounds and decodes it, and a tag that nobody waits for is
//! dropped.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZero;

use serde::{Deserialize, Serialize};

use super::files::{FileCommand, FileError, FileReply};
use super::{OutsideStep, Plan, StepFailure};
use crate::sys::channel::{self, ChannelError};
use crate::sys::identity::Identity;

/// Number that the server gives a sandbox, an execution or a file command, to tell answers apart.
pub type Tag = u64;

/// The descriptor under which the launcher finds the server's socket.
pub const SERVER_SOCKET: i32 = 3;

/// Where programs find the way out of their network namespace, if they have one: the port that proxies are used to.
pub const PROXY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 3128);

/// Server → launcher.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LauncherRequest {
    /// Make the process of a sandbox, which then waits for its plan. Whether that went well is told when it is to have it.
    Begin(Tag, Birth),
    /// Make a sandbox of one that has begun.
    Create(Box<CreateRequest>),
    /// End a sandbox and all in it, or one that has only begun.
    End(Tag),
    /// End one that has only begun, and remove these groups, deepest first.
    GiveUp(Tag, Vec<String>),
    /// Directories to remove when the server is gone and every sandbox with it, deepest first: its own cgroups.
    RemoveAtEnd(Vec<String>),
    /// To be gone before that; absent from a server that stayed where it was started.
    StepBackAtEnd(WayBack),
    /// The server ends in order: it waits for the launcher's end, and then leaves its leaf and removes it by itself.
    ServerStays,
}

/// From a leaf, which server and launcher stand in, back to where the server was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WayBack {
    /// The leaf, below `group`.
    pub leaf: String,
    /// The server's own group, below `base`.
    pub group: String,
    /// Holds no process while it hands controllers down.
    pub base: String,
}

/// One sandbox to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateRequest {
    /// Named in every answer.
    pub sandbox: Tag,
    /// What the launcher does.
    pub launch: Launch,
    /// The rest of the plan as init reads it, see `sys::channel::encode`. The launcher does not: what it decoded would stay in the
    /// memory of the clone.
    pub rest: Vec<u8>,
    /// Cgroup directories to remove when it is over, deepest first.
    pub cgroups: Vec<String>,
}

/// What the clone of a sandbox is: it can't be made up for later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// [`Plan::namespaces`].
    pub namespaces: u64,
    /// [`Plan::born_in`].
    pub born_in: Option<String>,
}

/// The launcher's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// What it must have begun with.
    pub birth: Birth,
    /// [`Plan::outside`].
    pub outside: Vec<OutsideStep>,
}

impl CreateRequest {
    /// Parts a plan between launcher and init.
    pub fn new(sandbox: Tag, mut plan: Plan, cgroups: Vec<String>) -> Result<Self, ChannelError> {
        let (born_in, outside) = (plan.born_in.take(), std::mem::take(&mut plan.outside));
        let launch = Launch { birth: Birth { namespaces: plan.namespaces, born_in }, outside };
        Ok(Self { sandbox, launch, rest: channel::encode(&plan)?, cgroups })
    }
}

/// Launcher → server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LauncherMessage {
    /// The process exists; its control socket comes along. It reports [`InitMessage::Ready`] there.
    Created {
        /// Which.
        sandbox: Tag,
        /// Its init, where the kernel tells processes apart for good.
        init: Option<Identity>,
    },
    /// It was made, but its control socket could not be handed over; [`LauncherMessage::Gone`] follows.
    Lost(Tag),
    /// It could not be made, and nothing is left of it.
    Refused(Tag, StepFailure),
    /// No process of it lives any more; its cgroups are removed or about to be.
    Gone {
        /// Which.
        sandbox: Tag,
        /// The raw wait status of its init.
        status: i32,
    },
}

/// Launcher → init, after the plan: the maps are written, the detached trees come along.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Go {
    /// Slot of each descriptor, in order.
    pub slots: Vec<u8>,
}

/// Server → init.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum InitRequest {
    /// Start a program; stdin, stdout, stderr come along.
    Execute(ExecuteRequest),
    /// The same, by the warm interpreter when one is ready for it.
    ExecuteWarm(ExecuteRequest),
    /// Keep an interpreter ready for such programs, in place of the one before.
    Warm(Box<WarmRequest>),
    /// Start a program whose source comes later, in place of the one before; stdin, stdout, stderr come along.
    Prestart(Box<PrestartRequest>),
    /// Have the one of that number carry this out, whose source is in its place by now. With [`StartStage::Prestarted`] it ends at once
    /// when it can't.
    ExecutePrestarted(ExecuteRequest, u64),
    /// End both, and keep none.
    Cool,
    /// Do something with files.
    File {
        /// Named in the answer.
        tag: Tag,
        /// The directory that is `/` for the command, without a symbolic link on the way; empty: the sandbox's own.
        root: Vec<u8>,
        /// What to do.
        command: FileCommand,
    },
    /// Send a signal to the process group of a program.
    Signal(Tag, i32),
    /// End a program and all its descendants.
    End(Tag),
    /// Listen on [`PROXY`] in the sandbox's own network namespace, and hand the listener through the socket that comes along.
    Listen,
    /// Hand over what the size of the session's own file system is changed with.
    Quota(Tag),
}

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteRequest {
    /// Named in every answer.
    pub execution: Tag,
    /// Program and arguments; the first is searched in `PATH` of `environment` unless it holds a slash.
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=value` each.
    pub environment: Vec<Vec<u8>>,
    /// Where it starts, with the program's own rights.
    pub directory: Vec<u8>,
    /// Which mounts it sees.
    pub view: View,
    /// Which network it has.
    pub network: ProgramNetwork,
    /// A file command that was asked for before and must have succeeded, or the program does not start ([`StartStage::Source`]).
    pub after: Option<NonZero<Tag>>,
}

impl ExecuteRequest {
    /// What is started before it is known which execution it belongs to: an ordinary program of the session.
    pub fn ahead(arguments: &[Vec<u8>], environment: &[Vec<u8>], directory: &[u8]) -> Self {
        Self {
            execution: 0,
            arguments: arguments.to_vec(),
            environment: environment.to_vec(),
            directory: directory.to_vec(),
            view: View::Programs,
            network: ProgramNetwork::Sandbox,
            after: None,
        }
    }
}

/// The network namespace of a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgramNetwork {
    /// That of the sandbox.
    #[default]
    Sandbox,
    /// A new one for it alone, with loopback and a listener on [`PROXY`], which goes through the socket that comes along after the
    /// streams: nobody else in the sandbox reaches it.
    Own,
}

/// Descriptor under which a warm interpreter finds its socket to init.
pub const WARM_SOCKET: i32 = 5;

/// Descriptor under which it finds [`WarmRequest::archive`].
pub const WARM_ARCHIVE: i32 = 6;

/// An interpreter that is started before its programs are known. Its archive makes it wait on [`WARM_SOCKET`] at the end of its
/// start-up and fork there for each program; `init::warm` has the words that are spoken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmRequest {
    /// The command line of its programs, without what each has of its own at the end.
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=value` each.
    pub environment: Vec<Vec<u8>>,
    /// Where it starts.
    pub directory: Vec<u8>,
    /// What it finds at [`WARM_ARCHIVE`].
    #[serde(with = "serde_bytes")]
    pub archive: Vec<u8>,
    /// The first message on its socket: what to load.
    pub greeting: Vec<u8>,
}

/// A program that is started before its source is there, and that reads it once: it waits where the source will be, and is then
/// what it would have been. `init::prestarted` has how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrestartRequest {
    /// Which of the sandbox's: another one has other streams.
    pub number: u64,
    /// Its whole command line.
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=value` each.
    pub environment: Vec<Vec<u8>>,
    /// Where it starts.
    pub directory: Vec<u8>,
    /// Absolute path of its source.
    pub source: Vec<u8>,
    /// Names beside the source that such a program looks for when it starts: with one of them there, none is kept or taken.
    pub unless: Vec<Vec<u8>>,
    /// Where it waits.
    pub waits_in: WaitsIn,
}

/// Where a program waits that is started ahead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitsIn {
    /// In the opening of its source.
    Source,
    /// In a script that it loads before its source, because a file beside the source says so. It sends a byte on [`WARM_SOCKET`] as soon
    /// as it waits, and waits for one.
    Preload {
        /// The file's name.
        name: Vec<u8>,
        /// What it says.
        content: Vec<u8>,
    },
}

/// What carried a program out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Born {
    /// A process of its own from the start.
    Fresh,
    /// A fork of the warm interpreter.
    Warm,
    /// A fork that found that it would not be as a fresh interpreter, and executed one in its place.
    Passed,
    /// A process that was started before its source was known.
    Prestarted,
}

impl Born {
    /// For metrics: what carried out a program that was offered to the warm interpreter, or to the one started ahead.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Warm => "warm",
            Self::Passed => "passed",
            Self::Prestarted => "prestarted",
        }
    }
}

/// A view of the sandbox's mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// That of programs and file commands.
    Programs,
    /// That of installers, where the sandbox has one: with the operator's packages in it.
    Installers,
}

/// Init → server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum InitMessage {
    /// Every wall stands.
    Ready,
    /// A wall could not be built; init ends.
    Failed(StepFailure),
    /// A program ended, and with it all its descendants.
    Ended {
        /// Which.
        execution: Tag,
        /// How.
        end: ProgramEnd,
    },
    /// A program was refused a system call; said once for each number, before its end.
    Blocked {
        /// Which program.
        execution: Tag,
        /// The number of the call.
        number: u32,
    },
    /// The answer to `Warm` and `Prestart`: the interpreter is ready, with so much memory of its own in bytes; none: it ended before it was, or was
    /// given up. One that is started anew later says the same.
    Warmed(Option<u64>),
    /// A file command is done.
    FileDone(Tag, Result<FileReply, FileError>),
    /// A file system context comes along, or the kernel refused with this errno.
    Quota(Tag, Result<(), i32>),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgramEnd {
    /// It ran.
    Ran {
        /// The raw wait status.
        status: i32,
        /// Time of it and what it waited for, in microseconds.
        cpu_us: u64,
        /// The session's quota had no byte or no inode left at its end.
        quota_full: bool,
        /// Numbers of system calls that were refused to it or its descendants, where init was told of them.
        blocked: Vec<u32>,
        /// What carried it out.
        born: Born,
    },
    /// It never ran.
    NotStarted(StartFailure),
}

/// Why a program did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// At what.
    pub stage: StartStage,
    /// The kernel's answer.
    pub errno: i32,
}

/// Where a program's start failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartStage {
    /// `clone3`: a pids limit, as a rule.
    Fork,
    /// A wall: its name. The program did not run.
    Wall(String),
    /// Its working directory.
    Directory,
    /// Finding or executing it.
    Execute,
    /// None was started ahead that could carry it out.
    Prestarted,
    /// The file command that it comes after failed, which was answered.
    Source,
}
