#!/usr/bin/env python3
"""Mixed load with random kills on a CodeBeaker server that it starts itself; see scripts/soak --help.

Every command has one right verdict, known before it is sent. A kill that is part of the load (a program, an init, a client's
connection) changes only the verdict of its own command; the launcher's death touches every session, so commands that overlap
it may also be told that their sandbox or session is gone. Anything else is a wrong verdict. Leaks are told by comparing the
server after the load with the server after a warm-up that did everything once.
"""

import argparse
import collections
import glob
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time

from bench import Server, say
from wire import Connection, WireError

WORKERS = 6
LAUNCHER_KILL_EVERY_S = 30
# How long after the launcher's death its sessions may still be told to be gone.
DISTURBED_S = 8
SETTLE_S = 15
# What the server remembers of the past is bounded by configuration. With small bounds it is full after a minute or so, and from
# then on memory must stay where it is; with the default bounds (16,384 closed sessions) an hour would show nothing. Ready sandboxes
# are as many at the end as at the beginning, which they are not where demand may ask for more, and nothing is measured meanwhile.
BOUNDS = {
    "CODEBEAKER_RUNTIMES_MEASURE": "false",
    "CODEBEAKER_SESSION_CLOSED_MAX": "300",
    "CODEBEAKER_SESSION_OUTCOMES_MAX": "300",
    "CODEBEAKER_POOL_SANDBOXES_MAX": "2",
}
MEMORY_SAMPLES = 24
# How much more the last third of the samples may take than the middle one: the allocator's own unrest.
MEMORY_GROWTH_MAX = 1.08
FLAWS_SHOWN = 10
# Looks at the server, a tenth of a second apart, between which nothing may change before it is at rest.
REST_LOOKS = 20


class RpcError(WireError):
    """An error reply."""

    def __init__(self, error):
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.code = error.get("code")


class NeverStarted(WireError):
    """A streamed command whose sandbox was gone before its program started: its one event is `exited`."""


class Client(Connection):
    """A connection that keeps notifications until they are asked for."""

    def __init__(self, url, token):
        super().__init__(url, token)
        self.events = collections.deque()

    def send(self, method, **params):
        request_id, ready = self.prepare(method, **params)
        self.socket.sendall(ready)
        return request_id

    def wait(self, request_id):
        while True:
            message = json.loads(self.message())
            if message.get("id") == request_id:
                if "error" in message:
                    raise RpcError(message["error"])
                return message["result"]
            self.events.append(message)

    def ask(self, method, **params):
        return self.wait(self.send(method, **params))

    def event(self):
        message = self.events.popleft() if self.events else json.loads(self.message())
        return message["params"]["result"]


class Ledger:
    """What was done and what was wrong, for all workers."""

    def __init__(self):
        self.lock = threading.Lock()
        self.done = collections.Counter()
        self.flaws = collections.defaultdict(list)
        self.launcher_deaths = []

    def count(self, what):
        with self.lock:
            self.done[what] += 1

    def flaw(self, kind, text):
        with self.lock:
            self.flaws[kind].append(text)

    def disturbed(self, since):
        """Whether the launcher died while something ran that began at `since`, or shortly before."""
        with self.lock:
            return any(death + DISTURBED_S > since for death in self.launcher_deaths)


