"""What a Docker engine takes for the same: `docker exec` in a container that stands, and `docker run`. Used by `bench`."""

import contextlib
import os
import pathlib
import tempfile

import engines
import peers

RUNS = 10
TRUE = "`docker exec` `true`"
PYTHON = "`docker exec` `python3 -c 'print(1)'`"
TEN_RUNS, TEN_EXECS = "ten times `docker run --rm` of `true`", "ten times `docker exec` of `true`"


def of_file(program):
    """Name of the row of an engine in a container."""
    return f"`docker exec` `{program}` of the same file"


def measure(bench, own=None):
    """The rows and figures; `own` is the engine that the bench started, else one that answers on this host is taken."""
    try:
        with contextlib.closing(peers.DockerExec(own)) as docker:
            row(bench, TRUE, docker, ["true"])
            row(bench, PYTHON, docker, ["python3", "-c", engines.CODE["python"]])
            measure_javascript(bench, docker)
            ten_times(bench, docker)
    except peers.NotThere as error:
        bench.missing(TRUE, str(error))
        bench.figure(TEN_RUNS, str(error))


def row(bench, name, docker, line):
    """One program of the container."""
    try:
        docker.try_out(line)
        bench.row(name, lambda: docker.exec(line), count=bench.sizes.large, spaced=False)
    except peers.NotThere as error:
        bench.missing(name, str(error))


def measure_javascript(bench, docker):
    """The engines that are measured bare, on the same file; a container that has none of them says so."""
    with tempfile.TemporaryDirectory(prefix="codebeaker-bench-") as directory:
        source = os.path.join(directory, "hello.js")
        pathlib.Path(source).write_text(engines.CODE["javascript"] + "\n", encoding="utf-8")
        docker.copy(source, "/hello.js")
    for program, before in engines.BARE.items():
        row(bench, of_file(program), docker, [docker.path_of(program), *before, "/hello.js"])


def ten_times(bench, docker):
    """Ten times `docker run`, as an agent without sessions does it; nothing is downloaded."""
    bench.say("   docker run, ten times")
    bench.figure(TEN_RUNS, f"{sum(docker.run_true() for _ in range(RUNS)) * 1e3:.0f} ms")
    bench.figure(TEN_EXECS, f"{sum(docker.exec(['true']) for _ in range(RUNS)) * 1e3:.0f} ms")
