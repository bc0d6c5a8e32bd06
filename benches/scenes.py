"""What clients do, beside what one call costs: ten runs of an agent, eight sessions at once, how soon output is seen. Used by `bench`."""

import contextlib
import json
import selectors
import time

import report
from wire import WireError, result

PYTHON = "print(1)"
RUNS = 10
SESSIONS = 8
# Clients that make and close sessions at once.
MAKERS = 4
# Requests of one session that are under way together: enough that the server never waits for this client.
CODE_AT_ONCE, FILE_AT_ONCE = 4, 64
TICK_S = 0.02
# Writes the host's clock, which a sandbox shares, each tick.
TICKS = "import time\nfor _ in range({count}): print(time.time_ns(), flush=True); time.sleep({tick})"


class Burst:
    """Sessions one right after the other, as many as lie ready; before the next ones all are closed, and the pool has time to be filled again."""

    def __init__(self, connection, quiet_s):
        self.connection, self.quiet_s = connection, quiet_s
        self.sessions, self.made = [], 0

    def __call__(self):
        if len(self.sessions) == SESSIONS:
            self.close()
            time.sleep(self.quiet_s)
        session, took = self.connection.call("session.create", language="python")
        self.sessions.append(session["sessionId"])
        self.made += session["selection"]["sandbox"] != "pool"
        return took

    def close(self):
        for session in self.sessions:
            self.connection.call("session.close", sessionId=session)
        self.sessions.clear()


def bursts(bench, connection, name, target, beside):
    """What a session takes whose sandbox lies ready; those that had to be made nevertheless are counted."""
    burst = Burst(connection, bench.sizes.quiet_s)
    # The pool holds as many as were asked for at once lately.
    for _ in range(2 * SESSIONS + 1):
        burst()
    burst.made = 0
    bench.row(name, burst, target, beside=beside)
    burst.close()
    bench.figure(f"of these {name}, sandboxes that had to be made", str(burst.made))


def ten_runs(bench, server):
    """An agent's ten executions, in one session and in ten; the first session of each kind is thrown away."""
    bench.say("   ten executions, in one session and in ten")
    with contextlib.closing(server.connect()) as connection:
        count = max(3, bench.sizes.large)
        try:
            both = [best_of(scene, connection, count, bench.sizes.quiet_s) for scene in (reused, not_reused)]
        except WireError as error:
            bench.figure("ten executions of `print(1)`", f"failed: {error}")
            return
    once, anew = both
    bench.figure("ten executions of `print(1)` in a session that stands", f"{once:.1f} ms", "≤ 30 ms")
    bench.figure("the same with a session made and closed for each", f"{anew:.1f} ms")
    bench.figure("time that reusing the session saves", f"{100 * (1 - once / anew):.0f} %", "≥ 75 %")
    if bench.cold_runs_ms:
        saved = 100 * (1 - once / bench.cold_runs_ms)
        bench.figure("the same beside sessions without pool and warm interpreter", f"{saved:.0f} %", "≥ 75 %")


