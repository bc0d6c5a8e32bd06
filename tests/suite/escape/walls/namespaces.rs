//! Namespaces, groups and rlimits: what of the host is there at all, and how much of it.

use super::{Attempt, PAIR, Pair, cuts, needs_groups, needs_scopes, world};
use crate::support::{Feature, host};

pub(super) const PAIRS: &[Pair] = &[
    Pair {
        wall: "user",
        claim: "a file of the host's uid 1000 can be read through a directory that leaked",
        world: |_| world::canary_of_a_user(),
        // Landlock knows nothing of a directory that is on no mount of the sandbox, and refuses it.
        alone: cuts::landlock_rules,
        without: cuts::user_namespace,
        attempt: Attempt::Python(
            "try: print(os.read(os.open('canary', os.O_RDONLY, dir_fd=3), 64).decode())\n\
             except OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "EACCES",
        open: world::CANARY,
        ..PAIR
    },
    Pair {
        wall: "user",
        claim: "a program is root of its sandbox and changes what belongs to root",
        without: cuts::user,
        attempt: Attempt::Python(
            "try: print(open('/etc/planted', 'w').write('planted') and 'written')\n\
             except OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "EACCES",
        open: "written",
        ..PAIR
    },
    Pair {
        wall: "pid",
        claim: "a process of the host has a number",
        world: |_| world::own_process(),
        without: cuts::pid_namespace,
        // Signal 0 signals nobody. Found, it is refused all the same: the ids are others, and Landlock scopes signals.
        attempt: Attempt::Python(
            "try: os.kill(world['pid'], 0); print('signalled')\nexcept OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "ESRCH",
        open: "EPERM",
        ..PAIR
    },
    Pair {
        wall: "network",
        claim: "a listener on the host's loopback is reached",
        world: |_| world::loopback(),
        without: cuts::network_namespace,
        attempt: Attempt::Python(
            "import socket\n\
             try: socket.create_connection(('127.0.0.1', world['port']), 20); print('reached')\n\
             except OSError as e: print(errno.errorcode.get(e.errno, e))",
        ),
        held: "ECONNREFUSED",
        open: "reached",
        ..PAIR
    },
    Pair {
        wall: "network",
        claim: "an abstract socket of the host is reached",
        needs: needs_scopes,
        world: |_| world::abstract_socket(),
        alone: cuts::landlock_scopes,
        without: cuts::network_namespace,
        attempt: Attempt::Python(ABSTRACT),
        held: "ECONNREFUSED",
        open: "reached",
        ..PAIR
    },
    Pair {
        wall: "landlock",
        claim: "an abstract socket of the same network namespace is reached",
        needs: needs_scopes,
        world: |_| world::abstract_socket(),
        alone: cuts::network_namespace,
        without: cuts::landlock_scopes,
        attempt: Attempt::Python(ABSTRACT),
        held: "EPERM",
        open: "reached",
        ..PAIR
    },
    Pair {
        wall: "landlock",
        claim: "a process of the same user outside the sandbox is signalled",
        needs: needs_scopes,
        world: world::process_of_the_same_user,
        alone: cuts::pid_namespace,
        without: cuts::landlock_scopes,
        attempt: Attempt::Python(
            "try: os.kill(world['pid'], 0); print('signalled')\nexcept OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "EPERM",
        open: "signalled",
        ..PAIR
    },
    Pair {
        wall: "ipc",
        claim: "a message queue of the host is found",
        needs: |_| {
            host().need(Feature::X86);
        },
        world: |_| world::queue(),
        without: cuts::ipc_namespace,
        attempt: Attempt::Python("print(call(68, world['key'], 0)[1])"),
        held: "ENOENT",
        open: "ok",
        ..PAIR
    },
    Pair {
        wall: "uts",
        claim: "the host's name shows",
        world: |_| world::host_name(),
        without: cuts::uts_namespace,
        attempt: Attempt::Python("print(\"the host's\" if os.uname().nodename == world['name'] else os.uname().nodename)"),
        held: "codebeaker",
        open: "the host's",
        ..PAIR
    },
    Pair {
        wall: "time",
        claim: "the clocks are the host's",
        needs: |bench| host().need_that("time_namespace", bench.host.time_namespace, "the kernel has no time namespaces"),
        world: |_| world::namespace("time"),
        without: cuts::time_namespace,
        attempt: Attempt::Python(
            "print(\"the host's\" if os.readlink('/proc/self/ns/time') == world['namespace'] else 'its own')",
        ),
        held: "its own",
        open: "the host's",
        ..PAIR
    },
    Pair {
        wall: "cgroup",
        claim: "the layout of the host's groups shows",
        needs: needs_groups,
        without: cuts::cgroup_namespace,
        attempt: Attempt::Python("print('codebeaker-' in open('/proc/self/cgroup').read())"),
        held: "False",
        open: "True",
        ..PAIR
    },
    Pair {
        wall: "cgroup",
        claim: "more processes than the limit are made",
        needs: needs_groups,
        without: cuts::groups,
        // The bench's limit is 32.
        attempt: Attempt::Python(
            "hold, release = os.pipe()\nmade = 0\n\
             try:\n  while made < 40:\n    if os.fork() == 0:\n      os.close(release); os.read(hold, 1); os._exit(0)\n    made += 1\n  print('made')\n\
             except OSError as e: print(errno.errorcode[e.errno])\n\
             os.close(release)\nfor n in range(made): os.wait()",
        ),
        held: "EAGAIN",
        open: "made",
        ..PAIR
    },
    Pair {
        wall: "cgroup",
        claim: "more memory than the limit is used",
        needs: needs_groups,
        without: cuts::groups,
        // The bench's limit is 64 MiB.
        attempt: Attempt::Python("print(forked(lambda: len(bytearray(b'x') * (96 << 20)) >> 20))"),
        held: "died:9",
        open: "96",
        ..PAIR
    },
    Pair {
        wall: "rlimits",
        claim: "more descriptors than the limit are opened",
        without: cuts::rlimits,
        // The bench's limit is 256; without one of ours it is the launcher's.
        attempt: Attempt::Python(
            "try:\n  for n in range(300): os.dup(0)\n  print('opened')\nexcept OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "EMFILE",
        open: "opened",
        ..PAIR
    },
    Pair {
        wall: "rlimits",
        claim: "inotify instances are taken from those of the host's root without a limit",
        without: cuts::user_limits,
        // The limit is 16, that of the host's root 128 as a rule, for everything that runs as root there.
        attempt: Attempt::Python(
            "made = [_libc.inotify_init1(0) for n in range(18)]\nprint(sum(n >= 0 for n in made), errno.errorcode.get(ctypes.get_errno()))",
        ),
        held: "16 EMFILE",
        open: "18 None",
        ..PAIR
    },
];

const ABSTRACT: &str = "import socket\n\
     try: socket.socket(socket.AF_UNIX).connect('\\0' + world['name']); print('reached')\n\
     except OSError as e: print(errno.errorcode[e.errno])";
