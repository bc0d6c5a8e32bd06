"""What the host itself takes for the steps that no server can leave out, with no server there: a message to another process and back, one
more process on the way that writes a file, a process in namespaces of its own, a fork of an interpreter that has started. Used by `bench`.

All are a few lines of Python around the system calls, so a program in another language would be quicker by some microseconds of each step.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time

import peers

ECHO = "bare: a request of 1 KiB to a process over loopback TCP, and back"
RELAY = "bare: that request of 1 KiB by way of a second process, which replaces a file in memory"
NAMESPACES = "bare clone with seven namespaces, its end"
FORK = "bare fork of a started Python that runs `print(1)`, its end"
STEPS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "steps.py")
REQUEST, ANSWER = b"x" * 1200, b"y" * 250
FILE = b"x" * 1024
# What none of them takes on a host that can be measured at all.
ANSWER_TIME_S = 10


class Echo:
    """Processes that stand where a server and, with `relay`, an init would stand. `close` ends them."""

    def __init__(self, relay):
        self.pids, self.socket, self.scratch = [], None, None
        try:
            self._start(relay)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise peers.NotThere(f"not there: {error}") from error
            raise

    def _start(self, relay):
        writer = None
        if relay:
            self.scratch = tempfile.mkdtemp(prefix="codebeaker-bench-", dir="/dev/shm")
            writer, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._fork(lambda: self._write_files(end), closing=[writer])
            end.close()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(ANSWER_TIME_S)
            self._fork(lambda: self._answer(listener, writer), closing=[])
            if writer:
                writer.close()
            self.socket = socket.create_connection(listener.getsockname(), timeout=ANSWER_TIME_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _fork(self, serve, closing):
        pid = os.fork()
        if pid:
            self.pids.append(pid)
            return
        try:
            for end in closing:
                end.close()
            serve()
        finally:
            os._exit(0)

    @staticmethod
    def _answer(listener, writer):
        with listener.accept()[0] as connection:
            listener.close()
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while receive(connection, len(REQUEST)):
                if writer:
                    writer.send(REQUEST)
                    if not writer.recv(64):
                        return
                connection.sendall(ANSWER)

    def _write_files(self, end):
        temporary, place = os.path.join(self.scratch, "new"), os.path.join(self.scratch, "file")
        while end.recv(4096):
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(file, FILE)
            os.close(file)
            os.rename(temporary, place)
            end.send(b"done")

    def __call__(self):
        """Seconds of one request."""
        started = time.perf_counter()
        try:
            self.socket.sendall(REQUEST)
            answer = receive(self.socket, len(ANSWER))
        except OSError as error:
            raise peers.NotThere(f"not there: {error}") from error
        if answer != ANSWER:
            raise peers.NotThere("not there: a process that answers has ended")
        return time.perf_counter() - started

    def close(self):
        if self.socket:
            self.socket.close()
        for pid in self.pids:
            os.waitpid(pid, 0)
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


def receive(connection, count):
    """So many bytes; less at the end of the connection."""
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


def measure(bench):
    """The rows of what is no message, and how often it can be done with all processors; by a process that has nothing else in its memory,
    for a fork copies tables of all there is."""
    at_once = os.cpu_count() or 1
    for name, step in [(NAMESPACES, "namespaces"), (FORK, "fork")]:
        bench.say(f"   {name}")
        try:
            line = [peers.path_of("python3"), "-I", "-S", STEPS, step, str(bench.sizes.small), str(at_once), str(bench.sizes.peers_s)]
        except peers.NotThere as error:
            bench.missing(name, str(error))
            continue
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            bench.missing(name, f"not there: {(done.stderr.strip().splitlines() or ['it was ended'])[-1]}")
            continue
        *samples, each_second = map(float, done.stdout.split())
        bench.add(name, samples)
        bench.figure(f"{name}, {at_once} at once", f"{each_second:,.0f} /s")