def ten_cold_runs(bench, connection):
    """Ten executions, a session made and closed for each, where nothing is ready before it is asked for."""
    bench.say("   ten executions in ten sessions")
    try:
        bench.cold_runs_ms = best_of(not_reused, connection, bench.sizes.seconds // 3, bench.sizes.quiet_s)
        bench.figure(f"ten executions of `{PYTHON}`, each in a session of its own, without pool and warm interpreter", f"{bench.cold_runs_ms:.1f} ms")
    except WireError as error:
        bench.figure("ten executions in ten sessions", f"failed: {error}")


def made_and_closed(connection):
    """A session, which is closed again; the seconds that it took to make it."""
    session, made = connection.call("session.create", language="python")
    connection.call("session.close", sessionId=session["sessionId"])
    return made


def best_of(scene, connection, count, quiet_s):
    """The median in ms of `count` scenes, with some quiet before each: an agent is no load test."""

    def quietly():
        time.sleep(quiet_s)
        return scene(connection)

    quietly()
    return report.figures([quietly() for _ in range(count)])["p50_ms"]


def reused(connection):
    """Seconds of ten runs in one session, which is there already."""
    session = connection.call("session.create", language="python")[0]["sessionId"]
    run = lambda: connection.command(session, type="execute_code", code=PYTHON)[1]
    run()
    took = sum(run() for _ in range(RUNS))
    connection.call("session.close", sessionId=session)
    return took


def not_reused(connection):
    """Seconds of ten times a session, its run and its end."""
    took = 0.0
    for _ in range(RUNS):
        made, create = connection.call("session.create", language="python")
        ran = connection.command(made["sessionId"], type="execute_code", code=PYTHON)[1]
        took += create + ran + connection.call("session.close", sessionId=made["sessionId"])[1]
    return took


def crowd(bench, server):
    """Calls a second of eight sessions together, each on a connection of its own."""
    for name, at_once, target, command in [
        ("warm Python calls, eight sessions", CODE_AT_ONCE, "≥ 1,500 /s", {"type": "execute_code", "code": PYTHON}),
        ("file commands (`write_file` of 1 KiB), eight sessions", FILE_AT_ONCE, "≥ 15,000 /s",
         {"type": "write_file", "path": "small.txt", "content": "x" * 1024}),
    ]:
        bench.say(f"   {name}")
        try:
            bench.figure(name, f"{rate(server, command, at_once, bench.sizes.steady_s, bench.sizes.quiet_s):,.0f} /s", target)
        except WireError as error:
            bench.figure(name, f"failed: {error}", target)


def rate(server, command, at_once, seconds, quiet_s):
    """Successful commands a second. Every connection has `at_once` requests under way; replies are read in turns. The quiet before is for
    what the sessions' making has left to be done: other ones are made ready in their place."""
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(SESSIONS):
            connection = stack.enter_context(contextlib.closing(server.connect()))
            session = connection.call("session.create", language="python")[0]["sessionId"]
            connection.command(session, **command)
            frames = [connection.prepare("session.execute", sessionId=session, command=command)[1] for _ in range(at_once)]
            pairs.append((connection, b"".join(frames)))
        time.sleep(quiet_s)
        done, began = 0, time.perf_counter()
        for connection, frames in pairs:
            connection.send(frames)
        while (over := time.perf_counter() - began) < seconds:
            for connection, frames in pairs:
                done += take(connection, at_once)
                connection.send(frames)
        for connection, _ in pairs:
            take(connection, at_once)
        return done / over


def sessions_of_many(bench, server, create, target="≥ 400 /s"):
    """Sessions made and closed a second by several clients together."""
    name = f"{create} + `session.close`, steady, {MAKERS} connections"
    bench.say(f"   {name}")
    try:
        bench.figure(name, f"{churn(server, MAKERS, bench.sizes.steady_s):.0f} /s", target)
    except WireError as error:
        bench.figure(name, f"failed: {error}", target)


def churn(server, clients, seconds, language="python"):
    """Sessions that were made and closed, a second. Each client has one request under way and sends the next when it has the reply."""
    with contextlib.ExitStack() as stack:
        waiting = selectors.DefaultSelector()
        began, made, under_way = time.perf_counter(), 0, 0

        def ask(connection, method, **params):
            request, ready_frame = connection.prepare(method, **params)
            connection.send(ready_frame)
            return method, request

        for _ in range(clients):
            connection = stack.enter_context(contextlib.closing(server.connect()))
            waiting.register(connection.socket, selectors.EVENT_READ, [connection, ask(connection, "session.create", language=language)])
            under_way += 1
        while under_way:
            for key, _ in waiting.select():
                connection, (method, request) = key.data
                reply = result(request, connection.message())
                if method == "session.create":
                    key.data[1] = ask(connection, "session.close", sessionId=reply["sessionId"])
                    continue
                made += 1
                if time.perf_counter() - began < seconds:
                    key.data[1] = ask(connection, "session.create", language=language)
                else:
                    waiting.unregister(connection.socket)
                    under_way -= 1
        return made / (time.perf_counter() - began)


def take(connection, count):
    """Reads `count` replies, each of which must tell success."""
    for _ in range(count):
        reply = connection.message()
        if b'"success":true' not in reply:
            raise WireError(f"a command of many failed: {reply[:200]!r}")
    return count


def stream_latency(bench, server):
    """From a program's write to the frame in the client's hands; both read the same clock."""
    name = "`session.stream`: from a write to its frame"
    bench.say(f"   {name}")
    with contextlib.closing(server.connect()) as connection:
        session = connection.call("session.create", language="python")[0]["sessionId"]
        code = TICKS.format(count=bench.sizes.small, tick=TICK_S)
        try:
            _, frame = connection.prepare("session.stream", sessionId=session, command={"type": "execute_code", "code": code})
            connection.send(frame)
            samples = list(delays(connection))
        except WireError as error:
            bench.missing(name, f"failed: {error}")
            return
        connection.call("session.close", sessionId=session)
    bench.timings.append({"name": name, "target": "1 / –", "spaced": report.figures(samples)})


def delays(connection):
    """Seconds of each event of standard output until the program has ended."""
    while True:
        message = json.loads(connection.message())
        now = time.time_ns()
        if "error" in message:
            raise WireError(str(message["error"]))
        event = message.get("params", {}).get("result", {})
        # A line's end may come as an event of its own.
        if event.get("type") == "stdout" and event["data"].strip():
            yield (now - int(event["data"].split()[-1])) / 1e9
        elif event.get("type") == "exited":
            return
