//! Mounts, `/proc`, devices, Landlock's file rules and file commands: which files there are, and who may change them.

use super::{Attempt, PAIR, Pair, cuts, world};
use crate::support::host;
use crate::support::host::kernel;

pub(super) const PAIRS: &[Pair] = &[
    Pair {
        wall: "mount",
        claim: "a file of the host is read by its path",
        world: |_| world::canary(),
        without: cuts::pivot,
        attempt: Attempt::Python(
            "try: print(open(world['canary']).read())\nexcept OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "ENOENT",
        open: world::CANARY,
        ..PAIR
    },
    Pair {
        wall: "mount",
        claim: "a tree that sessions share is changed",
        world: |_| world::shared(),
        without: cuts::read_only_tree,
        attempt: Attempt::Python(
            "try: print(open('/shared/planted', 'w').write('planted') and 'written')\n\
             except OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "EROFS",
        open: "written",
        ..PAIR
    },
    Pair {
        wall: "mount",
        claim: "a device in an image is opened",
        world: |_| world::shared(),
        without: cuts::no_devices,
        attempt: Attempt::Python(
            "try: print(os.open('/shared/null', os.O_RDONLY) and 'opened')\nexcept OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "EACCES",
        open: "opened",
        ..PAIR
    },
    Pair {
        wall: "mount",
        claim: "a set-uid program counts where no_new_privs is missing too",
        profile: "permissive",
        alone: |plan| {
            cuts::filters_first(plan);
            cuts::no_new_privs(plan);
        },
        without: cuts::no_setuid,
        attempt: Attempt::Python(SET_UID),
        held: "1000",
        open: "0",
        ..PAIR
    },
    Pair {
        wall: "no_new_privs",
        claim: "a set-uid program counts where nosuid is missing too",
        profile: "permissive",
        alone: |plan| {
            cuts::filters_first(plan);
            cuts::no_setuid(plan);
        },
        without: cuts::no_new_privs,
        attempt: Attempt::Python(SET_UID),
        held: "1000",
        open: "0",
        ..PAIR
    },
    Pair {
        wall: "root",
        claim: "the root of `strict` is changed where Landlock is missing too",
        profile: "strict",
        alone: |plan| {
            cuts::add_directory(plan, "/open", 0o777);
            cuts::landlock_rules(plan);
        },
        without: cuts::read_only_root,
        attempt: Attempt::Python(WRITE_ROOT),
        held: "EROFS",
        open: "written",
        ..PAIR
    },
    Pair {
        wall: "landlock",
        claim: "the root of `strict` is changed where it is not mounted read-only",
        profile: "strict",
        alone: |plan| {
            cuts::add_directory(plan, "/open", 0o777);
            cuts::read_only_root(plan);
        },
        without: cuts::landlock_rules,
        attempt: Attempt::Python(WRITE_ROOT),
        held: "EACCES",
        open: "written",
        ..PAIR
    },
    Pair {
        wall: "landlock",
        claim: "making a device node is refused by nothing but the missing capability",
        without: cuts::landlock_rules,
        attempt: Attempt::Python(
            "try: os.mknod('/tmp/null', 0o20600, os.makedev(1, 3)); print('made')\n\
             except OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "EACCES",
        open: "EPERM",
        ..PAIR
    },
    Pair {
        wall: "masked_paths",
        claim: "the host's interrupts can be read",
        without: cuts::masks,
        attempt: Attempt::Python("print(len(open('/proc/interrupts', 'rb').read(64)) > 0)"),
        held: "False",
        open: "True",
        ..PAIR
    },
    Pair {
        wall: "masked_paths",
        claim: "root of the sandbox sets the kernel",
        // What it sets is of its own network namespace; the value is the one that is there.
        alone: cuts::every_capability,
        without: cuts::read_only_proc,
        attempt: Attempt::Python(
            "path = '/proc/sys/net/ipv4/ip_unprivileged_port_start'\nvalue = open(path).read()\n\
             try: print(open(path, 'w').write(value) and 'set')\nexcept OSError as e: print(errno.errorcode[e.errno])",
        ),
        held: "EROFS",
        open: "set",
        ..PAIR
    },
    Pair {
        wall: "masked_paths",
        claim: "with /sys the host's kernel objects show",
        without: |plan| cuts::put(plan, "/sys", "/sys"),
        attempt: Attempt::Python("print(os.path.exists('/sys/kernel'))"),
        held: "False",
        open: "True",
        ..PAIR
    },
    Pair {
        wall: "cgroup",
        claim: "with a cgroup file system the host's groups show",
        without: |plan| cuts::put(plan, "/sys/fs/cgroup", "/sys"),
        attempt: Attempt::Python("print(' - cgroup' in open('/proc/self/mountinfo').read())"),
        held: "False",
        open: "True",
        ..PAIR
    },
    Pair {
        wall: "devices",
        claim: "with the host's /dev its devices are there",
        world: |_| world::device(),
        without: |plan| cuts::put(plan, "/dev", "/dev"),
        attempt: Attempt::Python("print(os.path.exists(world['device']))"),
        held: "False",
        open: "True",
        ..PAIR
    },
    Pair {
        wall: "devices",
        claim: "root of the sandbox with every capability adds to what sandboxes share",
        needs: |bench| {
            host().need_that("device_directory", kernel() >= (6, 15), "before Linux 6.15 each sandbox has a /dev of its own");
            assert!(bench.host.device_directory, "this root can make it");
        },
        alone: |plan| {
            cuts::every_capability(plan);
            cuts::seccomp(plan);
            cuts::landlock_if_any(plan);
        },
        without: cuts::shared_devices,
        // First it takes the mount's own flags away.
        attempt: Attempt::Python(
            "import ctypes\nMS_REMOUNT, MS_BIND = 32, 4096\n\
             changed = ctypes.CDLL(None).mount(None, b'/dev', None, MS_REMOUNT | MS_BIND, None)\n\
             try: print(changed, open('/dev/planted', 'w') and 'planted')\n\
             except OSError as e: print(changed, errno.errorcode[e.errno])",
        ),
        held: "0 EROFS",
        open: "0 planted",
        ..PAIR
    },
    Pair {
        wall: "file_commands",
        claim: "a file command changes what belongs to root",
        without: cuts::file_ids,
        attempt: Attempt::WriteFile,
        held: "PermissionDenied",
        open: "done",
        ..PAIR
    },
    Pair {
        wall: "file_commands",
        claim: "a file command reads a file of the host",
        world: |_| world::shared(),
        without: cuts::own_root,
        attempt: Attempt::ReadFile,
        held: "FileNotFound",
        open: world::CANARY,
        ..PAIR
    },
];

/// Under `permissive`, whose user is root of the sandbox: it makes a set-uid program and gives up being root.
const SET_UID: &str = "import shutil, subprocess\nshutil.copy('/usr/bin/id', '/tmp/id'); os.chmod('/tmp/id', 0o4755)\n\
     def ordinary():\n  os.setgid(1000); os.setuid(1000)\n  return subprocess.run(['/tmp/id', '-u'], capture_output=True, text=True).stdout.strip()\n\
     print(forked(ordinary))";

const WRITE_ROOT: &str = "try: print(open('/open/planted', 'w').write('planted') and 'written')\n\
     except OSError as e: print(errno.errorcode[e.errno])";
