"""A Docker engine of the bench's own, and an image for it that is made here. Used by `bench --docker-engine`.

The engine stands in pid and mount namespaces of its own, in a scratch directory, with neither bridge nor rules of a firewall. Its first
process dies with this one, and with that process every daemon, shim and container; its mounts are those of its namespace. Leaving the
block removes what else there is: its control groups, by name, and the directory. Whoever kills the bench by SIGKILL has those two left.
"""

import contextlib
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

import engines
import peers

LISTEN_TIME_S = 40
END_TIME_S = 15
CALL_TIME_S = 30
IMAGE = "codebeaker-bench"
GROUPS = "/sys/fs/cgroup"
# Where a container finds the engines that the host runs bare.
ENGINES_INSIDE = "/engines"
# Its own /run hides a containerd of the host, which the daemon would take for its own. Bash takes the ends of what is left to it.
FIRST_PROCESS = "mount -t tmpfs tmpfs /run && echo ready && while :; do sleep 1000 & wait $!; done"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Engine:
    """An engine that listens, with the image; `client` and `options` are what `docker` and `docker run` are given."""

    def __init__(self):
        # Sentences about what could not be removed.
        self.left = []
        self.directory = self.holder = self.daemon = self.first = None

    def __enter__(self):
        if os.geteuid() != 0:
            raise peers.NotThere("not there: an engine of the bench's own needs root")
        programs = {name: peers.path_of(name) for name in ("dockerd", "docker", "setpriv", "unshare", "nsenter", "bash")}
        try:
            self.directory = tempfile.mkdtemp(prefix="codebeaker-bench-")
            self.groups = f"engine-of-{os.path.basename(self.directory)}"
            self.client = ["--config", self.path("client"), "--host", f"unix://{self.socket}"]
            self._hold(programs)
            self._start(programs)
            self._listen(programs["docker"])
            mounts, links = top_directories()
            self.options = [f"--volume={name}:{name}:ro" for name in mounts]
            if engines.ENGINES.is_dir():
                self.options.append(f"--volume={engines.ENGINES}:{ENGINES_INSIDE}:ro")
            made = self._docker(programs["docker"], "import", "-", IMAGE, input=image(links))
            if made.returncode != 0:
                raise peers.NotThere(f"not there: no image could be made: {made.stderr.decode(errors='replace').strip()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """Bounded, and whole: an interruption that comes meanwhile waits."""
        with unhurried():
            for process in (self.holder, self.daemon):
                if process:
                    process.kill()
                    process.wait()
            if self.holder:
                self.holder.stdout.close()
            # The first process dies by its parent's death, the others by its own.
            if self.first and not eventually(lambda: not os.path.exists(f"/proc/{self.first}"), END_TIME_S):
                self.left.append(f"the process {self.first} of a Docker engine")
            if self.directory:
                self.left += remove_groups(self.groups)
                shutil.rmtree(self.directory, ignore_errors=True)
                if os.path.exists(self.directory):
                    self.left.append(self.directory)
        for sentence in self.left:
            print(f"error: left on this host: {sentence}", file=sys.stderr, flush=True)

    @property
    def socket(self):
        """Where it listens."""
        return self.path("sock")

    def path(self, name):
        """A place of its own."""
        return os.path.join(self.directory, name)

    def program(self, name):
        """The path in a container of what the host runs bare by this name."""
        return f"{ENGINES_INSIDE}/{name}" if (engines.ENGINES / name).is_file() else name

    def _hold(self, programs):
        """Makes the namespaces and their first process."""
        line = [programs["setpriv"], "--pdeathsig", "KILL", programs["unshare"], "--mount", "--propagation", "private", "--pid"]
        line += ["--fork", "--kill-child=KILL", "--mount-proc", programs["bash"], "-c", FIRST_PROCESS]
        self.holder = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        ready = self.holder.stdout.readline()
        children = pathlib.Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children")
        if ready != b"ready\n":
            raise peers.NotThere("not there: no namespaces for an engine of the bench's own")
        self.first = int(children.read_text(encoding="ascii").split()[0])

    def _start(self, programs):
        line = [programs["nsenter"], "--target", str(self.first), "--pid", "--mount", programs["dockerd"]]
        line += ["--data-root", self.path("data"), "--exec-root", self.path("exec"), "--pidfile", self.path("pid")]
        line += ["--host", f"unix://{self.socket}", "--bridge=none", "--iptables=false", "--ip6tables=false"]
        line += ["--ip-forward=false", "--ip-masq=false", "--shutdown-timeout", "1", "--cgroup-parent", self.groups]
        line += ["--exec-opt", "native.cgroupdriver=cgroupfs"]
        with open(self.path("log"), "wb") as log:
            self.daemon = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": PATH}, start_new_session=True
            )

    def _listen(self, docker):
        def answers():
            return self.daemon.poll() is not None or self._docker(docker, "version").returncode == 0

        if not eventually(answers, LISTEN_TIME_S) or self.daemon.poll() is not None:
            last = pathlib.Path(self.path("log")).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise peers.NotThere(f"not there: the engine of the bench's own does not listen: {' '.join(last)}")

    def _docker(self, docker, *arguments, **more):
        try:
            return subprocess.run([docker, *self.client, *arguments], capture_output=True, timeout=CALL_TIME_S, check=False, **more)
        except subprocess.TimeoutExpired as error:
            raise peers.NotThere(f"not there: the engine did not answer in {CALL_TIME_S} s") from error


def top_directories(root="/"):
    """Of the directories that programs are in: those to mount, and those that are links, with what they say."""
    mounts, links = [], {}
    for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64"):
        path = os.path.join(root, name)
        if os.path.islink(path):
            links[name] = os.readlink(path)
        elif os.path.isdir(path):
            mounts.append(path)
    return mounts, links


def image(links):
    """A root file system as a tar, without a program of its own: those are the host's, mounted read-only, so that both sides run the same."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        scratch = tarfile.TarInfo("tmp")
        scratch.type, scratch.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(scratch)
    return archive.getvalue()


def remove_groups(name, root=GROUPS):
    """Removes the groups of this name in every hierarchy, deepest first; gives those that stay."""
    own = [directory for directory, _, _ in os.walk(root, topdown=False) if name in pathlib.Path(directory).parts]
    return [f"the control group {group}" for group in own if not eventually(lambda group=group: removed(group), END_TIME_S)]


def removed(directory):
    """True when it is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def eventually(condition, seconds):
    """True once it holds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def unhurried():
    """No interruption in the block; one that comes is delivered after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
