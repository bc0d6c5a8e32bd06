"""JavaScript through each runtime that the server has, beside the bare engine. Used by `bench`.

A sample is a new session, `console.log(1)` in it, and its end is not in the time: what a client waits for until it has a first
result. Beside it stands the same engine with the same file as a plain process.
"""

import os
import pathlib
import tempfile

import peers

ENGINES = pathlib.Path(__file__).resolve().parent.parent / "target" / "engines"
CODE = "console.log(1)"
# Runtime, its program, what stands before the file on its bare command line, and the promise.
RUNTIMES = [
    ("Deno", "deno", ["run", "--quiet"], "≤ 1.3"),
    ("Bun", "bun", ["run"], "≤ 2"),
    ("NodeJs", "node", [], None),
]


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


def bare(program):
    """Name of the row of a bare engine."""
    return f"bare `{program}` of the same file"


def measure(bench, connection):
    """The rows of every runtime that serves JavaScript, the main one with the image's Node among them."""
    rows = connection.call("runtime.list")[0]["runtimes"]
    for row in rows:
        name = first_result(row["type"])
        if not row["available"]:
            if any(row["type"] == runtime for runtime, *_ in RUNTIMES):
                bench.missing(name, f"not there: {row['reason']}")
        elif "javascript" in row["languages"]:
            bench.row(name, sample_of(connection, row["type"]), count=count(bench), spaced=False)


def sample_of(connection, runtime):
    """Gives the seconds until the first result of a new session."""

    def once():
        session, made = connection.call("session.create", language="javascript", runtimeType=runtime)
        try:
            ran = connection.command(session["sessionId"], type="execute_code", code=CODE)[1]
        finally:
            connection.call("session.close", sessionId=session["sessionId"])
        return made + ran

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
        for _, program, before, _ in RUNTIMES:
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
        (f"{runtime}, create and first result : bare `{program}`", first_result(runtime), bare(program), target)
        for runtime, program, _, target in RUNTIMES
    ]
