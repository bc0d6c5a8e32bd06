"""The measuring of each runtime, against a connection that only counts: python3 -B -m unittest discover -s benches."""

import contextlib
import io
import os
import pathlib
import tempfile
import unittest
from unittest import mock

import bench
import engines
from wire import WireError


class FakeConnection:
    """A server with these rows in `runtime.list`, whose commands fail on the runtimes in `broken`."""

    def __init__(self, rows, broken=(), refused=()):
        self.rows, self.broken, self.refused = rows, broken, refused
        self.opened, self.closed, self.ran, self.languages = [], [], [], []

    def call(self, method, **parameters):
        if method == "runtime.list":
            return {"runtimes": self.rows}, 0.0
        if method == "session.create":
            if parameters["runtimeType"] in self.refused:
                raise WireError("1302: busy")
            self.opened.append(parameters["runtimeType"])
            self.languages.append(parameters["language"])
            return {"sessionId": f"{parameters['runtimeType']}-{len(self.opened)}"}, 0.010
        self.closed.append(parameters["sessionId"])
        return {}, 0.5

    def command(self, session, **fields):
        self.ran.append((session, fields["code"]))
        if session.split("-")[0] in self.broken:
            raise WireError("failed: nonzero_exit")
        return {}, 0.002


def available(runtime, languages=("javascript",)):
    features = {"measured": True, "startupTimeMs": 12.34, "memoryOverheadMB": 56.7}
    return {"type": runtime, "available": True, "languages": list(languages), "capabilities": features}


def absent(runtime):
    return {"type": runtime, "available": False, "reason": "there is none", "capabilities": {"measured": False}}


def measured(connection):
    rows = bench.Bench(bench.Sizes(quick=True))
    with contextlib.redirect_stderr(io.StringIO()):
        engines.measure(rows, connection)
    return rows


class Engines(unittest.TestCase):
    def test_each_runtime_has_a_row_for_new_sessions_and_one_for_a_session_that_stands(self):
        connection = FakeConnection([available("Deno"), absent("Bun"), absent("Docker")])
        rows = measured(connection)
        names = [row["name"] for row in rows.timings]
        self.assertEqual(names, [engines.first_result("Deno"), engines.in_session("Deno"), engines.first_result("Bun")])
        first, standing, missing = rows.timings
        self.assertAlmostEqual(first["back_to_back"]["p50_ms"], 12)
        self.assertAlmostEqual(standing["back_to_back"]["p50_ms"], 2)
        self.assertIn("there is none", missing["why"])
        sessions = [session for session, _ in connection.ran]
        self.assertGreater(sessions.count(sessions[-1]), 1, "one session took all of the second row's code")
        self.assertEqual(sessions.count(sessions[0]), 1, "each sample of the first row has a session of its own")

    def test_each_language_of_a_runtime_has_its_pair_of_rows_with_its_own_code(self):
        connection = FakeConnection([available("WebAssembly", ["javascript", "python", "wasm"])])
        names = [row["name"] for row in measured(connection).timings]
        pairs = [name("WebAssembly", language) for language in engines.CODE for name in (engines.first_result, engines.in_session)]
        self.assertEqual(names, pairs)
        self.assertEqual(set(connection.languages), set(engines.CODE))
        self.assertEqual({code for _, code in connection.ran}, set(engines.CODE.values()))

    def test_a_language_whose_engine_is_missing_says_what_brings_it(self):
        connection = FakeConnection([available("WebAssembly", ["wasm", "python"]), available("Deno")])
        told = {row["name"]: row.get("why") for row in measured(connection).timings}
        self.assertIn("engines install wasm-javascript", told[engines.first_result("WebAssembly")])
        self.assertIsNone(told[engines.first_result("WebAssembly", "python")])
        self.assertNotIn(engines.first_result("Deno", "python"), told, "Deno has no Python to be missing")

    def test_the_server_is_told_of_the_engines_that_lie_there_and_of_no_others(self):
        with tempfile.TemporaryDirectory() as directory, mock.patch.object(engines, "ENGINES", pathlib.Path(directory)):
            self.assertEqual(engines.variables(), {})
            pathlib.Path(directory, "bun").touch()
            self.assertEqual(set(engines.variables()), {"CODEBEAKER_RUNTIMES_BUN"})
            pathlib.Path(directory, "python.wasm").touch()
            self.assertEqual(engines.variables()["CODEBEAKER_RUNTIMES_ENGINES_DIR"], directory)

    def test_every_session_is_closed_also_when_its_code_fails(self):
        connection = FakeConnection([available("Deno"), available("Bun")], broken=("Deno",))
        rows = measured(connection)
        self.assertEqual(len(connection.opened), len(connection.closed))
        self.assertEqual(len(set(connection.closed)), len(connection.closed))
        told = {row["name"]: row.get("why") for row in rows.timings}
        self.assertIn("nonzero_exit", told[engines.first_result("Deno")])
        self.assertIn("nonzero_exit", told[engines.in_session("Deno")])
        self.assertIsNone(told[engines.in_session("Bun")])

    def test_a_runtime_that_gives_no_session_is_told_and_the_next_is_measured(self):
        rows = measured(FakeConnection([available("Deno"), available("Bun")], refused=("Deno",)))
        told = {row["name"]: row.get("why") for row in rows.timings}
        self.assertIn("1302", told[engines.in_session("Deno")])
        self.assertIsNone(told[engines.in_session("Bun")])

    def test_a_promise_compares_rows_that_are_measured(self):
        compared = {(over, under): target for _, over, under, target in engines.ratios()}
        for name in (engines.first_result, engines.in_session):
            self.assertEqual(compared[name("Deno"), engines.bare("deno")], "≤ 1.3")
            self.assertEqual(compared[name("Bun"), engines.bare("bun")], "≤ 2")
        self.assertEqual({under for _, under in compared}, {engines.bare(program) for program in engines.BARE})

    def test_the_bare_engine_runs_in_turns_with_its_runtime_and_is_measured_once(self):
        rows = bench.Bench(bench.Sizes(quick=True))
        lines = []
        with (
            contextlib.redirect_stderr(io.StringIO()),
            mock.patch.object(engines.peers, "path_of", lambda program: program),
            mock.patch.object(engines.peers, "spawn", lambda *line: lines.append(line) or 0.001),
        ):
            engines.measure(rows, FakeConnection([available("Deno"), available("V8Isolate"), available("Bun")]), beside=True)
            engines.measure_bare(rows)
        names = [row["name"] for row in rows.timings]
        self.assertEqual(names[:3], [engines.first_result("Deno"), engines.bare("deno"), engines.in_session("Deno")])
        self.assertEqual(sorted(names), sorted(set(names)))
        self.assertEqual(names[-1], engines.bare("node"), "what no runtime stands beside comes last")
        self.assertTrue(all(os.path.basename(line[0]) in engines.BARE for line in lines))

    def test_what_the_server_tells_of_a_runtime_is_a_figure(self):
        rows = bench.Bench(bench.Sizes(quick=True))
        engines.tell(rows, FakeConnection([available("V8Isolate"), absent("Bun")]))
        self.assertEqual([row["figure"] for row in rows.figures], ["12.3 ms, 57 MiB"])


if __name__ == "__main__":
    unittest.main()
