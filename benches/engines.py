"""One line of code through each runtime that the server has, beside the bare engine. Used by `bench`.

Two samples a runtime and language. One is a new session and the line in it; its end is not in the time: what a client waits for until
it has a first result. The other is the same line in a session that stands. Beside both stands the same engine with the same file as a
plain process.
"""

import contextlib
import os
import pathlib
import tempfile

import peers
from wire import WireError

ENGINES = pathlib.Path(__file__).resolve().parent.parent / "target" / "engines"
# What is run of each language, and the language's name in the rows.
CODE = {"javascript": "console.log(1)", "python": "print(1)"}
NAMES = {"javascript": "JavaScript", "python": "Python"}
# What stands before the file on the bare command line of each program.
BARE = {"deno": ["run", "--quiet"], "bun": ["run"], "node": []}
# Runtime, the program that it is compared with, and the promise.
RUNTIMES = [("Deno", "deno", "≤ 1.3"), ("Bun", "bun", "≤ 2"), ("NodeJs", "node", None), ("V8Isolate", "deno", None)]
DOCKER = "Docker"
# Languages that a runtime speaks only with an engine that may be missing: without it the row says so.
ENGINE_LANGUAGES = {"WebAssembly": ("javascript", "python")}


def variables():
    """Where the server finds engines that scripts/test has installed. What it compiles of the modules stays there, for the next run."""
    found = {"DENO": ENGINES / "deno", "BUN": ENGINES / "bun"}
    found = {name: place for name, place in found.items() if place.is_file()}
    if any(ENGINES.glob("*.wasm")):
        found["ENGINES_DIR"] = ENGINES
    return {f"CODEBEAKER_RUNTIMES_{name}": str(place) for name, place in found.items()}


def count(bench, runtime=None):
    """Each of these takes tens of milliseconds, a container several times that."""
    return bench.sizes.large if runtime == DOCKER else bench.sizes.spaced * 4


def first_result(runtime, language="javascript"):
    """Name of the row of a runtime."""
    return f"{runtime}: `session.create` and {NAMES[language]} `{CODE[language]}`"


def in_session(runtime, language="javascript"):
    """Name of its row in a session that stands."""
    return f"{runtime}: {NAMES[language]} `{CODE[language]}` in a session that stands"


def bare(program):
    """Name of the row of a bare engine."""
    return f"bare `{program}` of the same file"


def measure(bench, connection, only=None, beside=False):
    """The rows of every runtime, or of one: JavaScript for all of them, the main one with the image's Node among them, then Python. With
    `beside` the bare engine runs in turns with its runtime: a host that is slower in one minute than in the next is so for both."""
    rows = [row for row in connection.call("runtime.list")[0]["runtimes"] if only in (None, row["type"])]
    with source_file() as source:
        for language in CODE:
            for row in rows:
                program = next((program for runtime, program, _ in RUNTIMES if runtime == row["type"]), None)
                is_due = beside and language == "javascript" and program and not bench.is_told(bare(program))
                measure_runtime(bench, connection, row, language, (bare(program), bare_of(program, source)) if is_due else None)


def measure_runtime(bench, connection, row, language, beside):
    """The pair of rows of a runtime, or why they are missing; the first in turns with what is `beside` it."""
    runtime = row["type"]
    if not row["available"]:
        if language == "javascript" and any(runtime == compared for compared, *_ in RUNTIMES):
            bench.missing(first_result(runtime), f"not there: {row['reason']}")
    elif language in row["languages"]:
        sample = sample_of(connection, runtime, language)
        bench.row(first_result(runtime, language), sample, count=count(bench, runtime), spaced=False, beside=beside)
        measure_standing(bench, connection, runtime, language)
    elif language in ENGINE_LANGUAGES.get(runtime, ()):
        bench.missing(first_result(runtime, language), f"not there: `codebeaker engines install wasm-{language}` brings its engine")


def measure_standing(bench, connection, runtime, language):
    """The row of one session that takes the same code again and again."""
    name = in_session(runtime, language)
    try:
        session, _ = connection.call("session.create", language=language, runtimeType=runtime)
    except WireError as error:
        bench.missing(name, f"failed: {error}")
        return
    with closed_after(connection, session):
        bench.row(name, code_of(connection, session, language), count=count(bench, runtime), spaced=False)


def code_of(connection, session, language):
    """Gives the seconds that the code takes in a session."""
    return lambda: connection.command(session["sessionId"], type="execute_code", code=CODE[language])[1]


@contextlib.contextmanager
def closed_after(connection, session):
    """Closes a session however the block ends."""
    try:
        yield
    finally:
        connection.call("session.close", sessionId=session["sessionId"])


def sample_of(connection, runtime, language):
    """Gives the seconds until the first result of a new session."""

    def once():
        session, made = connection.call("session.create", language=language, runtimeType=runtime)
        with closed_after(connection, session):
            return made + code_of(connection, session, language)()

    return once


def tell(bench, connection):
    """Start-up time and memory as `runtime.list` has them."""
    for row in connection.call("runtime.list")[0]["runtimes"]:
        features = row["capabilities"]
        if row["available"] and features["measured"]:
            text = f"{features['startupTimeMs']:.1f} ms, {features['memoryOverheadMB']:.0f} MiB"
            bench.figure(f"`runtime.list`: {row['type']}, start-up and memory", text)


def measure_bare(bench):
    """Engines as plain processes, those that have no row yet."""
    with source_file() as source:
        for program in (program for program in BARE if not bench.is_told(bare(program))):
            try:
                bench.row(bare(program), bare_of(program, source)(), count=count(bench), spaced=False)
            except peers.NotThere as error:
                bench.missing(bare(program), str(error))


@contextlib.contextmanager
def source_file():
    """The project's own one line, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="codebeaker-bench-") as directory:
        source = os.path.join(directory, "hello.js")
        pathlib.Path(source).write_text(CODE["javascript"] + "\n", encoding="utf-8")
        yield source


def bare_of(program, source):
    """Makes what runs an engine as a plain process."""

    def make():
        own = ENGINES / program
        line = [str(own) if own.is_file() else peers.path_of(program), *BARE[program], source]
        return lambda: peers.spawn(*line)

    return make


def ratios():
    """For the promises that are ratios: name, over, under, target."""
    return [
        (f"{name(runtime)} : bare `{program}`", name(runtime), bare(program), target)
        for runtime, program, target in [*RUNTIMES, (DOCKER, "node", None)]
        for name in (first_result, in_session)
    ]
