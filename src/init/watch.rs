//! What init hears of one program: its listener, why it could not start, and which calls were refused to it. A program of the warm
//! interpreter has that one's listener (`warm` finds out whose a call is) and only the rest of its own.
//!
//! Invariants: every call that reaches a listener gets the plan's one answer, whatever it is; nothing here waits; and what one turn
//! of init's loop does for one program is one notice. When the listener is closed, the kernel refuses with ENOSYS.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;

use crate::plan::messages::Born;
use crate::plan::{ListenerAnswer, ProgramStep};
use crate::sys::CallError;
use crate::sys::seccomp::{self, Notice};
use crate::sys::socket::{self, Wait};

/// Kinds of calls that are remembered for one program, more than any profile here refuses.
const KINDS_MAX: usize = 192;

/// The one byte that comes with a listener; a failure has more.
pub const LISTENER_WORD: [u8; 1] = [0];

/// Bytes of a failure, as `program` writes it.
pub const FAILURE_BYTES: usize = 6;

/// In the place of a failure's stage: a fork of the warm interpreter executes a fresh one. The byte after it is 1 when the warm one
/// is out of date, and another one would not be.
const PASSED: u8 = 9;

/// One program, from its fork to the end of its last descendant.
#[derive(Debug)]
pub struct Watch {
    /// The child's end is closed by its exec.
    socket: OwnedFd,
    hearing: Hearing,
    answer: ListenerAnswer,
    failure: Option<[u8; FAILURE_BYTES]>,
    blocked: BTreeSet<u32>,
    begin: Begin,
    born: Born,
    /// The warm interpreter that it came from is out of date.
    outdated: bool,
}

/// Whether the child had executed in the time that it had for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Yes, or it had as long as it liked.
    InTime,
    /// No: the kernel has killed it.
    Late,
}

/// All that was heard of a program that has ended.
#[derive(Debug)]
pub struct Heard {
    /// What the child could not do.
    pub failure: Option<[u8; FAILURE_BYTES]>,
    /// The numbers of the calls refused.
    pub blocked: Vec<u32>,
    /// What carried it out.
    pub born: Born,
    /// The warm interpreter that it came from is out of date.
    pub outdated: bool,
}

/// What is waited for.
#[derive(Debug)]
enum Hearing {
    /// That the child hands its listener over.
    Child,
    /// Refused calls.
    Calls(OwnedFd),
    /// Nothing more.
    Nothing,
}

impl Watch {
    /// Of a child that goes through `steps` and has the other end of `socket`.
    pub fn new(socket: OwnedFd, steps: &[ProgramStep], begin: Begin) -> Self {
        let listener = steps
            .iter()
            .find_map(|step| if let ProgramStep::SeccompListener { answer, .. } = step { Some(*answer) } else { None });
        let hearing = if listener.is_some() { Hearing::Child } else { Hearing::Nothing };
        Self {
            socket,
            hearing,
            answer: listener.unwrap_or(ListenerAnswer::Refuse(libc::EPERM)),
            failure: None,
            blocked: BTreeSet::new(),
            begin,
            born: Born::Fresh,
            outdated: false,
        }
    }

    /// See [`Begin`].
    pub fn begin(&self) -> Begin {
        self.begin
    }

    /// Of a fork of the warm interpreter that has the other end of `socket`.
    pub fn of_a_fork(socket: OwnedFd) -> Self {
        Self { born: Born::Warm, ..Self::new(socket, &[], Begin::InTime) }
    }

    /// The same of a program that was started ahead, and has become one now.
    pub fn of_one_started_ahead(self) -> Self {
        Self { born: Born::Prestarted, ..self }
    }

    /// Whether it is a fork of the warm interpreter.
    pub fn is_of_a_fork(&self) -> bool {
        self.born == Born::Warm
    }

    /// A call was refused to it; true when that is new.
    pub fn add_blocked(&mut self, number: u32) -> bool {
        self.blocked.len() < KINDS_MAX && self.blocked.insert(number)
    }

    /// True when that call was refused to it before, or is one too many to remember.
    pub fn knows_blocked(&self, number: u32) -> bool {
        self.blocked.len() >= KINDS_MAX || self.blocked.contains(&number)
    }

    /// What to poll for input.
    pub fn waits_on(&self) -> Option<BorrowedFd<'_>> {
        match &self.hearing {
            Hearing::Child => Some(self.socket.as_fd()),
            Hearing::Calls(listener) => Some(listener.as_fd()),
            Hearing::Nothing => None,
        }
    }

    /// Does one thing that `events` of [`Self::waits_on`] announce; the number of a call that was not refused before.
    pub fn hear(&mut self, events: PollFlags) -> Option<u32> {
        let mut heard = None;
        self.hear_with(events, |notice| heard = Some(notice.number));
        heard.filter(|number| self.add_blocked(*number))
    }

    /// The same, for whom each refused call is told to `told` while its maker waits.
    pub fn hear_with(&mut self, events: PollFlags, told: impl FnOnce(Notice)) {
        match &self.hearing {
            Hearing::Child => self.hear_child(),
            Hearing::Calls(listener) if events.contains(PollFlags::IN) => {
                if answer(listener.as_fd(), self.answer, told).is_err() {
                    self.hearing = Hearing::Nothing;
                }
            }
            // Nothing that has the filter lives any more (Linux 5.9); to ask for a notice now would wait for ever.
            Hearing::Calls(_) if events.intersects(PollFlags::HUP | PollFlags::NVAL) => self.hearing = Hearing::Nothing,
            Hearing::Calls(_) | Hearing::Nothing => {}
        }
    }

    /// Takes one message of the child, if there is one.
    fn hear_child(&mut self) {
        let mut bytes = [0; FAILURE_BYTES];
        match socket::receive(self.socket.as_fd(), &mut bytes, Wait::No) {
            Ok(packet) if packet.bytes == FAILURE_BYTES && bytes[0] == PASSED => {
                self.born = Born::Passed;
                self.outdated = bytes[1] == 1;
            }
            Ok(packet) if packet.bytes == FAILURE_BYTES => {
                self.failure = Some(bytes);
                self.hearing = Hearing::Nothing;
            }
            Ok(mut packet) => self.hearing = packet.descriptors.pop().map_or(Hearing::Nothing, Hearing::Calls),
            Err(error) if error.errno == rustix::io::Errno::AGAIN => {}
            Err(_) => self.hearing = Hearing::Nothing,
        }
    }

    /// The end.
    pub fn finish(mut self) -> Heard {
        // At most a listener nobody heard (or a fork's word that it passes) and a failure: then the end of the socket, which all
        // that held it have closed.
        for _ in 0..2 {
            if self.failure.is_none() {
                self.hear_child();
            }
        }
        let Self { failure, blocked, born, outdated, .. } = self;
        Heard { failure, blocked: blocked.into_iter().collect(), born, outdated }
    }
}

/// Answers the call that waits, after it has been told; nothing when it is gone.
fn answer(listener: BorrowedFd<'_>, answer: ListenerAnswer, told: impl FnOnce(Notice)) -> Result<(), CallError> {
    let Some(notice) = seccomp::next_notice(listener)? else { return Ok(()) };
    told(notice);
    match answer {
        ListenerAnswer::Refuse(errno) => seccomp::refuse(listener, notice, errno),
        ListenerAnswer::LetGo => seccomp::let_go(listener, notice),
    }
}
