"""What stands beside the server in the same run: a bare program, bubblewrap, docker exec. Each gives seconds of one run."""

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

DOCKER_TIME_S = 10
SESSION_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NotThere(Exception):
    """A peer that this host does not have; the message is the cell of its row."""


def spawn(program, *arguments):
    """vfork + exec + wait of one program with its output thrown away (glibc's posix_spawn is a vfork)."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    started = time.perf_counter()
    try:
        pid = os.posix_spawn(program, [program, *arguments], os.environ, file_actions=actions)
    except OSError as error:
        raise NotThere(f"`{os.path.basename(program)}` could not be started: {error.strerror}") from error
    status = os.waitpid(pid, 0)[1]
    took = time.perf_counter() - started
    if status != 0:
        raise NotThere(f"`{os.path.basename(program)}` ended with status {os.waitstatus_to_exitcode(status)}")
    return took


def rate(run, at_once, seconds):
    """Runs a second, so many at a time."""
    started = time.perf_counter()
    until = started + seconds

    def one_after_the_other(_):
        count = 0
        while time.perf_counter() < until:
            run()
            count += 1
        return count

    with ThreadPoolExecutor(at_once) as pool:
        count = sum(pool.map(one_after_the_other, range(at_once)))
    return count / (time.perf_counter() - started)


def path_of(name):
    """Where a program is: first where a session would find it, so that both sides run the same one."""
    found = shutil.which(name, path=SESSION_PATH) or shutil.which(name)
    if not found:
        raise NotThere(f"not there: no `{name}` on this host")
    return found


def bare_true():
    program = path_of("true")
    return lambda: spawn(program)


def bare_python():
    program = path_of("python3")
    return lambda: spawn(program, "-c", "print(1)")


def bubblewrap():
    """All namespaces, the host's root read-only, new /proc and /dev."""
    program, true = path_of("bwrap"), path_of("true")
    arguments = ["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", true]
    return lambda: spawn(program, *arguments)


class DockerExec:
    """A container of an image that is already there, on the engine that answers, or on one of the bench's own; nothing is downloaded."""

    def __init__(self, own=None):
        self.own = own
        self.docker = [path_of("docker"), *(own.client if own else [])]
        # What each container is given.
        self.options = ["--network", "none", *(own.options if own else [])]
        if self._run("info", "--format", "{{.ServerVersion}}").returncode != 0:
            raise NotThere("not there: no Docker engine answers")
        images = self._run("image", "ls", "--quiet").stdout.split()
        if not images:
            raise NotThere("not there: the Docker engine has no image")
        self.container = None
        for image in images:
            made = self._run("run", "--detach", "--rm", *self.options, "--entrypoint", "sleep", image, "600")
            if made.returncode == 0:
                self.container, self.image = made.stdout.strip(), image
                return
        raise NotThere("not there: no image of the Docker engine has `sleep`")

    def _run(self, *arguments):
        try:
            return subprocess.run([*self.docker, *arguments], capture_output=True, text=True, timeout=DOCKER_TIME_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise NotThere(f"not there: the Docker engine did not answer in {DOCKER_TIME_S} s") from error

    def path_of(self, program):
        """Where a program that the host runs is in the container, if it is there."""
        return self.own.program(program) if self.own else program

    def copy(self, source, target):
        """Puts a file of the host into the container."""
        done = self._run("cp", source, f"{self.container}:{target}")
        if done.returncode != 0:
            raise NotThere(f"not there: no file can be copied into the container: {done.stderr.strip()}")

    def try_out(self, line):
        """Runs a command line once, so that the row of one that can't run says why."""
        done = self._run("exec", self.container, *line)
        if done.returncode != 0:
            raise NotThere(f"not there: the container can't run `{os.path.basename(line[0])}`")

    def exec(self, line):
        """Seconds of a command line in the container."""
        return spawn(*self.docker, "exec", self.container, *line)

    def run_true(self):
        """Seconds of a container of its own."""
        return spawn(*self.docker, "run", "--rm", *self.options, "--entrypoint", "true", self.image)

    def close(self):
        if self.container:
            self._run("rm", "--force", self.container)
