"""What the host itself takes for the steps that no server can leave out, with no server there: a message to another process and back, one
more process on the way that writes a file, a process in namespaces of its own, a fork of an interpreter that has started. Used by `bench`.

All are a few lines of Python around the system calls, so a program in another language would be quicker by some microseconds of each step.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

ECHO = "bare: a request of 1 KiB to a process over loopback TCP, and back"
RELAY = "bare: the same by way of a second process, which replaces a file in memory"
NAMESPACES = "bare clone with seven namespaces, its end"
FORK = "bare fork of a started Python that runs `print(1)`, its end"
REQUEST, ANSWER = b"x" * 1200, b"y" * 250
FILE = b"x" * 1024
# clone(2), by arch/*/syscalls of Linux.
CLONE = {"x86_64": 56, "aarch64": 220}
# User, mount, pid, network, UTS, IPC and control group namespaces, as <linux/sched.h> has them.
NAMESPACE_FLAGS = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x04000000 | 0x08000000 | 0x02000000
PROGRAM = "print(1)"


class Echo:
    """Processes that stand where a server and, with `relay`, an init would stand. `close` ends them."""

    def __init__(self, relay):
        self.pids = []
        self.scratch = tempfile.mkdtemp(prefix="codebeaker-bench-", dir="/dev/shm")
        writer = None
        if relay:
            writer, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._fork(lambda: self._write_files(end), closing=[writer])
            end.close()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._fork(lambda: self._answer(listener, writer), closing=[])
            if writer:
                writer.close()
            self.socket = socket.create_connection(listener.getsockname())
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
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while receive(connection, len(REQUEST)):
                if writer:
                    writer.send(REQUEST)
                    writer.recv(64)
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
        self.socket.sendall(REQUEST)
        receive(self.socket, len(ANSWER))
        return time.perf_counter() - started

    def close(self):
        self.socket.close()
        for pid in self.pids:
            os.waitpid(pid, 0)
        for name in os.listdir(self.scratch):
            os.unlink(os.path.join(self.scratch, name))
        os.rmdir(self.scratch)


def receive(connection, count):
    """So many bytes; less at the end of the connection."""
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


def namespaces():
    """Gives the seconds from the clone to the end of the process, whose namespaces the kernel takes down later."""
    number = CLONE.get(os.uname().machine)
    if number is None:
        raise OSError(f"not measured on {os.uname().machine}")
    # Without letting go of the interpreter's lock, which the child could not take again.
    syscall = ctypes.PyDLL(None, use_errno=True).syscall

    def once():
        started = time.perf_counter()
        pid = syscall(number, NAMESPACE_FLAGS | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid < 0:
            raise OSError(os.strerror(ctypes.get_errno()))
        os.waitpid(pid, 0)
        return time.perf_counter() - started

    return once


def fork():
    """Gives the seconds of a fork that runs a program as an interpreter would that has started for it, and ends at once."""

    def once():
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            exec(compile(PROGRAM, "main.py", "exec"), {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        return time.perf_counter() - started

    return once


def rate(make, at_once, seconds):
    """Runs a second of so many processes that each do one after the other."""
    source, target = os.pipe()
    pids = []
    for _ in range(at_once):
        pid = os.fork()
        if pid == 0:
            count = 0
            try:
                run, until = make(), time.perf_counter() + seconds
                while time.perf_counter() < until:
                    run()
                    count += 1
            finally:
                os.write(target, count.to_bytes(8, "little"))
                os._exit(0)
        pids.append(pid)
    os.close(target)
    for pid in pids:
        os.waitpid(pid, 0)
    with open(source, "rb") as counts:
        data = counts.read()
    return sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)) / seconds


STEPS = {NAMESPACES: namespaces, FORK: fork}


def measure(bench):
    """The rows of what is no message, and how often it can be done with all processors; by a process that has nothing else in its memory,
    for a fork copies tables of all there is."""
    at_once = os.cpu_count() or 1
    for name in STEPS:
        bench.say(f"   {name}")
        line = [sys.executable, "-I", "-S", os.path.abspath(__file__), name, str(bench.sizes.small), str(at_once), str(bench.sizes.peers_s)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            bench.missing(name, f"not there: {(done.stderr.strip().splitlines() or ['it was ended'])[-1]}")
            continue
        samples, each_second = json.loads(done.stdout)
        bench.add(name, samples)
        bench.figure(f"{name}, {at_once} at once", f"{each_second:,.0f} /s")


def main():
    name, count, at_once, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    run = STEPS[name]()
    samples = [run() for _ in range(count)]
    print(json.dumps([samples, rate(STEPS[name], at_once, seconds)]))


if __name__ == "__main__":
    main()
