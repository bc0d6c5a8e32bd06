"""JavaScript through each runtime that the server has, beside the bare engine. Used by `bench`.

Two samples a runtime. One is a new session and `console.log(1)` in it; its end is not in the time: what a client waits for until it
has a first result. The other is the same code in a session that stands. Beside both stands the same engine with the same file as a
plain process.
"""

import contextlib
import os
import pathlib
import tempfile

import peers
from wire import WireError

ENGINES = pathlib.Path(__file__).resolve().parent.parent / "target" / "engines"
CODE = "console.log(1)"
# What stands before the file on the bare command line of each program.
BARE = {"deno": ["run", "--quiet"], "bun": ["run"], "node": []}
# Runtime, the program that it is compared with, and the promise.
RUNTIMES = [("Deno", "deno", "≤ 1.3"), ("Bun", "bun", "≤ 2"), ("NodeJs", "node", None), ("V8Isolate", "deno", None)]


def variables():
    """Where the server finds engines that scripts/test has installed."""
    places = {"DENO": ENGINES / "deno", "BUN": ENGINES / "bun"}
    return {f"CODEBEAKER_RUNTIMES_{name}": str(place) for name, place in places.items() if place.is_file()}


def count(bench):
    """Each of these takes tens of milliseconds."""
    return bench.sizes.spaced * 4


def first_result(runtime):
    """Name of the row of a runtime."""
    return f"{runtime}: `session.create` and JavaScript `{CODE}`"


def in_session(runtime):
    """Name of its row in a session that stands."""
    return f"{runtime}: JavaScript `{CODE}` in a session that stands"


def bare(program):
    """Name of the row of a bare engine."""
    return f"bare `{program}` of the same file"


def measure(bench, connection):
    """The rows of every runtime that serves JavaScript, the main one with the image's Node among them."""
    rows = connection.call("runtime.list")[0]["runtimes"]
    for row in rows:
        runtime = row["type"]
        if not row["available"]:
            if any(runtime == compared for compared, *_ in RUNTIMES):
                bench.missing(first_result(runtime), f"not there: {row['reason']}")
        elif "javascript" in row["languages"]:
            bench.row(first_result(runtime), sample_of(connection, runtime), count=count(bench), spaced=False)
            measure_standing(bench, connection, runtime)


def measure_standing(bench, connection, runtime):
    """The row of one session that takes the same code again and again."""
    name = in_session(runtime)
    try:
        session, _ = connection.call("session.create", language="javascript", runtimeType=runtime)
    except WireError as error:
        bench.missing(name, f"failed: {error}")
        return
    with closed_after(connection, session):
        bench.row(name, code_of(connection, session), count=count(bench), spaced=False)


def code_of(connection, session):
    """Gives the seconds that the code takes in a session."""
    return lambda: connection.command(session["sessionId"], type="execute_code", code=CODE)[1]


@contextlib.contextmanager
def closed_after(connection, session):
    """Closes a session however the block ends."""
    try:
        yield
    finally:
        connection.call("session.close", sessionId=session["sessionId"])


def sample_of(connection, runtime):
    """Gives the seconds until the first result of a new session."""

    def once():
        session, made = connection.call("session.create", language="javascript", runtimeType=runtime)
        with closed_after(connection, session):
            return made + code_of(connection, session)()

    return once


def tell(bench, connection):
    """Start-up time and memory as `runtime.list` has them."""
    for row in connection.call("runtime.list")[0]["runtimes"]:
        features = row["capabilities"]
        if row["available"] and features["measured"]:
            text = f"{features['startupTimeMs']:.1f} ms, {features['memoryOverheadMB']:.0f} MiB"
            bench.figure(f"`runtime.list`: {row['type']}, start-up and memory", text)


def measure_bare(bench):
    """The engines as plain processes; their program is the project's own one line."""
    with tempfile.TemporaryDirectory(prefix="codebeaker-bench-") as directory:
        source = os.path.join(directory, "hello.js")
        pathlib.Path(source).write_text(CODE + "\n", encoding="utf-8")
        for program, before in BARE.items():
            own = ENGINES / program
            try:
                path = str(own) if own.is_file() else peers.path_of(program)
                line = [path, *before, source]
                bench.row(bare(program), lambda line=line: peers.spawn(*line), count=count(bench), spaced=False)
            except peers.NotThere as error:
                bench.missing(bare(program), str(error))


def ratios():
    """For the promises that are ratios: name, over, under, target."""
    return [
        (f"{name(runtime)} : bare `{program}`", name(runtime), bare(program), target)
        for runtime, program, target in RUNTIMES
        for name in (first_result, in_session)
    ]
