#!/usr/bin/env python3
"""Measures a CodeBeaker server that it starts itself, with peers beside it; see scripts/bench --help.

A call's time is that of `wire`: from the request's first byte to the reply's last, on one kept-alive connection. The first
calls of each kind are thrown away, so caches are warm. "Back to back" is one call right after the other; "spaced" leaves
SPACE_S of quiet before each, which is what an idle server's client sees. Percentiles are nearest rank: of fewer than a
hundred samples the p99 is the slowest one. Read `report` for the figures, `peers` for what stands beside.
"""

import argparse
import base64
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import containers
import dockerd
import engines
import floors
import peers
import plot
import report
import scenes
from wire import Connection, WireError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
SPACE_S = 0.2
WARM_UP = 3
# Timings of one kind before the next kind has its turn.
TURN = 20
MEASURE_TIME_S = 20
START_TIME_S = 30
STOP_TIME_S = 30
KIB, MIB = 1 << 10, 1 << 20
PYTHON = "print(1)"
DOCKER_KEY = "CODEBEAKER_RUNTIMES_DOCKER"


class Sizes:
    """How many samples of each kind, and how long nothing is done between them."""

    def __init__(self, quick):
        self.small = 30 if quick else 200
        self.spaced = 3 if quick else 15
        self.large = 4 if quick else 10
        # What takes a good part of a second each.
        self.seconds = 3 if quick else 9
        self.steady_s = 1.0 if quick else 3.0
        self.peers_s = 0.3 if quick else 1.5
        # After hundreds of sessions the kernel takes their namespaces and groups down for a while, which is in none of the rows that follow.
        self.settle_s = 0.5 if quick else 3.0
        self.quiet_s = 0.4 if quick else 1.0


def say(text):
    print(text, file=sys.stderr, flush=True)