def children(pid):
    """Processes whose parent is `pid`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = pathlib.Path("/proc", name, "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            fields = stat.rsplit(") ", 1)[1].split(" ")
            if int(fields[1]) == pid and fields[0] not in "ZX":
                found.append(int(name))
    return found


def launcher_of(server):
    for pid in children(server):
        try:
            if pathlib.Path("/proc", str(pid), "comm").read_text(encoding="utf-8").strip() == "cb-launcher":
                return pid
        except OSError:
            continue
    return None


def find_program(server, mark):
    """The init and the program, in host numbers, of the command whose arguments hold `mark`."""
    launcher = launcher_of(server)
    for init in children(launcher) if launcher else []:
        for program in children(init):
            try:
                if mark.encode() in pathlib.Path("/proc", str(program), "cmdline").read_bytes():
                    return init, program
            except OSError:
                continue
    return None, None


def zombies(pid):
    count = 0
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            fields = pathlib.Path(path).read_text(encoding="utf-8", errors="replace").rsplit(") ", 1)[1].split(" ")
        except OSError:
            continue
        count += int(fields[1]) == pid and fields[0] == "Z"
    return count


def held(server, state):
    """What the server holds on the host now."""
    status = pathlib.Path("/proc", str(server), "status").read_text(encoding="utf-8")
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    launcher = launcher_of(server)
    groups = glob.glob(f"/sys/fs/cgroup/**/codebeaker-*-{server}-*/*/", recursive=True)
    return {
        "descriptors": len(os.listdir(f"/proc/{server}/fd")),
        "threads": len(os.listdir(f"/proc/{server}/task")),
        "memory_kib": int(resident.split()[1]),
        "sandboxes": len(children(launcher)) if launcher else 0,
        "zombies": zombies(server),
        "launcher_descriptors": len(os.listdir(f"/proc/{launcher}/fd")) if launcher else 0,
        "cgroups": len([group for group in groups if not group.rstrip("/").endswith("/server")]),
        "run_files": sum(len(names) + len(files) for _, names, files in os.walk(os.path.join(state, "run"))),
    }


class Worker(threading.Thread):
    """One client after another, each with a session, until the time is over."""

    def __init__(self, server, ledger, seed, over):
        super().__init__()
        self.server, self.ledger, self.over = server, ledger, over
        self.random = random.Random(seed)
        self.kinds = [
            self.echo, self.code, self.files, self.exit_code, self.lines, self.times_out, self.out_of_memory,
            self.program_killed, self.signalled, self.cancelled,
        ]

    def run(self):
        while time.monotonic() < self.over:
            self.once()

    def once(self, kinds=None, fate=None):
        begin = time.monotonic()
        try:
            self.life(kinds or self.random.sample(self.kinds, 4), fate or self.random.choice(["close"] * 6 + ["drop", "init", "drop_tied"]))
        except NeverStarted as error:
            if not (self.ledger.disturbed(begin) and str(error).startswith("sandbox_gone:")):
                self.ledger.flaw("wrong_verdict", f"a program never started: {error}")
        except RpcError as error:
            if not (self.ledger.disturbed(begin) and error.code in (1002, 1302)):
                self.ledger.flaw("wrong_verdict", f"an error reply: {error}")
        except (WireError, OSError, AssertionError) as error:
            self.ledger.flaw("broken", f"{type(error).__name__}: {error}")

    def life(self, kinds, fate):
        self.client = Client(self.server.url, self.server.token)
        tied = "close" if fate == "drop_tied" else "keep"
        created = self.client.ask("session.create", language="python", memoryLimitMB=64, onDisconnect=tied)
        self.session = created["sessionId"]
        self.ledger.count("sessions")
        try:
            for kind in kinds:
                kind()
                self.ledger.count(kind.__name__)
            if fate == "init":
                self.init_killed()
            elif fate.startswith("drop"):
                self.connection_dropped()
        finally:
            try:
                self.client.ask("session.close", sessionId=self.session)
            finally:
                self.client.close()

    def expect(self, what, result, **wanted):
        """Compares a CommandResult with the one right answer."""
        report = result.get("result") or {}
        seen = {name: report.get(name, result.get(name)) for name in wanted}
        if seen == wanted or (result.get("errorKind") == "sandbox_gone" and self.ledger.disturbed(self.begin)):
            return
        self.ledger.flaw("wrong_verdict", f"{what}: wanted {wanted}, got {seen}: {result.get('error')}")

    def execute(self, **command):
        self.begin = time.monotonic()
        return self.client.ask("session.execute", sessionId=self.session, command=command)

    def shell(self, line, **more):
        return self.execute(type="execute_shell", commandName="bash", args=["-c", line], **more)

    def echo(self):
        mark = str(self.random.random())
        self.expect("echo", self.shell(f"echo {mark}"), success=True, stdout=f"{mark}\n", exitCode=0)

    def code(self):
        a, b = self.random.randrange(10**6), self.random.randrange(10**6)
        self.expect("code", self.execute(type="execute_code", code=f"print({a}*{b})"), success=True, stdout=f"{a * b}\n")

    def files(self):
        content = "é" * self.random.randrange(1, 100_000)
        self.expect("write", self.execute(type="write_file", path="a/b", content=content), success=True)
        self.expect("read", self.execute(type="read_file", path="a/b"), success=True, content=content)

    def exit_code(self):
        code = self.random.randrange(1, 120)
        self.expect("exit", self.shell(f"exit {code}"), errorKind="nonzero_exit", exitCode=code)

    def times_out(self):
        self.expect("timeout", self.shell("setsid sleep 60 & sleep 60", timeoutSeconds=1), errorKind="timeout", timedOut=True)

    def out_of_memory(self):
        result = self.execute(type="execute_code", code="x = bytearray(200 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1")
        self.expect("memory", result, errorKind="out_of_memory", oomKilled=True)

    def stream(self, line):
        """Starts a streamed command: its execution."""
        self.begin = time.monotonic()
        command = {"type": "execute_shell", "commandName": "bash", "args": ["-c", line]}
        self.client.ask("session.stream", sessionId=self.session, command=command)
        first = self.client.event()
        if first["type"] == "exited":
            raise NeverStarted(f"{first['result'].get('errorKind')}: {first['result'].get('error')}")
        if first["type"] != "started":
            self.ledger.flaw("lost_event", f"the first event is {first['type']}")
        return first["executionId"]

    def finish(self, execution):
        """The rest of a stream: what it wrote, and its CommandResult. Checks that no event is missing."""
        text, sequence = "", []
        while True:
            event = self.client.event()
            if event.get("executionId", execution) != execution or event["type"] == "started":
                self.ledger.flaw("lost_event", f"an event of another execution, or a second start: {event['type']}")
            if event["type"] == "exited":
                break
            if event["type"] == "dropped":
                self.ledger.flaw("lost_event", f"{event['bytes']} bytes dropped for a reader that was not slow")
            else:
                text += event["data"]
                sequence.append(event["seq"])
        if sequence != list(range(sequence[0], sequence[0] + len(sequence)) if sequence else []):
            self.ledger.flaw("lost_event", f"sequence numbers {sequence[:20]}")
        return text, event["result"]

    def lines(self):
        count = self.random.randrange(1, 3000)
        text, result = self.finish(self.stream(f"for i in $(seq {count}); do echo $i; done"))
        wanted = "".join(f"{number}\n" for number in range(1, count + 1))
        self.expect("lines", result, success=True)
        if text != wanted and not self.ledger.disturbed(self.begin):
            self.ledger.flaw("lost_event", f"{len(text)} of {len(wanted)} characters came")

    def victim(self):
        """A program that sleeps and can be found: its execution, its init and itself."""
        mark = f"victim-{self.random.getrandbits(64)}"
        execution = self.stream(f"echo {mark}; sleep 60; : {mark}")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            init, program = find_program(self.server.process.pid, mark)
            if program:
                return execution, init, program
        if not self.ledger.disturbed(self.begin):
            self.ledger.flaw("broken", "a program that was started can't be found")
        return execution, None, None

    def program_killed(self):
        execution, _, program = self.victim()
        kill(program)
        self.expect("killed program", self.finish(execution)[1], errorKind="signaled", signal="SIGKILL")

    def signalled(self):
        execution = self.stream("sleep 60")
        self.client.ask("session.signal", sessionId=self.session, executionId=execution, signal="SIGTERM")
        self.expect("signalled program", self.finish(execution)[1], errorKind="signaled", signal="SIGTERM")

    def cancelled(self):
        execution = self.stream("trap '' TERM; sleep 60")
        self.client.ask("session.cancel", sessionId=self.session, executionId=execution)
        self.expect("cancelled program", self.finish(execution)[1], errorKind="cancelled")

    def init_killed(self):
        execution, init, _ = self.victim()
        kill(init)
        self.expect("killed init", self.finish(execution)[1], errorKind="sandbox_gone")
        self.ledger.count("init_killed")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                self.echo_quietly()
            except RpcError as error:
                if error.code == 1002:
                    return
            time.sleep(0.05)
        self.ledger.flaw("wrong_verdict", "a session whose init was killed is not closed after 10 s")

    def echo_quietly(self):
        self.shell("true")

    def connection_dropped(self):
        self.stream("while :; do echo x; sleep 0.01; done")
        # No closing handshake, and unread events in the buffer: the other side gets a reset.
        self.client.close()
        self.ledger.count("connection_dropped")
        self.client = Client(self.server.url, self.server.token)


def kill(pid):
    """SIGKILL to a process below our own server, unless it is gone."""
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def settle(server, baseline):
    """Waits until the server holds no more than at first; gives what it holds in the end."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        now = held(server.process.pid, server.state)
        if all(now[name] <= baseline[name] for name in baseline if name != "memory_kib") or time.monotonic() > deadline:
            return now
        time.sleep(0.2)


