//! The only maker of sandboxes: a process of one thread, executed afresh from a sealed memory file, with none of the
//! server's secrets in its memory.
//!
//! Invariants: one thread, so that cloning without exec is sound; every sandbox's init is its child, and the cgroup directories its
//! own, until they are gone; it keeps no descriptor and little memory for each that has its plan, since every clone gets a copy of both; when the server's end of the socket closes, it ends every sandbox, cleans up and ends. The server's own groups
//! go only when the server is gone. Read `create` for the steps around the clone.

mod create;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::epoll;
use rustix::io::Errno;

use crate::plan::StepFailure;
use crate::plan::messages::{CreateRequest, LauncherMessage, LauncherRequest, SERVER_SOCKET, Tag, WayBack};
use crate::sys::cgroup::step_back;
use crate::sys::channel::{self, ChannelError};
use crate::sys::process::{self, Reaped};
use crate::sys::socket::Wait;
use crate::sys::{CallError, error::Named};

use create::Begun;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

/// How often a directory that is still busy is tried again, and how long between.
const REMOVALS_MAX: u32 = 200;
const REMOVAL_PAUSE_MS: u64 = 10;

/// Groups below one of the server's, at most: a session has three of them, a server no more than some ten thousand sessions.
const GROUPS_MAX: usize = 200_000;

const SERVER_EVENT: u64 = 0;
const CHILD_EVENT: u64 = 1;

/// What a look at the server's socket gave.
enum Heard {
    /// A request, or nothing yet.
    Something,
    /// The end: the server is gone.
    End,
    /// What can't be read; the server may live.
    Garbage,
}

/// A sandbox that lives.
struct Sandbox {
    /// Of init, a child of ours: nobody else gets the number before it is reaped.
    pid: i32,
    /// One a line, which no group's name can break; deepest first. In one piece, because holes between small ones would be filled by
    /// the clone with what it allocates, and each page that it so touches is one more of its own.
    cgroups: Box<str>,
}

impl Sandbox {
    /// Kills all of it; one that has just ended is reaped when its signal is heard.
    fn end(&self) {
        // The last directory is the top of the v2 tree's, if there is one: whatever is in it, at once. On v1 there is no such file.
        if let Some(top) = self.cgroups.lines().last()
            && let Ok(mut file) = std::fs::OpenOptions::new().write(true).open(PathBuf::from(top).join("cgroup.kill"))
        {
            file.write_all(b"1").ok();
        }
        // The end of init is the end of its pid namespace, with or without a group.
        process::kill(self.pid, libc::SIGKILL).ok();
    }
}

struct Launcher {
    server: OwnedFd,
    events: OwnedFd,
    /// Tells that a child has ended.
    children: OwnedFd,
    sandboxes: BTreeMap<Tag, Sandbox>,
    /// Clones whose plan has not come, and those that could not be made.
    begun: BTreeMap<Tag, Result<Begun, StepFailure>>,
    /// Whose init a child is.
    tags: BTreeMap<i32, Tag>,
    /// The directory of devices that sandboxes get clones of.
    devices: Option<OwnedFd>,
    /// Directories that the kernel still called busy, with the number of tries.
    removals: Vec<(String, u32)>,
    /// What goes last.
    at_end: Vec<String>,
    way_back: Option<WayBack>,
}

/// Runs until the server is gone. The exit code is for nobody but a person who starts this by hand.
pub fn main() -> u8 {
    let Ok(server) = process::adopt_descriptor(SERVER_SOCKET) else {
        eprintln!("error: `codebeaker launcher` is started by the server, with its socket as descriptor {SERVER_SOCKET}");
        return 2;
    };
    match Launcher::new(server).and_then(|mut launcher| launcher.run()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: the launcher ended: {error}");
            1
        }
    }
}