class Server:
    """The server under measurement, with a state directory of its own; leaving the block ends it and removes the directory."""

    def __init__(self, binary, settings=None):
        self.binary = binary
        self.settings = settings or {}

    def __enter__(self):
        self.state = tempfile.mkdtemp(prefix="codebeaker-bench-")
        self.log = open(os.path.join(self.state, "bench.log"), "wb")
        arguments = [self.binary, "serve", "--listen", "127.0.0.1:0", "--state-dir", self.state]
        try:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self.log,
                start_new_session=True,
                env=os.environ | engines.variables() | self.settings,
            )
            self.url = self._address()
            self.token = pathlib.Path(self.state, "token").read_text(encoding="utf-8").strip()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        process = getattr(self, "process", None)
        if process and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIME_S)
            except subprocess.TimeoutExpired:
                say(f"note: the server did not end within {STOP_TIME_S} s of SIGTERM and was killed")
                process.kill()
                process.wait()
        if process:
            process.stdout.close()
        self.log.close()
        shutil.rmtree(self.state, ignore_errors=True)

    def _address(self):
        """The line on stdout; a server that says nothing is ended by an alarm."""
        with alarm(START_TIME_S, "the server did not say that it listens"):
            for line in self.process.stdout:
                words = line.decode(errors="replace").split()
                if words[:2] == ["listening", "on"]:
                    return words[2]
        self.log.flush()
        last = pathlib.Path(self.log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
        raise WireError("the server ended before it listened:\n" + "\n".join(last))

    def connect(self):
        return Connection(self.url, self.token)

    def resident_mib(self):
        """Resident memory of the server, and of it with its launcher, in MiB."""
        server = resident_kib(self.process.pid)
        children = []
        # Any thread may be the launcher's parent: each task has a list of its own.
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            children += report.first_match(f"/proc/{self.process.pid}/task/{task}/children", r"(.*)", "").split()
        return server / 1024, (server + sum(resident_kib(pid) for pid in set(children))) / 1024


@contextlib.contextmanager
def alarm(seconds, why):
    """Raises when the block takes longer."""

    def ring(*_):
        raise WireError(f"{why} within {seconds} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def resident_kib(pid):
    return int(report.first_match(f"/proc/{pid}/status", r"^VmRSS:\s+(\d+)", "0"))


def sample(action, count, pause_s=0.0):
    """`count` timings of `action`, which gives its own seconds; `pause_s` of quiet before each."""
    samples = []
    for _ in range(count):
        if pause_s:
            time.sleep(pause_s)
        samples.append(action())
    return samples


def in_turns(actions, count, pause_s=0.0):
    """The same for several actions, a few timings of each in turns: a host that is slower for a while is so for all of them."""
    samples = [[] for _ in actions]
    few = 1 if pause_s else TURN
    for begun in range(0, count, few):
        for action, row in zip(actions, samples):
            row += sample(action, min(few, count - begun), pause_s)
    return samples


def fill(rows, kind, samples):
    """Puts figures into rows; one that has failed by then has none."""
    for row, its in zip(rows, samples):
        if "why" in row:
            row.pop("back_to_back", None)
        else:
            row[kind] = report.figures(its)


class Peer:
    """What stands beside an operation, tried out once. One that fails later says why in its row, and takes no other row along."""

    def __init__(self, name, make):
        self.row, self.run = {"name": name}, make()
        self.run()

    def __call__(self):
        if "why" not in self.row:
            try:
                return self.run()
            except peers.NotThere as error:
                self.row["why"] = f"failed: {error}"
        return 0.0


class Bench:
    """Collects the rows."""

    say = staticmethod(say)

    def __init__(self, sizes):
        self.sizes = sizes
        self.timings = []
        self.figures = []
        # Of ten executions in ten sessions, where nothing is ready before.
        self.cold_runs_ms = None

    def row(self, name, action, target=None, count=None, spaced=True, beside=None):
        """One operation, back to back and spaced; what fails becomes the row's reason, and the run goes on. `beside`: name and maker of what
        is measured in turns with it, for a row of its own."""
        say(f"   {name}")
        row, others = {"name": name, "target": target}, self.peers(beside)
        rows, actions = [row] + [peer.row for peer in others], [action, *others]
        try:
            for each in actions:
                sample(each, min(WARM_UP, count or WARM_UP))
            fill(rows, "back_to_back", in_turns(actions, count or self.sizes.small))
            if spaced:
                fill(rows, "spaced", in_turns(actions, self.sizes.spaced, SPACE_S))
        except (WireError, peers.NotThere, OSError, KeyError) as error:
            row["why"] = f"failed: {error}"
            say(f"      {row['why']}")
            if isinstance(error, OSError):
                raise
        self.timings += [row for row in rows if "back_to_back" in row or "why" in row]

    def add(self, name, samples):
        """A row of timings that were taken elsewhere, back to back."""
        self.timings.append({"name": name, "back_to_back": report.figures(samples)})

    def peers(self, beside):
        """What stands beside an operation, if anything does and is there; else a row says why."""
        try:
            return [Peer(*beside)] if beside else []
        except peers.NotThere as error:
            self.missing(beside[0], str(error))
            return []

    def is_told(self, name):
        """Whether there is a row of that name."""
        return any(row["name"] == name for row in self.timings)

    def missing(self, name, why):
        say(f"   {name}: {why}")
        self.timings.append({"name": name, "why": why})

    def figure(self, name, value, target=None):
        self.figures.append({"name": name, "figure": value, "target": target})

    def p50(self, name):
        """Of a row that was measured."""
        found = next((row for row in self.timings if row["name"] == name), {})
        return found.get("back_to_back", {}).get("p50_ms")


CREATE, CLOSE = "`session.create`, cold", "`session.close`"
CREATE_ALONE = "`session.create`, cold, nothing of it begun ahead"
COLD_TARGET = "2.5 / 6 (+ 7 where v1 has the controllers)"
POOLED, WITH_POOL = "`session.create` from the pool", "`session.create` with a pool, each session closed before the next"
TRUE, CODE = "`execute_shell` `true`", "`execute_code` Python `print(1)`, warm interpreter"
CODE_ANEW = "`execute_code` Python `print(1)`, a new interpreter"
DATA = "`execute_code` Python `import numpy, pandas; print(1)`, both preloaded"
DATA_ANEW = "`execute_code` Python `import numpy, pandas; print(1)`, a new interpreter"
DATA_CODE = "import numpy, pandas; print(1)"
# Only a fork of an interpreter that has loaded it has it before any import.
IS_LOADED = "import sys; print('pandas' in sys.modules)"
LOAD_TIME_S = 30
BARE, BARE_PYTHON, BWRAP = (
    "bare posix_spawn of `true`",
    "bare `python3 -c 'print(1)'`",
    "bubblewrap, all namespaces, `true`",
)


# Milliseconds on the host of the promises, of what runs here too, as they were told with the promises. Engines are left out, whose versions differ,
# and `true`, which was static there.
THERE = {BARE_PYTHON: 11.4, BWRAP: 4.9, containers.TRUE: 67, containers.PYTHON: 77}


def open_session(connection):
    return connection.call("session.create", language="python")


def wait_until_measured(connection):
    """A server measures each runtime once, at its first start, beside whatever is asked of it: a part of no figure. Returns when it has."""
    until = time.monotonic() + MEASURE_TIME_S
    while any(row["available"] and not row["capabilities"]["measured"] for row in connection.call("runtime.list")[0]["runtimes"]):
        if time.monotonic() > until:
            say(f"note: the server has not measured all of its runtimes within {MEASURE_TIME_S} s")
            return
        time.sleep(0.2)


def measure_cold(bench, binary):
    """On a server of its own without pool and warm interpreters, since one with a pool makes no session cold for long."""
    settings = {"CODEBEAKER_POOL_SANDBOXES_MAX": "0", "CODEBEAKER_WARM_ENABLED": "false", "CODEBEAKER_RUNTIMES_MEASURE": "false"}
    with Server(binary, settings) as server, contextlib.closing(server.connect()) as connection:
        alone, together = server.resident_mib()
        bench.figure("resident memory at rest, empty pool: server", f"{alone:.1f} MiB", "≤ 40 MiB")
        bench.figure("resident memory at rest, empty pool: server and launcher", f"{together:.1f} MiB")
        measure_sessions(bench, connection, CREATE, COLD_TARGET, (BWRAP, peers.bubblewrap))
        scenes.sessions_of_many(bench, server, CREATE)
        time.sleep(bench.sizes.settle_s)
        session, _ = open_session(connection)
        bench.row(CODE_ANEW, lambda: connection.command(session["sessionId"], type="execute_code", code=PYTHON)[1])
        connection.call("session.close", sessionId=session["sessionId"])
        scenes.ten_cold_runs(bench, connection)
    with Server(binary, {**settings, "CODEBEAKER_POOL_BEGIN_AHEAD": "false"}) as server, contextlib.closing(server.connect()) as connection:
        bench.row(CREATE_ALONE, lambda: scenes.made_and_closed(connection))


def measure_sessions(bench, connection, create, target, beside):
    """Each sample makes a session and closes it, so both are timed from one loop. Back to back a pool runs dry now and then."""
    closings = {"back_to_back": [], "spaced": []}

    def once(kind, pause_s=0.0):
        session, made = open_session(connection)
        if pause_s:
            time.sleep(pause_s)
        closings[kind].append(connection.call("session.close", sessionId=session["sessionId"])[1])
        return made

    close = CLOSE if create == CREATE else f"{CLOSE} of such a session"
    say(f"   {create} and {close}")
    sizes = bench.sizes
    others = bench.peers(beside)
    rows = [{"name": create, "target": target}] + [peer.row for peer in others]
    try:
        sample(lambda: once("back_to_back"), WARM_UP)
        closings["back_to_back"].clear()
        fill(rows, "back_to_back", in_turns([lambda: once("back_to_back"), *others], sizes.small))
        fill(rows, "spaced", in_turns([lambda: once("spaced", SPACE_S), *others], sizes.spaced, SPACE_S))
    except (WireError, KeyError) as error:
        bench.missing(create, f"failed: {error}")
        return
    rows.insert(1, {"name": close, **{kind: report.figures(samples) for kind, samples in closings.items()}})
    bench.timings += rows
    started, made = time.perf_counter(), 0
    while time.perf_counter() - started < sizes.steady_s:
        once("back_to_back")
        made += 1
    rate = made / (time.perf_counter() - started)
    bench.figure(f"{create} + `session.close`, steady, one connection", f"{rate:.0f} /s", "≥ 400 /s")


def measure_commands(bench, connection, session):
    def command(**fields):
        return lambda: connection.command(session, **fields)[1]

    text = "x" * KIB
    bench.row(TRUE, command(type="execute_shell", commandName="true"), "1.2 / 3", beside=(BARE, peers.bare_true))
    bench.row(CODE, command(type="execute_code", code=PYTHON), "2 / 5", beside=(BARE_PYTHON, peers.bare_python))
    writing = command(type="write_file", path="small.txt", content=text)
    with contextlib.ExitStack() as stack:
        relay = lambda: stack.enter_context(contextlib.closing(floors.Echo(relay=True)))
        bench.row("`write_file` 1 KiB", writing, "0.15 / 0.5", beside=(floors.RELAY, relay))
    bench.row("`read_file` 1 KiB", command(type="read_file", path="small.txt"), "0.15 / 0.5")
    large = "x" * (8 * MIB)
    writing = connection.prepare(
        "session.execute", sessionId=session, command={"type": "write_file", "path": "large.txt", "content": large}
    )
    count = bench.sizes.large
    bench.row("`write_file` 8 MiB of text", lambda: checked(connection, writing)[1], "60 / –", count, spaced=False)
    within(bench, "`write_file` 8 MiB of text: of it in the session, without the wire", lambda: checked(connection, writing)[0])
    reading = {"type": "read_file", "path": "large.txt", "length": 8 * MIB}
    bench.row("`read_file` 8 MiB of text", command(**reading), "60 / –", count, spaced=False)
    within(bench, "`read_file` 8 MiB of text: of it in the session, without the wire", lambda: connection.command(session, **reading)[0])
    data = base64.b64encode(os.urandom(8 * MIB)).decode()
    writing = connection.prepare(
        "session.execute",
        sessionId=session,
        command={"type": "write_file", "path": "large.bin", "content": data, "encoding": "base64"},
    )
    bench.row("`write_file` 8 MiB as base64", lambda: checked(connection, writing)[1], "60 / –", count, spaced=False)
    reading = command(type="read_file", path="large.bin", encoding="base64")
    bench.row("`read_file` 8 MiB as base64", reading, "60 / –", count, spaced=False)


def measure_preloaded(bench, binary):
    """A language of its own whose interpreter has loaded numpy and pandas: docs/languages.md says how an operator makes one."""
    with tempfile.TemporaryDirectory(prefix="codebeaker-bench-") as directory:
        python = (ROOT / "rootfs" / "python.toml").read_text(encoding="utf-8")
        for before, after in [
            (r'^name = .*$', 'name = "data"'),
            (r"^aliases = .*$", "aliases = []"),
            (r"^preload = .*$", 'preload = ["numpy", "pandas"]'),
        ]:
            python = re.sub(before, after, python, flags=re.MULTILINE)
        pathlib.Path(directory, "data.toml").write_text(python, encoding="utf-8")
        settings = {"CODEBEAKER_SANDBOX_LANGUAGE_DIR": directory}
        with Server(binary, settings) as server, contextlib.closing(server.connect()) as connection:
            session = connection.call("session.create", language="data")[0]["sessionId"]
            run = lambda code: connection.command(session, type="execute_code", code=code)
            try:
                wait_until_loaded(run)
            except WireError as error:
                bench.missing(DATA, str(error))
                return
            # The ready sandboxes of the language each load as much.
            time.sleep(bench.sizes.settle_s)
            bench.row(DATA, lambda: run(DATA_CODE)[1], "5 / 15")
            connection.call("session.close", sessionId=session)
        settings["CODEBEAKER_WARM_ENABLED"] = "false"
        with Server(binary, settings) as server, contextlib.closing(server.connect()) as connection:
            session = connection.call("session.create", language="data")[0]["sessionId"]
            run = lambda: connection.command(session, type="execute_code", code=DATA_CODE)[1]
            bench.row(DATA_ANEW, run, count=bench.sizes.seconds, spaced=False)


def wait_until_loaded(run):
    """Returns when a program finds pandas loaded."""
    until = time.monotonic() + LOAD_TIME_S
    while run(IS_LOADED)[0]["result"]["stdout"] != "True\n":
        if time.monotonic() > until:
            raise WireError(f"no interpreter had loaded pandas within {LOAD_TIME_S} s; is it in /usr/bin/python3 (package python3-pandas)?")
        time.sleep(0.5)


def checked(connection, prepared):
    """A prepared command that must succeed: CommandResult and seconds. The same frame, id included, is sent again each time:
    the reply to the one before has come by then."""
    result, took = connection.exchange(*prepared)
    if not result["success"]:
        raise WireError(f"{result.get('errorKind')}: {result.get('error')}")
    return result, took


def within(bench, name, call):
    """What the server itself says a command took (`durationMs`: from its queue to its answer), as the median of three."""
    try:
        durations = sorted(call()["durationMs"] for _ in range(3))
    except (WireError, KeyError) as error:
        say(f"      no figure: {error}")
        return
    bench.figure(name, f"{durations[1]} ms")


def measure_server(bench, binary, settings):
    """The part that needs the server; gives the walls that do not stand as designed."""
    with Server(binary, settings) as server:
        say(f"measuring {server.url}")
        with contextlib.closing(server.connect()) as connection:
            connection.call("initialize")
            wait_until_measured(connection)
            with contextlib.ExitStack() as stack:
                echo = lambda: stack.enter_context(contextlib.closing(floors.Echo(relay=False)))
                scenes.bursts(bench, connection, POOLED, "0.3 / 1", (floors.ECHO, echo))
            measure_sessions(bench, connection, WITH_POOL, None, None)
            scenes.sessions_of_many(bench, server, WITH_POOL)
            time.sleep(bench.sizes.settle_s)
            session, _ = open_session(connection)
            measure_commands(bench, connection, session["sessionId"])
            connection.call("session.close", sessionId=session["sessionId"])
            # Before the engines: their ready sandboxes take room of Python's in the pool.
            for scene in (scenes.ten_runs, scenes.crowd, scenes.stream_latency):
                scene(bench, server)
            engines.measure(bench, connection, beside=True)
            engines.tell(bench, connection)
            alone, _ = server.resident_mib()
            bench.figure("resident memory after the run: server", f"{alone:.1f} MiB")
        walls = session.get("enforcement", {}).get("walls", [])
        return [f"{wall['name']} ({wall['state']}: {wall['detail']})" for wall in walls if wall["state"] != "enforced"]


def measure_peers(bench):
    say("measuring what stands beside it")
    time.sleep(bench.sizes.settle_s)
    for name, make in [(BARE, peers.bare_true), (BARE_PYTHON, peers.bare_python), (BWRAP, peers.bubblewrap)]:
        try:
            run = make()
            if not bench.is_told(name):
                bench.row(name, run)
            # What the rates of sessions are to be compared with: as many at once as there are processors.
            at_once = os.cpu_count() or 1
            bench.figure(f"{name}, {at_once} at once", f"{peers.rate(run, at_once, bench.sizes.peers_s):,.0f} /s")
        except peers.NotThere as error:
            if not bench.is_told(name):
                bench.missing(name, str(error))
    engines.measure_bare(bench)
    floors.measure(bench)


def measure_docker(bench, options):
    """`docker exec` and `docker run` on the engine that answers; with --docker-engine on one of the bench's own, and the runtime Docker
    on it, by a server that is told of it. Gives what of that engine is left on the host."""
    if not options.docker_engine:
        containers.measure(bench)
        return []
    say("starting a Docker engine")
    own = dockerd.Engine()
    try:
        with own:
            containers.measure(bench, own)
            measure_containers(bench, options.server, own)
    except peers.NotThere as error:
        bench.missing(containers.TRUE, str(error))
    return own.left


def measure_containers(bench, binary, own):
    """Sessions of the runtime Docker on that engine, with those of the bench's containers gone."""
    try:
        with Server(binary, {DOCKER_KEY: own.socket}) as server, contextlib.closing(server.connect()) as connection:
            engines.measure(bench, connection, only=engines.DOCKER)
    except WireError as error:
        bench.missing(engines.first_result(engines.DOCKER), f"failed: {error}")


def compare(bench):
    """Ratios of p50 back to back, for the promises that are ratios."""
    for name, over, under, target in [
        ("`session.create` : bubblewrap", CREATE, BWRAP, "≤ 0.5"),
        ("`execute_shell` `true` : bare posix_spawn", TRUE, BARE, "≤ 2"),
        ("`docker exec` `true` : `execute_shell` `true`", containers.TRUE, TRUE, "≥ 40"),
        ("bare python3 : `execute_code` `print(1)`", BARE_PYTHON, CODE, "≥ 5 with a warm interpreter"),
        *engines.ratios(),
    ]:
        top, bottom = bench.p50(over), bench.p50(under)
        if top and bottom:
            bench.figure(name, f"{top / bottom:.2f}", target)


def commit():
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description="see scripts/bench --help")
    parser.add_argument("--server", required=True, metavar="BINARY")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "target" / "bench.json", metavar="FILE")
    parser.add_argument("--no-docs", action="store_true")
    parser.add_argument("--docker-engine", action="store_true")
    return parser.parse_args()


