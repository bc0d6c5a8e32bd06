"""The parts of the benchmark that need no server of ours: python3 -B -m unittest discover -s benches."""

import collections
import contextlib
import io
import json
import os
import signal
import socket
import struct
import threading
import time
import unittest
import xml.etree.ElementTree

import bench
import floors
import peers
import plot
import report
import scale
import scenes
import steps
import wire


class FakeServer:
    """Answers every request with `{"success": true, "length": bytes of the request}`, the first one after a ping."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self.listener.getsockname()[1]}"
        self.pongs = 0
        self.asked = collections.Counter()
        threading.Thread(target=self._accept, daemon=True).start()

    def connect(self):
        return wire.Connection(self.url, "token")

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self.listener.accept()[:1], daemon=True).start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as stream:
            while stream.readline().strip():
                pass
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
            first = True
            while payload := self._receive(stream):
                request = json.loads(payload)
                self.asked[request["method"]] += 1
                reply = {"jsonrpc": "2.0", "id": request["id"], "result": {"success": True, "length": len(payload), "sessionId": "one"}}
                if request["method"] == "refuse":
                    reply = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": 1001, "message": "no such session"}}
                if first:
                    connection.sendall(b"\x89\x02hi")
                    first = False
                self._send(connection, json.dumps(reply).encode())

    @staticmethod
    def _send(connection, payload):
        """In two fragments, as a server may."""
        half = len(payload) // 2
        for opcode, part in ((0x01, payload[:half]), (0x80, payload[half:])):
            connection.sendall(struct.pack("!BBH", opcode, 126, len(part)) + part)

    def _receive(self, stream):
        while True:
            header = stream.read(2)
            if len(header) < 2:
                return None
            length = header[1] & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", stream.read(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", stream.read(8))
            mask, payload = stream.read(4), stream.read(length)
            assert header[1] & 0x80 and mask == wire.ZERO_MASK
            if header[0] & 0x0F == wire.PONG:
                self.pongs += 1
                continue
            return payload


class Wire(unittest.TestCase):
    def setUp(self):
        self.server = FakeServer()
        self.connection = self.server.connect()

    def tearDown(self):
        self.connection.close()
        self.server.listener.close()

    def test_calls_of_every_frame_length_are_answered_and_pings_too(self):
        for size in (0, 200, 70_000, 8 << 20):
            result, took = self.connection.call("echo", data="x" * size)
            self.assertGreater(result["length"], size)
            self.assertGreater(took, 0)
        self.assertEqual(self.server.pongs, 1)

    def test_an_error_is_raised_and_the_connection_lives_on(self):
        with self.assertRaisesRegex(wire.WireError, "1001"):
            self.connection.call("refuse")
        self.assertTrue(self.connection.call("echo")[0]["success"])

    def test_every_session_that_several_clients_make_is_closed_and_counted(self):
        began = time.perf_counter()
        rate = scenes.churn(self.server, 3, 0.1)
        took = time.perf_counter() - began
        made = self.server.asked["session.create"]
        self.assertGreaterEqual(made, 3)
        self.assertEqual(self.server.asked["session.close"], made)
        self.assertGreaterEqual(rate, made / took)

    def test_a_row_that_fails_keeps_its_reason(self):
        measured = bench.Bench(bench.Sizes(quick=True))
        measured.row("good", lambda: self.connection.call("echo")[1], count=5, spaced=False)
        measured.row("bad", lambda: self.connection.call("refuse")[1], count=5, spaced=False)
        self.assertEqual(measured.timings[0]["back_to_back"]["n"], 5)
        self.assertIn("1001", measured.timings[1]["why"])

    def test_what_stands_beside_an_operation_has_its_turn_with_it_and_a_row_of_its_own(self):
        order = []
        self.assertEqual([len(samples) for samples in bench.in_turns([lambda: order.append("a"), lambda: order.append("b")], 50)], [50, 50])
        self.assertEqual("".join(order), ("a" * bench.TURN + "b" * bench.TURN) * 2 + "a" * 10 + "b" * 10)

        def absent():
            raise peers.NotThere("not there: no `peer`")

        measured = bench.Bench(bench.Sizes(quick=True))
        measured.row("ours", lambda: 0.002, count=5, spaced=False, beside=("theirs", lambda: lambda: 0.004))
        measured.row("alone", lambda: 0.002, count=5, spaced=False, beside=("nobody", absent))
        self.assertEqual([measured.p50(name) for name in ("ours", "theirs", "alone", "nobody")], [2, 4, 2, None])
        self.assertTrue(measured.is_told("nobody"))
        tries = iter(range(3))

        def soon_gone():
            if next(tries, None) is None:
                raise peers.NotThere("it is gone")
            return 0.004

        measured.row("kept", lambda: 0.002, count=5, spaced=False, beside=("gone", lambda: soon_gone))
        told = {row["name"]: row for row in measured.timings}
        self.assertEqual(told["kept"]["back_to_back"]["n"], 5)
        self.assertIn("it is gone", told["gone"]["why"])
        self.assertIsNone(measured.p50("gone"))
        self.assertEqual(len([row for row in measured.timings if row["name"] == "kept"]), 1)


class Report(unittest.TestCase):
    def test_percentiles_are_nearest_rank(self):
        samples = list(range(1, 201))
        self.assertEqual(report.percentile(samples, 0.50), 100)
        self.assertEqual(report.percentile(samples, 0.99), 198)
        self.assertEqual(report.percentile([7], 0.99), 7)

    def test_milliseconds_have_three_digits(self):
        self.assertEqual([report.milliseconds(value) for value in (0.0831, 1.2345, 67.21, 222.4, None)], ["0.083", "1.23", "67.2", "222", "–"])

    def test_the_table_goes_between_the_markers_and_nowhere_else(self):
        page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
        self.assertEqual(report.put_between_markers(page, "new"), f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n")
        with self.assertRaises(ValueError):
            report.put_between_markers("no markers", "new")

    def test_a_plot_has_a_bar_for_each_row_that_was_measured_and_its_axis_holds_every_value(self):
        measured = report.figures([0.0005, 0.02])
        rows = [
            {"name": "`a` & b", "back_to_back": measured, "spaced": None},
            {"name": "bare c", "spaced": measured},
            {"name": "d", "why": "no engine"},
        ]
        drawn = xml.etree.ElementTree.fromstring(plot.bars(rows))
        bars = [element for element in drawn if element.get("height") == "12"]
        self.assertEqual([bar.get("fill") for bar in bars], [plot.OURS, plot.PEER])
        self.assertGreater(float(bars[0].get("width")), 1)
        ends = [float(element.get("x2")) for element in drawn if element.get("stroke-width") == "2"]
        self.assertTrue(all(plot.BARS <= end <= plot.BARS_END for end in ends), ends)
        self.assertIn("nothing was measured", plot.bars([rows[2]]))

    def test_growth_is_drawn_and_listed_for_every_mark(self):
        row = {"create": report.figures([0.002]), "list_ms": 0.0, "sweep_ms": 0.1, "command_ms": 1.2, "kib_per_session": 600, "server_kib": 20480}
        rows = [{"sessions": count, **row} for count in (10, 30, 100)]
        drawn = xml.etree.ElementTree.fromstring(plot.growth(rows))
        lines = [element.get("points").split() for element in drawn if element.get("points")]
        self.assertEqual([len(points) for points in lines], [3, 3, 3, 3])
        host = {"kernel": "6.1", "cores": 2, "memory_mib": 1024}
        outcome = {"date": "today", "host": host, "rows": rows, "close_all_s": 1.0, "nothing_left_after_s": None}
        table = scale.table(outcome)
        self.assertEqual(table.count("| 600 | 20 |"), 3)
        self.assertIn("something was left", table)

    def test_promises_are_told_as_they_would_be_on_this_host(self):
        timings = [
            {"name": "bare", "back_to_back": report.figures([0.020])},
            {"name": "other", "back_to_back": report.figures([0.009])},
            {"name": "made", "target": "2.5 / 6 (+ 7 where v1 has the controllers)", "back_to_back": report.figures([0.004])},
            {"name": "large", "target": "60 / –", "spaced": report.figures([0.030])},
            {"name": "failed", "target": "1 / 2", "why": "failed"},
        ]
        figures = [{"name": "rate", "figure": "700 /s", "target": "≥ 1,500 /s"}, {"name": "ratio", "figure": "0.7", "target": "≤ 0.5"}]
        factor, each = report.slower(timings, {"bare": 10, "other": 3, "absent": 1})
        self.assertEqual((factor, each), (2.5, {"bare": 2, "other": 3}))
        self.assertIsNone(report.slower(timings, {"absent": 1}))
        with_v1 = report.promises_here(timings, figures, 2.0, True)[2:]
        self.assertEqual(with_v1, [
            "| made | 4.00 / 4.00 | 9.50 / 13.0 | 12.0 / 19.0 ms |",
            "| large | 30.0 | 60.0 | 120 ms |",
            "| rate | 700 /s | ≥ 1,500 /s | 750 /s |",
        ])
        self.assertIn("| made | 4.00 / 4.00 | 2.50 / 6.00 | 5.00 / 12.0 ms |", report.promises_here(timings, figures, 2.0, False))

    def test_every_row_of_the_page_has_as_many_cells_as_its_header(self):
        figures = report.figures([0.001, 0.002])
        outcome = {
            "date": "2000-01-01", "commit": "none", "quick": True, "weaker_walls": [],
            "host": {**report.host(), "load_before": "0", "load_after": "0", "throttled_periods": 0, "stolen": report.stolen_share()()},
            "timings": [{"name": "a", "back_to_back": figures}, {"name": "b", "why": "not there"}],
            "figures": [{"name": "c", "figure": "1"}],
        }
        rows = [line for line in report.markdown(outcome).splitlines() if line.startswith("|")]
        self.assertEqual({line.count("|") for line in rows}, {9, 4})


class Peers(unittest.TestCase):
    def test_a_bare_program_is_timed_and_a_failing_one_is_told(self):
        self.assertGreater(peers.bare_true()(), 0)
        begun = time.perf_counter()
        self.assertGreater(peers.rate(peers.bare_true(), 2, 0.2), 0)
        self.assertGreaterEqual(time.perf_counter() - begun, 0.2)
        with self.assertRaises(peers.NotThere):
            peers.rate(lambda: peers.spawn(peers.path_of("false")), 2, 0.2)
        with self.assertRaises(peers.NotThere):
            peers.spawn(peers.path_of("false"))
        with self.assertRaises(peers.NotThere):
            peers.path_of("no-such-program-" + str(os.getpid()))


class Floors(unittest.TestCase):
    def test_processes_that_answer_are_timed_and_leave_nothing(self):
        for relay in (False, True):
            with contextlib.closing(floors.Echo(relay)) as echo:
                self.assertGreater(min(echo() for _ in range(5)), 0)
                if relay:
                    self.assertEqual(os.path.getsize(os.path.join(echo.scratch, "file")), len(floors.FILE))
                    self.assertEqual(os.listdir(echo.scratch), ["file"])
            self.assertFalse(relay and os.path.exists(echo.scratch))
            with self.assertRaises(ChildProcessError):
                os.waitpid(echo.pids[0], 0)

    def test_a_process_that_has_ended_gives_no_sample(self):
        with contextlib.closing(floors.Echo(True)) as echo:
            os.kill(echo.pids[0], signal.SIGKILL)
            with self.assertRaises(peers.NotThere):
                echo()

    def test_forks_are_timed_and_counted(self):
        self.assertGreater(steps.fork()(), 0)
        self.assertGreater(steps.rate(steps.fork, 2, 0.2), 0)

        def failing():
            raise OSError("no room")

        with self.assertRaises(OSError), contextlib.redirect_stderr(io.StringIO()):
            steps.rate(failing, 1, 0.1)

    def test_a_process_of_namespaces_of_its_own_is_timed_or_its_absence_told(self):
        measured = bench.Bench(bench.Sizes(quick=True))
        with contextlib.redirect_stderr(io.StringIO()):
            floors.measure(measured)
        told = {row["name"]: row for row in measured.timings}
        self.assertEqual(set(told), {floors.NAMESPACES, floors.FORK})
        self.assertTrue("back_to_back" in told[floors.NAMESPACES] or "not there" in told[floors.NAMESPACES].get("why", ""))


class Server(unittest.TestCase):
    def test_a_binary_that_is_no_server_is_told_and_its_directory_removed(self):
        server = bench.Server(peers.path_of("false"))
        with self.assertRaisesRegex(wire.WireError, "before it listened"), server:
            pass
        self.assertFalse(os.path.exists(server.state))


if __name__ == "__main__":
    unittest.main()
