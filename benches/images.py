#!/usr/bin/env python3
"""Measures the import of an image beside `umoci unpack` of the same one, and what a session costs on a small and a large image.

    benches/images.py [--binary PATH] [--files N] ROOTFS_TAR

The large image is that root file system and N small files more.

ROOTFS_TAR is a root file system with /bin/bash, as `mmdebstrap --variant=minbase bookworm rootfs.tar` writes one. Needs umoci, and
root. Each figure is the median of --runs; both sides take turns, so that load meets them alike. Nothing is asserted.
"""

import argparse
import io
import json
import pathlib
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time

from bench import Server

# What bash needs to run, for the small image.
SMALL = ("bin", "lib", "lib64", "usr/bin/bash", "usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
         "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libtinfo.so.6")


def seconds(arguments):
    """Runs a program to its end; how long it took."""
    start = time.monotonic()
    subprocess.run([str(argument) for argument in arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - start


def small_of(source, target):
    """A tar of what bash alone needs, out of a larger one; links between the names are kept."""
    wanted = set(SMALL)
    with tarfile.open(source) as whole, tarfile.open(target, "w") as small:
        members = {member.name.removeprefix("./"): member for member in whole}
        for name in list(wanted):
            member = members.get(name)
            if member is not None and member.issym():
                wanted.add(str(pathlib.PurePath(name).parent / member.linkname))
        for name in sorted(wanted):
            member = members.get(name)
            if member is not None:
                small.addfile(member, whole.extractfile(member) if member.isreg() else None)


def layout_of(place, rootfs):
    """An OCI layout with the tar as its one gzip layer."""
    image = f"{place / 'image'}:v1"
    for arguments in (["init", "--layout", place / "image"], ["new", "--image", image], ["raw", "add-layer", "--image", image, rootfs]):
        seconds(["umoci", *arguments])
    return image


def import_beside_umoci(binary, place, rootfs, runs):
    """Medians of both, in turns."""
    image = layout_of(place, rootfs)
    ours, theirs = [], []
    for _ in range(runs):
        for path in ("bundle", "state"):
            shutil.rmtree(place / path, ignore_errors=True)
        theirs.append(seconds(["umoci", "unpack", "--image", image, place / "bundle"]))
        ours.append(seconds([binary, "image", "import", place / "image", "--name", "large", "--state-dir", place / "state"]))
    return statistics.median(ours), statistics.median(theirs)


def larger_of(source, target, files):
    """A tar of the same, and so many small files more."""
    shutil.copy(source, target)
    with tarfile.open(target, "a") as large:
        for number in range(files):
            member = tarfile.TarInfo(f"srv/{number // 100:05}/{number}")
            member.size = 64
            large.addfile(member, io.BytesIO(b"x" * 64))


def creates_by_size(binary, sources, runs):
    """Milliseconds of session.create on each image, median and worst, in turns; and what the server says of the images."""
    with Server(binary) as server:
        for name, source in sources.items():
            seconds([binary, "image", "import", source, "--name", name, "--state-dir", server.state])
        images = {}
        for name in sources:
            text = subprocess.run(
                [binary, "image", "inspect", name, "--state-dir", server.state], check=True, stdout=subprocess.PIPE
            ).stdout
            images[name] = json.loads(text)
        connection = server.connect()
        times = {name: [] for name in sources}
        for turn in range(runs + 3):
            for name, row in times.items():
                created, took = connection.call("session.create", language="bash", image=name)
                connection.call("session.close", sessionId=created["sessionId"])
                if turn >= 3:
                    row.append(took * 1000)
        connection.close()
    return {name: (statistics.median(row), max(row), images[name]) for name, row in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rootfs", type=pathlib.Path)
    parser.add_argument("--binary", default="target/release/codebeaker")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="codebeaker-bench-") as directory:
        place = pathlib.Path(directory)
        ours, theirs = import_beside_umoci(arguments.binary, place, arguments.rootfs, arguments.runs)
        mebibytes = arguments.rootfs.stat().st_size / (1 << 20)
        print(f"import of {mebibytes:.0f} MiB: {ours:.2f} s; umoci unpack: {theirs:.2f} s; {theirs / ours:.2f} times its speed")
        small_of(arguments.rootfs, place / "small.tar")
        larger_of(arguments.rootfs, place / "large.tar", arguments.files)
        sources = {"small": place / "small.tar", "large": place / "large.tar"}
        for name, (median, worst, image) in creates_by_size(arguments.binary, sources, arguments.runs * 10).items():
            size = f"{image['sizeBytes'] / (1 << 20):.0f} MiB, {image['entries']} entries"
            print(f"session.create on the {name} image ({size}): median {median:.1f} ms, worst {worst:.1f} ms")


if __name__ == "__main__":
    main()