def main():
    options = arguments()
    # A polite end still ends the server and removes its directory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended by SIGTERM"))
    bench = Bench(Sizes(options.quick))
    host = report.host()
    host["load_before"] = f"{os.getloadavg()[0]:.2f}"
    throttled, stolen = report.throttled_periods(), report.stolen_share()
    weaker, lost = [], None
    try:
        measure_cold(bench, options.server)
        # What is measured on an engine of the bench's own is measured by a server of its own, so that the two do not disturb each other.
        weaker = measure_server(bench, options.server, {DOCKER_KEY: "off"} if options.docker_engine else {})
        measure_preloaded(bench, options.server)
    except (WireError, OSError) as error:
        lost = error
    measure_peers(bench)
    left = measure_docker(bench, options)
    compare(bench)
    after = report.throttled_periods()
    host["stolen"] = stolen()
    host["load_after"] = f"{os.getloadavg()[0]:.2f}"
    host["throttled_periods"] = "not told by this host" if None in (throttled, after) else after - throttled
    outcome = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "quick": options.quick,
        "host": host,
        "timings": bench.timings,
        "figures": bench.figures,
        "slower": report.slower(bench.timings, THERE),
        "weaker_walls": weaker,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    picture = plot.bars(bench.timings)
    options.json.with_suffix(".svg").write_text(picture, encoding="utf-8")
    say(f"figures: {options.json}, {options.json.with_suffix('.svg')}")
    block = report.markdown(outcome)
    print(block)
    if lost:
        sys.exit(f"error: the server could not be measured to the end: {lost}\nhint: `{options.server} doctor` tells what this host lacks")
    if left:
        sys.exit("error: left on this host: " + "; ".join(left))
    if not options.quick and not options.no_docs:
        PAGE.write_text(report.put_between_markers(PAGE.read_text(encoding="utf-8"), block), encoding="utf-8")
        PAGE.with_suffix(".svg").write_text(picture, encoding="utf-8")
        say(f"table: {PAGE.relative_to(ROOT)}, plot: {PAGE.with_suffix('.svg').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
