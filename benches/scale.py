#!/usr/bin/env python3
"""How cost grows with the number of sessions; see scripts/scale --help.

Sessions are made one after the other on one connection and stay idle. At each mark the last calls of `session.create`, one
`session.list` and one command in the oldest session are timed, the server's own sweeps for sessions past their time are read from its
metrics, and the host's available memory is compared with that at the start.
Then all are closed, and what is left on the host is counted. `--churn SECONDS` makes and closes sessions at full speed after that, on a few
connections at once.
"""

import argparse
import contextlib
import glob
import json
import os
import pathlib
import sys
import time
import urllib.parse
import urllib.request

import plot
import report
import scenes
from bench import Server, resident_kib, say

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKS = [10, 30, 100, 300, 1000, 3000, 10_000]
LAST = 100
SETTLE_S = 30
# Sweeps come each second, and some of them are waited for.
SWEEPS_S = 3.5


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


def swept(server):
    """Seconds of all sweeps so far, and how many there were."""
    address = urllib.parse.urlparse(server.url).netloc
    request = urllib.request.Request(f"http://{address}/metrics", headers={"Authorization": f"Bearer {server.token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        told = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line.startswith("codebeaker_sweep_seconds_"))
    return float(told["codebeaker_sweep_seconds_sum"]), int(told["codebeaker_sweep_seconds_count"])


def sweep_ms(server):
    """Of the sweeps within the next seconds, on average."""
    before = swept(server)
    time.sleep(SWEEPS_S)
    took, count = (now - then for now, then in zip(swept(server), before))
    return round(took / count * 1e3, 3)


def mark(connection, server, sessions, created, before):
    oldest = sessions[0]
    listing = sorted(timed(lambda: connection.call("session.list")) for _ in range(5))
    command = sorted(connection.command(oldest, type="execute_shell", commandName="true")[1] for _ in range(20))
    row = {
        "sessions": len(sessions),
        "create": report.figures(created[-LAST:]),
        "list_ms": round(listing[2], 2),
        "command_ms": round(command[10] * 1e3, 2),
        "sweep_ms": sweep_ms(server),
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


def measure(options):
    settings = {"CODEBEAKER_SESSION_SESSIONS_MAX": "0", "CODEBEAKER_RUNTIMES_MEASURE": "false", "CODEBEAKER_POOL_SANDBOXES_MAX": "0",
                "CODEBEAKER_SESSION_SWEEP_INTERVAL_S": "1"}
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
            outcome["churn_per_s"] = round(scenes.churn(server, scenes.MAKERS, options.churn, "bash"), 1)
            outcome["nothing_left_after_churn_s"] = settle(server, inits)
    return outcome


def left(after_s):
    return "something was left" if after_s is None else f"nothing was left {after_s} s later"


def table(outcome):
    """The block for docs/performance.md."""
    host = outcome["host"]
    lines = [
        f"Measured {outcome['date']} by `scripts/scale` on Linux {host['kernel']}, {host['cores']} cores, {host['memory_mib']} MiB of memory.",
        "",
        "| idle sessions | `session.create` p50 ms | p99 ms | `session.list` ms | a sweep, ms | a command, p50 ms | KiB of the host for each | server MiB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in outcome["rows"]:
        made = row["create"]
        cells = [report.milliseconds(value) for value in (made["p50_ms"], made["p99_ms"], row["list_ms"], row["sweep_ms"], row["command_ms"])]
        lines.append(f"| {row['sessions']} | {' | '.join(cells)} | {row['kib_per_session']} | {row['server_kib'] / 1024:.0f} |")
    lines += ["", f"All were closed one after another in {outcome['close_all_s']:.0f} s; {left(outcome['nothing_left_after_s'])}."]
    if "churn_per_s" in outcome:
        gone = left(outcome["nothing_left_after_churn_s"])
        lines.append(f"Made and closed without a pause after that, on {scenes.MAKERS} connections: {outcome['churn_per_s']:.0f} a second; {gone}.")
    return "\n".join(lines)


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
    options.json.with_suffix(".svg").write_text(plot.growth(outcome["rows"]), encoding="utf-8")
    print(table(outcome))
    say(f"figures: {options.json}, {options.json.with_suffix('.svg')}")
    if outcome["nothing_left_after_s"] is None or outcome.get("nothing_left_after_churn_s", 0) is None:
        sys.exit("error: something of the sessions is left on the host")


if __name__ == "__main__":
    main()
