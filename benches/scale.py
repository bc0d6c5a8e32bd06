#!/usr/bin/env python3
"""How cost grows with the number of sessions; see scripts/scale --help.

Sessions are made one after the other on one connection and stay idle. At each mark the last calls of `session.create`, one
`session.list` and one command in the oldest session are timed, and the host's available memory is compared with that at the start.
Then all are closed, and what is left on the host is counted. `--churn SECONDS` makes and closes sessions at full speed after that.
"""

import argparse
import contextlib
import glob
import json
import os
import pathlib
import sys
import time

import report
from bench import Server, resident_kib, say

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKS = [10, 30, 100, 300, 1000, 3000, 10_000]
LAST = 100
SETTLE_S = 30


def available_kib():
    return int(report.first_match("/proc/meminfo", r"^MemAvailable:\s+(\d+)", "0"))


def groups(server):
    """Groups of the server's sessions, in every hierarchy."""
    below = glob.glob(f"/sys/fs/cgroup/**/codebeaker-*-{server}-*/env_*", recursive=True)
    return sum(os.path.isdir(path) for path in below)


def processes():
    """Inits of sandboxes on this host."""
    names = (report.first_match(path, r"(.*)", "") for path in glob.glob("/proc/[0-9]*/comm"))
    return sum(name == "init" for name in names)


def timed(call):
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def mark(connection, server, sessions, created, before):
    oldest = sessions[0]
    listing = sorted(timed(lambda: connection.call("session.list")) for _ in range(5))
    command = sorted(connection.command(oldest, type="execute_shell", commandName="true")[1] for _ in range(20))
    row = {
        "sessions": len(sessions),
        "create": report.figures(created[-LAST:]),
        "list_ms": round(listing[2], 2),
        "command_ms": round(command[10] * 1e3, 2),
        "kib_per_session": round((before - available_kib()) / len(sessions)),
        "server_kib": resident_kib(server.process.pid),
    }
    say(f"   {row}")
    return row


def close_all(connection, sessions):
    begin = time.perf_counter()
    for session in sessions:
        connection.call("session.close", sessionId=session)
    return time.perf_counter() - begin


def settle(server, inits):
    """Seconds until nothing of a session is left on the host; none when something stays."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < SETTLE_S:
        if groups(server.process.pid) == 0 and processes() <= inits:
            return round(time.perf_counter() - begin, 2)
        time.sleep(0.1)
    return None


def churn(connection, seconds):
    begin, made = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        session, _ = connection.call("session.create", language="bash")
        connection.call("session.close", sessionId=session["sessionId"])
        made += 1
    return round(made / (time.perf_counter() - begin), 1)


def measure(options):
    settings = {"CODEBEAKER_SESSION_SESSIONS_MAX": "0", "CODEBEAKER_RUNTIMES_MEASURE": "false", "CODEBEAKER_POOL_SANDBOXES_MAX": "0"}
    os.environ.update(settings)
    inits = processes()
    with Server(options.server) as server, contextlib.closing(server.connect()) as connection:
        before, sessions, created, rows = available_kib(), [], [], []
        for goal in [goal for goal in MARKS if goal < options.sessions] + [options.sessions]:
            while len(sessions) < goal:
                session, took = connection.call("session.create", language="bash")
                sessions.append(session["sessionId"])
                created.append(took)
            rows.append(mark(connection, server, sessions, created, before))
        outcome = {"rows": rows, "close_all_s": round(close_all(connection, sessions), 2)}
        outcome["nothing_left_after_s"] = settle(server, inits)
        if options.churn:
            outcome["churn_per_s"] = churn(connection, options.churn)
            outcome["nothing_left_after_churn_s"] = settle(server, inits)
    return outcome


def plot(rows):
    """An SVG of p50 of `session.create` and of `session.list` over the number of sessions, both axes logarithmic."""
    import math

    width, height, edge = 640, 320, 50
    xs = [math.log10(row["sessions"]) for row in rows]
    series = {"session.create p50": [row["create"]["p50_ms"] for row in rows], "session.list": [row["list_ms"] for row in rows]}
    values = [math.log10(max(value, 0.01)) for line in series.values() for value in line]
    low, high = math.floor(min(values)), math.ceil(max(values))

    def place(x, value):
        across = (x - xs[0]) / max(xs[-1] - xs[0], 1e-9)
        up = (math.log10(max(value, 0.01)) - low) / max(high - low, 1)
        return f"{edge + across * (width - 2 * edge):.1f},{height - edge - up * (height - 2 * edge):.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    for power in range(low, high + 1):
        y = place(xs[0], 10**power).split(",")[1]
        parts.append(f'<line x1="{edge}" x2="{width - edge}" y1="{y}" y2="{y}" stroke="#ccc"/><text x="4" y="{y}">{10**power:g} ms</text>')
    for x, row in zip(xs, rows):
        across = place(x, 10**low).split(",")[0]
        parts.append(f'<text x="{across}" y="{height - edge + 18}" text-anchor="middle">{row["sessions"]}</text>')
    for (name, line), colour in zip(series.items(), ["#06c", "#c60"]):
        points = " ".join(place(x, value) for x, value in zip(xs, line))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - edge - 130}" y="{20 if colour == "#06c" else 36}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(prog="scripts/scale", description="see scripts/scale --help")
    parser.add_argument("--server", required=True, metavar="BINARY")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--churn", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "target" / "scale.json", metavar="FILE")
    options = parser.parse_args()
    outcome = {"date": time.strftime("%Y-%m-%d"), "host": report.host(), **measure(options)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    options.json.with_suffix(".svg").write_text(plot(outcome["rows"]), encoding="utf-8")
    print(json.dumps({name: value for name, value in outcome.items() if name != "host"}, indent=2))
    say(f"figures: {options.json}, {options.json.with_suffix('.svg')}")
    if outcome["nothing_left_after_s"] is None or outcome.get("nothing_left_after_churn_s", 0) is None:
        sys.exit("error: something of the sessions is left on the host")


if __name__ == "__main__":
    main()
