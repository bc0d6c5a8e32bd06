"""The Docker engine of the bench's own, with a real one where the host has it: python3 -B -m unittest discover -s benches."""

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
import unittest
from unittest import mock

import bench
import containers
import dockerd
import peers

HERE = os.path.dirname(os.path.abspath(__file__))
WAIT_S = 60
# Starts an engine with a container, says where its directory is, and waits to be interrupted.
WAITER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
# Who runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
import dockerd, peers
with dockerd.Engine() as own:
    docker = peers.DockerExec(own)
    print(own.directory, own.first, flush=True)
    time.sleep(600)
"""


def there():
    """True where the bench can start an engine."""
    programs = ("dockerd", "docker", "setpriv", "unshare", "nsenter", "bash")
    return os.geteuid() == 0 and all(shutil.which(name, path=dockerd.PATH) for name in programs)


def groups_of(directory):
    """Control groups of the engine of that directory."""
    name = os.path.basename(directory)
    return [group for group, _, _ in os.walk(dockerd.GROUPS) if name in group]


def mounts():
    """The mount points of this namespace."""
    return [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]


class FakeDocker:
    """A container in which these programs run."""

    def __init__(self, programs):
        self.programs, self.copied, self.closed = programs, [], False

    def path_of(self, program):
        return program

    def copy(self, source, target):
        self.copied.append((pathlib.Path(source).read_text(encoding="utf-8"), target))

    def try_out(self, line):
        if line[0] not in self.programs:
            raise peers.NotThere(f"not there: the container can't run `{line[0]}`")

    def exec(self, line):
        self.try_out(line)
        return 0.004

    def run_true(self):
        return 0.3

    def close(self):
        self.closed = True


def measured(docker):
    rows = bench.Bench(bench.Sizes(quick=True))
    with mock.patch.object(peers, "DockerExec", docker), contextlib.redirect_stderr(io.StringIO()):
        containers.measure(rows)
    return rows


class Rows(unittest.TestCase):
    def test_what_the_container_has_is_measured_and_what_it_lacks_is_told(self):
        docker = FakeDocker({"true", "node"})
        rows = measured(lambda own: docker)
        told = {row["name"]: row for row in rows.timings}
        self.assertAlmostEqual(told[containers.TRUE]["back_to_back"]["p50_ms"], 4)
        self.assertIn("back_to_back", told[containers.of_file("node")])
        self.assertIn("can't run `python3`", told[containers.PYTHON]["why"])
        self.assertIn("can't run `deno`", told[containers.of_file("deno")]["why"])
        self.assertEqual(docker.copied, [("console.log(1)\n", "/hello.js")])
        self.assertEqual([row["figure"] for row in rows.figures], ["3000 ms", "40 ms"])
        self.assertTrue(docker.closed)

    def test_without_an_engine_the_rows_say_so(self):
        def none(_):
            raise peers.NotThere("not there: no Docker engine answers")

        rows = measured(none)
        self.assertEqual([row["why"] for row in rows.timings], ["not there: no Docker engine answers"])
        self.assertEqual([row["figure"] for row in rows.figures], ["not there: no Docker engine answers"])


class Parts(unittest.TestCase):
    def test_links_of_the_host_become_links_of_the_image_and_directories_mounts(self):
        with tempfile.TemporaryDirectory() as root:
            os.makedirs(f"{root}/usr/bin")
            os.mkdir(f"{root}/lib")
            os.symlink("usr/bin", f"{root}/bin")
            mounts_made, links = dockerd.top_directories(root)
        self.assertEqual(mounts_made, [f"{root}/usr", f"{root}/lib"])
        with tarfile.open(fileobj=io.BytesIO(dockerd.image(links))) as tar:
            self.assertEqual({entry.name: entry.linkname for entry in tar}, {"bin": "usr/bin", "tmp": ""})

    def test_groups_of_the_engine_are_removed_in_every_hierarchy_and_others_stay(self):
        with tempfile.TemporaryDirectory() as root:
            os.makedirs(f"{root}/memory/mine/a/b")
            os.makedirs(f"{root}/pids/mine/a")
            os.makedirs(f"{root}/pids/mine-not")
            self.assertEqual(dockerd.remove_groups("mine", root), [])
            self.assertEqual(sorted(os.listdir(root)), ["memory", "pids"])
            self.assertEqual([os.listdir(f"{root}/{name}") for name in ("memory", "pids")], [[], ["mine-not"]])

    def test_a_group_that_stays_is_told(self):
        with tempfile.TemporaryDirectory() as root, mock.patch.object(dockerd, "END_TIME_S", 0.1):
            os.makedirs(f"{root}/memory/mine")
            pathlib.Path(f"{root}/memory/mine/file").touch()
            self.assertEqual(dockerd.remove_groups("mine", root), [f"the control group {root}/memory/mine"])

    def test_who_is_not_root_is_told_and_nothing_is_made(self):
        engine = dockerd.Engine()
        with mock.patch.object(os, "geteuid", lambda: 1000), self.assertRaisesRegex(peers.NotThere, "needs root"), engine:
            pass
        self.assertIsNone(engine.directory)


@unittest.skipUnless(there(), "no dockerd, no docker or no root")
class Real(unittest.TestCase):
    def gone(self, directory, first):
        """Nothing of an engine is on the host."""
        self.assertTrue(dockerd.eventually(lambda: not os.path.exists(f"/proc/{first}"), WAIT_S))
        self.assertEqual(groups_of(directory), [])
        self.assertFalse(os.path.exists(directory))
        self.assertEqual([mount for mount in mounts() if mount.startswith(directory)], [])

    def test_programs_run_in_containers_of_it_and_nothing_is_left(self):
        with dockerd.Engine() as own:
            with contextlib.closing(peers.DockerExec(own)) as docker:
                self.assertGreater(docker.exec(["true"]), 0)
                self.assertGreater(docker.run_true(), 0)
                with self.assertRaises(peers.NotThere):
                    docker.exec(["false"])
                self.assertNotEqual(groups_of(own.directory), [], "a container that stands has groups")
        self.assertEqual(own.left, [])
        self.gone(own.directory, own.first)

    def interrupted(self, number):
        """A bench that is interrupted while a container of its engine stands: directory and first process of the engine."""
        process = subprocess.Popen(
            [sys.executable, "-B", "-c", WAITER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=HERE, text=True, start_new_session=True
        )
        try:
            directory, first = process.stdout.readline().split()
            self.assertNotEqual(groups_of(directory), [])
            process.send_signal(number)
            _, errors = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
            process.communicate()
        self.assertNotIn("left on this host", errors)
        return directory, first

    def test_an_interruption_leaves_nothing(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.gone(*self.interrupted(number))

    def test_no_process_outlives_a_bench_that_is_killed(self):
        directory, first = self.interrupted(signal.SIGKILL)
        self.assertTrue(dockerd.eventually(lambda: not os.path.exists(f"/proc/{first}"), WAIT_S))
        self.assertEqual([mount for mount in mounts() if mount.startswith(directory)], [])
        # What a killed one can't remove.
        self.assertEqual(dockerd.remove_groups(f"engine-of-{os.path.basename(directory)}"), [])
        shutil.rmtree(directory)


if __name__ == "__main__":
    unittest.main()
