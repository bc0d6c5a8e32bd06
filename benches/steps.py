"""A fork, or a process in namespaces of its own, timed by a process that has next to nothing in its memory: a fork copies tables of all there is.

    python3 -I -S steps.py fork|namespaces COUNT AT_ONCE SECONDS

prints the seconds of each, one after the other, and on the last line how many a second so many processes do. Used by `floors`.
"""

import os
import sys
import time

# clone(2), by arch/*/syscalls of Linux.
CLONE = {"x86_64": 56, "aarch64": 220}
# User, mount, pid, network, UTS, IPC and control group namespaces, as <linux/sched.h> has them.
NAMESPACE_FLAGS = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x04000000 | 0x08000000 | 0x02000000
SIGCHLD = 17
PROGRAM = "print(1)"


def namespaces():
    """Gives the seconds from the clone to the end of the process, whose namespaces the kernel takes down later."""
    import ctypes

    number = CLONE.get(os.uname().machine)
    if number is None:
        raise OSError(f"not measured on {os.uname().machine}")
    # Without letting go of the interpreter's lock, which the child could not take again.
    syscall = ctypes.PyDLL(None, use_errno=True).syscall

    def once():
        started = time.perf_counter()
        pid = syscall(number, NAMESPACE_FLAGS | SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid < 0:
            raise OSError(os.strerror(ctypes.get_errno()))
        ended_well(pid)
        return time.perf_counter() - started

    return once


def fork():
    """Gives the seconds of a fork that runs a program as an interpreter would that has started for it, and ends at once."""

    def once():
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                exec(compile(PROGRAM, "main.py", "exec"), {"__name__": "__main__"})
                sys.stdout.flush()
                os._exit(0)
            finally:
                os._exit(1)
        ended_well(pid)
        return time.perf_counter() - started

    return once


def ended_well(pid):
    """Waits for a child; one that failed is no sample."""
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError("a process that was measured failed")


def rate(make, at_once, seconds):
    """Runs a second of so many processes that each do one after the other."""
    source, target = os.pipe()
    pids = []
    for _ in range(at_once):
        pid = os.fork()
        if pid == 0:
            try:
                count, run, until = 0, make(), time.perf_counter() + seconds
                while time.perf_counter() < until:
                    run()
                    count += 1
                os.write(target, count.to_bytes(8, "little"))
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    os.close(target)
    with open(source, "rb") as counts:
        data = counts.read()
    for pid in pids:
        ended_well(pid)
    return sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)) / seconds


def main():
    make = {"fork": fork, "namespaces": namespaces}[sys.argv[1]]
    run = make()
    for _ in range(int(sys.argv[2])):
        print(run())
    print(rate(make, int(sys.argv[3]), float(sys.argv[4])))


if __name__ == "__main__":
    main()