impl Launcher {
    fn new(server: OwnedFd) -> Result<Self, ChannelError> {
        process::set_name(c"cb-launcher")?;
        if rustix::process::geteuid().is_root() {
            // Without privilege the maps of a process that is not dumpable could not be written: its files in /proc belong to
            // root. Then only the server's own user could trace this process, who could trace the server as well.
            process::hide_from_tracers()?;
        }
        process::new_session()?;
        process::close_from(SERVER_SOCKET + 1)?;
        // A helper that held it (newuidmap) would hide the end of this process from the server.
        process::close_on_exec(server.as_fd())?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).named("epoll_create1")?;
        watch(events.as_fd(), server.as_fd(), SERVER_EVENT)?;
        process::block_child_signals()?;
        let children = process::child_signals()?;
        watch(events.as_fd(), children.as_fd(), CHILD_EVENT)?;
        let (sandboxes, begun, tags) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            server,
            events,
            children,
            sandboxes,
            begun,
            tags,
            devices: None,
            removals: Vec::new(),
            at_end: Vec::new(),
            way_back: None,
        })
    }

    fn run(&mut self) -> Result<(), ChannelError> {
        let mut buffer = Vec::with_capacity(EVENTS_MAX);
        loop {
            self.wait(&mut buffer)?;
            let happened: Vec<u64> = buffer.drain(..).map(|event: epoll::Event| event.data.u64()).collect();
            for event in happened {
                if event == CHILD_EVENT {
                    self.reap()?;
                    continue;
                }
                match self.serve()? {
                    Heard::Something => {}
                    Heard::Garbage => return self.end_all(),
                    Heard::End => {
                        self.end_all()?;
                        self.remove_own_groups();
                        return Ok(());
                    }
                }
            }
            self.remove_directories();
        }
    }

    fn wait(&self, buffer: &mut Vec<epoll::Event>) -> Result<(), CallError> {
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: REMOVAL_PAUSE_MS as i64 * 1_000_000 };
        let timeout = (!self.removals.is_empty()).then_some(&pause);
        match epoll::wait(self.events.as_fd(), rustix::buffer::spare_capacity(buffer), timeout) {
            Ok(_) => Ok(()),
            Err(errno) if process::interrupted(errno) => Ok(()),
            Err(errno) => Err(CallError { call: "epoll_wait", errno }),
        }
    }

    /// One request.
    fn serve(&mut self) -> Result<Heard, ChannelError> {
        match channel::receive::<LauncherRequest>(self.server.as_fd(), Wait::No) {
            Ok(received) => self.request(received.message).map(|()| Heard::Something),
            Err(ChannelError::Empty) => Ok(Heard::Something),
            Err(ChannelError::Closed) => Ok(Heard::End),
            Err(error) => {
                // The server is our own binary: garbage means that something is badly wrong, so everything ends.
                eprintln!("error: the launcher can't read its socket: {error}");
                Ok(Heard::Garbage)
            }
        }
    }

    fn request(&mut self, request: LauncherRequest) -> Result<(), ChannelError> {
        match request {
            LauncherRequest::Begin(tag, birth) => {
                self.begun.insert(tag, create::begin(birth));
                Ok(())
            }
            LauncherRequest::Create(request) => self.create(*request),
            LauncherRequest::RemoveAtEnd(directories) => {
                self.at_end = directories;
                Ok(())
            }
            LauncherRequest::StepBackAtEnd(way_back) => {
                self.way_back = Some(way_back);
                Ok(())
            }
            LauncherRequest::ServerStays => {
                self.way_back = None;
                Ok(())
            }
            LauncherRequest::GiveUp(tag, cgroups) => {
                self.discard(tag);
                self.removals.extend(cgroups.into_iter().map(|directory| (directory, 0)));
                Ok(())
            }
            LauncherRequest::End(tag) => {
                self.discard(tag);
                if let Some(sandbox) = self.sandboxes.get(&tag) {
                    sandbox.end();
                }
                Ok(())
            }
        }
    }

    /// Ends what has only begun.
    fn discard(&mut self, tag: Tag) {
        if let Some(Ok(begun)) = self.begun.remove(&tag) {
            begun.discard();
        }
    }

    fn create(&mut self, request: CreateRequest) -> Result<(), ChannelError> {
        let CreateRequest { sandbox: tag, launch, rest, cgroups } = request;
        let ended = || create::failure("init", "wait for its plan", CallError { call: "waitid", errno: Errno::CHILD });
        let begun = self.begun.remove(&tag).unwrap_or_else(|| Err(ended()));
        match begun.and_then(|begun| begun.create(&launch, &rest, &mut self.devices)) {
            Ok(created) => self.hand_over(tag, created, &cgroups),
            Err(failure) => {
                self.removals.extend(cgroups.into_iter().map(|directory| (directory, 0)));
                self.tell(&LauncherMessage::Refused(tag, failure), &[])
            }
        }
    }

    fn hand_over(&mut self, tag: Tag, created: create::Created, cgroups: &[String]) -> Result<(), ChannelError> {
        let create::Created { pid, identity, control } = created;
        self.sandboxes.insert(tag, Sandbox { pid, cgroups: cgroups.join("\n").into() });
        self.tags.insert(pid, tag);
        match self.tell(&LauncherMessage::Created { sandbox: tag, init: identity }, &[control.as_fd()]) {
            // Descriptors in flight are counted per user (unix(7), ETOOMANYREFS), and without privilege that is the user of the
            // sessions too. The control socket closes here, and the sandbox ends with it.
            Err(ChannelError::Call(_)) => self.tell(&LauncherMessage::Lost(tag), &[]),
            told => told,
        }
    }

    /// Takes leave of every child that has ended.
    fn reap(&mut self) -> Result<(), ChannelError> {
        process::drain_signals(self.children.as_fd());
        while let Reaped::Ended(ended) = process::reap(-1)? {
            // What is not among them was never told of. Its number may be another process's from now on.
            self.begun.retain(|_, begun| begun.as_ref().map_or(true, |begun| begun.pid() != ended.pid));
            if let Some(tag) = self.tags.remove(&ended.pid) {
                self.over(tag, ended.status)?;
            }
        }
        Ok(())
    }

    /// The init of a sandbox has ended, and with it everything in it.
    fn over(&mut self, tag: Tag, status: i32) -> Result<(), ChannelError> {
        if let Some(sandbox) = self.sandboxes.remove(&tag) {
            self.removals.extend(sandbox.cgroups.lines().map(|directory| (directory.to_owned(), 0)));
        }
        self.tell(&LauncherMessage::Gone { sandbox: tag, status }, &[])
    }

    /// A server that is gone is noticed at the next event, not here.
    fn tell(&self, message: &LauncherMessage, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        match channel::send(self.server.as_fd(), message, descriptors) {
            Err(ChannelError::Closed) => Ok(()),
            sent => sent,
        }
    }

    fn remove_directories(&mut self) {
        let waiting = std::mem::take(&mut self.removals);
        self.removals = waiting
            .into_iter()
            .filter_map(|(directory, tries)| match std::fs::remove_dir(PathBuf::from(&directory)) {
                Ok(()) => None,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(_) if tries < REMOVALS_MAX => Some((directory, tries + 1)),
                Err(error) => {
                    eprintln!("warning: a cgroup could not be removed: {error}");
                    None
                }
            })
            .collect();
    }

    /// No sandbox may stay, nor its groups.
    fn end_all(&mut self) -> Result<(), ChannelError> {
        std::mem::take(&mut self.begun).into_values().flatten().for_each(Begun::discard);
        for sandbox in self.sandboxes.values() {
            sandbox.end();
        }
        let mut buffer = Vec::with_capacity(EVENTS_MAX);
        epoll::delete(self.events.as_fd(), self.server.as_fd()).named("epoll_ctl")?;
        while !self.sandboxes.is_empty() {
            self.wait(&mut buffer)?;
            buffer.clear();
            self.reap()?;
        }
        self.wait_for_removals();
        Ok(())
    }

    /// The server is gone, and needs its own groups no more. While it lives the next launcher makes sandboxes in them.
    fn remove_own_groups(&mut self) {
        if let Some(way) = self.way_back.take() {
            match step_back([&way.group, &way.base], &way.base) {
                Ok(()) => self.removals.push((way.leaf, 0)),
                // What stays is found by the next start.
                Err(error) => eprintln!("warning: a cgroup could not be left: {error}"),
            }
        }
        // The server may still be on its way out of the leaf. What it made and did not live to hand over is below.
        let own = std::mem::take(&mut self.at_end);
        self.removals.extend(own.iter().flat_map(|directory| groups_below(Path::new(directory))).map(|group| (group, 0)));
        self.wait_for_removals();
    }

    fn wait_for_removals(&mut self) {
        self.remove_directories();
        while !self.removals.is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(REMOVAL_PAUSE_MS));
            self.remove_directories();
        }
    }
}

/// A group and those below it, deepest first. One that the launcher itself stands in can't go and stays for the next start.
fn groups_below(top: &Path) -> Vec<String> {
    let mut groups = vec![top.to_owned()];
    let mut next = 0;
    while let Some(group) = groups.get(next).filter(|_| next < GROUPS_MAX) {
        // One that is gone has none below it.
        let below = std::fs::read_dir(group).into_iter().flatten().flatten();
        let directories = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        groups.extend(directories.map(|entry| entry.path()).collect::<Vec<_>>());
        next += 1;
    }
    let own = std::process::id().to_string();
    let is_ours = |group: &PathBuf| {
        let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        members.lines().any(|pid| pid == own)
    };
    let occupied: Vec<PathBuf> = groups.iter().filter(|group| is_ours(group)).cloned().collect();
    groups.retain(|group| !occupied.iter().any(|occupied| occupied.starts_with(group)));
    groups.into_iter().rev().map(|group| group.to_string_lossy().into_owned()).collect()
}

fn watch(events: BorrowedFd<'_>, fd: BorrowedFd<'_>, data: u64) -> Result<(), CallError> {
    debug_assert!(fd.as_raw_fd() >= 0);
    epoll::add(events, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN).named("epoll_ctl")
}
