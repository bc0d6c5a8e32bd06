//! Init and the program that is started ahead: when one is begun, when it is given up, and when it gets its source.

use std::os::fd::OwnedFd;

use crate::init::files::gate::Gate;
use crate::init::files::{self, Carriers, FileContext};
use crate::init::prestarted::Ahead;
use crate::init::program::Base;
use crate::init::rights::Rights;
use crate::init::warm::Outcome;
use crate::plan::files::{FileCommand, FileError, FileReply};
use crate::plan::messages::{ExecuteRequest, InitMessage, PrestartRequest, ProgramEnd, StartFailure, StartStage};
use crate::sys::channel::ChannelError;

use super::Init;

impl Init<'_> {
    /// Starts one in place of the one before. Beside a program that runs there is none: it could meet the fifo.
    pub(super) fn prestart(&mut self, request: PrestartRequest, streams: Vec<OwnedFd>) -> Result<(), ChannelError> {
        self.end_ahead();
        let make = || Gate::make(&self.context, &request.source, &request.waits_in);
        let made = if self.reaper.is_idle() { self.rights.act_as_programs(make).ok() } else { None };
        let Some((gate, socket)) = made else { return self.send(&InitMessage::Warmed(None)) };
        let base = Base { plan: self.plan, built: &self.built, stack: &mut self.stack };
        match self.prestarted.begin(request, streams, (gate, socket), base) {
            Ok(()) => Ok(()),
            Err(gate) => {
                self.remove(&gate);
                self.send(&InitMessage::Warmed(None))
            }
        }
    }

    /// Gives the source to the one that waits, or says that there is none.
    pub(super) fn execute_prestarted(&mut self, request: &ExecuteRequest, number: u64) -> Result<(), ChannelError> {
        let execution = request.execution;
        self.look_ahead()?;
        let taken = self.prestarted.take().and_then(|ahead| {
            let source =
                ahead.suits(request, number).then(|| self.rights.act_as_programs(|| ahead.gate().source()).ok()).flatten();
            if let Some(source) = source {
                return ahead.give(&source, request);
            }
            self.remove(&ahead.end());
            None
        });
        if let Some((pid, running)) = taken {
            self.reaper.add(pid, running);
            return Ok(());
        }
        let errno = rustix::io::Errno::NOENT.raw_os_error();
        let end = ProgramEnd::NotStarted(StartFailure { stage: StartStage::Prestarted, errno });
        self.send(&InitMessage::Ended { execution, end })
    }

    /// Tells what became of it, when that can be known now.
    pub(super) fn look_ahead(&mut self) -> Result<(), ChannelError> {
        match self.prestarted.look() {
            None => Ok(()),
            Some(Outcome::Ready(bytes)) => {
                // It has come to where it waits, so nobody else needs to find that.
                if let Some(ahead) = self.prestarted.waiting() {
                    remove(&mut self.rights, ahead.gate());
                }
                self.send(&InitMessage::Warmed(Some(bytes)))
            }
            Some(Outcome::Lost) => {
                self.end_ahead();
                self.send(&InitMessage::Warmed(None))
            }
        }
    }

    /// Gives up one that another program could meet.
    pub(super) fn clear_the_way(&mut self) -> Result<(), ChannelError> {
        debug_assert!(self.rights.are_own(), "what comes next starts a program");
        self.look_ahead()?;
        if self.prestarted.opening().is_some() {
            self.end_ahead();
            return self.send(&InitMessage::Warmed(None));
        }
        Ok(())
    }

    pub(super) fn end_ahead(&mut self) {
        if let Some(ahead) = self.prestarted.take() {
            self.remove(&ahead.end());
        }
    }

    /// A child that was no program has ended.
    pub(super) fn ahead_ended(&mut self, pid: i32) -> Result<(), ChannelError> {
        let Some(ahead) = self.prestarted.ended(pid) else { return Ok(()) };
        let is_news = ahead.is_opening();
        self.remove(&ahead.end());
        if is_news { self.send(&InitMessage::Warmed(None)) } else { Ok(()) }
    }

    /// Carries out a file command beside one whose gate may be seen.
    pub(super) fn file_beside_ahead(
        &mut self,
        root: &[u8],
        command: FileCommand,
        carriers: &mut Carriers,
    ) -> Result<Result<FileReply, FileError>, ChannelError> {
        self.look_ahead()?;
        if self.prestarted.waiting().is_some_and(|ahead| ahead.is_misled_by(&command)) {
            self.end_ahead();
        }
        let opening = self.prestarted.opening();
        let is_hit = |ahead: &Ahead, context: &FileContext| ahead.is_misled_by(&command) || ahead.is_met_by(&command, context);
        if opening.is_some_and(|ahead| self.rights.act_as_programs(|| Ok(is_hit(ahead, &self.context))).unwrap_or(true)) {
            self.end_ahead();
            self.send(&InitMessage::Warmed(None))?;
        }
        let mut reply = self.rights.act_as_programs(|| files::run_below(command, &self.context, root, carriers));
        if let Some(ahead) = self.prestarted.opening() {
            if let Ok(reply) = &mut reply {
                self.rights
                    .act_as_programs(|| {
                        ahead.hide(reply, &self.context);
                        Ok(())
                    })
                    .ok();
            }
            // It may have seen what is there now; that it may be gone when its source comes does not help.
            if ahead.is_outdated() {
                self.end_ahead();
                self.send(&InitMessage::Warmed(None))?;
            }
        }
        Ok(reply)
    }

    fn remove(&mut self, gate: &Gate) {
        remove(&mut self.rights, gate);
    }
}

fn remove(rights: &mut Rights, gate: &Gate) {
    // One that can't be removed is the session's own file, and goes with it.
    rights
        .act_as_programs(|| {
            gate.remove();
            Ok(())
        })
        .ok();
}