def rest(server):
    """Waits until what is made in the background is there; gives what the server holds then."""
    deadline, last, same = time.monotonic() + SETTLE_S, None, 0
    while same < REST_LOOKS and time.monotonic() < deadline:
        time.sleep(0.1)
        now = held(server.process.pid, server.state)
        counted = {name: value for name, value in now.items() if name != "memory_kib"}
        same = same + 1 if counted == last else 0
        last = counted
    return now


def soak(server, seconds, seed):
    ledger = Ledger()
    warm = Worker(server, ledger, seed, 0)
    for fate in ["close", "drop", "init", "drop_tied"]:
        warm.once(warm.kinds, fate)
    before = rest(server)
    over = time.monotonic() + seconds
    workers = [Worker(server, ledger, seed + number + 1, over) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    memory, next_kill = [], time.monotonic() + LAUNCHER_KILL_EVERY_S
    while any(worker.is_alive() for worker in workers):
        time.sleep(1)
        now = time.monotonic()
        if server.process.poll() is not None:
            ledger.flaw("broken", f"the server ended with {server.process.returncode}")
            break
        if len(memory) < MEMORY_SAMPLES and now > over - seconds + (len(memory) + 1) * seconds / (MEMORY_SAMPLES + 1):
            memory.append(held(server.process.pid, server.state)["memory_kib"])
        # None in the last seconds: what they disturb could not be told from a flaw's aftermath.
        if next_kill < now < over - DISTURBED_S:
            with ledger.lock:
                ledger.launcher_deaths.append(now)
            kill(launcher_of(server.process.pid))
            ledger.count("launcher_killed")
            next_kill = now + LAUNCHER_KILL_EVERY_S
    for worker in workers:
        worker.join()
    after = settle(server, before)
    for name, value in before.items():
        if name != "memory_kib" and after[name] > value:
            ledger.flaw("leak", f"{name}: {value} before, {after[name]} after")
    levels = [sum(part) / len(part) for part in thirds(memory)]
    if levels and levels[2] > levels[1] * MEMORY_GROWTH_MAX:
        ledger.flaw("leak", f"memory does not level off: {', '.join(f'{level:.0f}' for level in levels)} KiB by thirds")
    return {"seconds": seconds, "done": ledger.done, "flaws": ledger.flaws, "before": before, "after": after, "memory_kib": memory}


def thirds(samples):
    """The samples in three parts, in order; nothing when there are too few to tell."""
    size = len(samples) // 3
    return [samples[part * size : (part + 1) * size] for part in range(3)] if size >= 3 else []


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=float)
    parser.add_argument("--server", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    os.environ.update(BOUNDS)
    say(f"soaking for {arguments.minutes:g} minutes, seed {arguments.seed}")
    with Server(os.path.abspath(arguments.server)) as server:
        report = soak(server, arguments.minutes * 60, arguments.seed)
    print(f"did: {', '.join(f'{count} {what}' for what, count in sorted(report['done'].items()))}")
    for name, value in report["before"].items():
        print(f"{name}: {value} before, {report['after'][name]} after")
    print(f"memory_kib on the way: {' '.join(map(str, report['memory_kib']))}")
    for kind in ["wrong_verdict", "lost_event", "leak", "broken"]:
        flaws = report["flaws"].get(kind, [])
        print(f"{kind}: {len(flaws)}")
        for flaw in flaws[:FLAWS_SHOWN]:
            print(f"  {flaw}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 1 if report["flaws"] else 0


if __name__ == "__main__":
    sys.exit(main())
