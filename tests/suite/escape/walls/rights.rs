//! Capabilities and securebits: what a program may do to its own sandbox. Over the host it never has any.
//!
//! Exec empties the effective and the permitted set of an ordinary user, so what holds them before shows in the one thing that
//! a program's process does with its own rights before exec: it enters its working directory. Inheritable and ambient set are
//! empty from the making of the user namespace on (user_namespaces(7)); that none can be raised again is what securebits say.

use super::{Attempt, PAIR, Pair, cuts};

pub(super) const PAIRS: &[Pair] = &[
    Pair {
        wall: "capabilities",
        claim: "a directory of root is entered (effective and permitted set)",
        alone: |plan| cuts::add_directory(plan, "/private", 0o700),
        without: cuts::capability_sets,
        attempt: Attempt::PythonIn("/private", "print(os.readlink('/proc/self/cwd'))"),
        held: "not started: Directory EACCES",
        open: "/private",
        ..PAIR
    },
    Pair {
        wall: "capabilities",
        claim: "root gains capabilities by exec (bounding set)",
        alone: |plan| {
            cuts::user(plan);
            cuts::capability_sets(plan);
            cuts::securebits(plan);
        },
        without: cuts::bounding_set,
        attempt: Attempt::Python(CHOWN),
        held: "EPERM",
        open: "given away",
        ..PAIR
    },
    Pair {
        wall: "capabilities",
        claim: "root gains capabilities by exec (securebits)",
        alone: |plan| {
            cuts::user(plan);
            cuts::capability_sets(plan);
            cuts::bounding_set(plan);
        },
        without: cuts::securebits,
        attempt: Attempt::Python(CHOWN),
        held: "EPERM",
        open: "given away",
        ..PAIR
    },
    Pair {
        wall: "capabilities",
        claim: "a capability is made ambient, to outlive exec (securebits)",
        profile: "permissive",
        needs: |_| {
            crate::support::host().need(crate::support::Feature::X86);
        },
        without: cuts::securebits,
        attempt: Attempt::Python(
            "import struct\n\
             header, sets = struct.pack('Ii', 0x20080522, 0), ctypes.create_string_buffer(24)\n\
             assert call(125, header, sets)[1] == 'ok'\n\
             low = struct.unpack('6I', sets.raw)\n\
             assert low[0] & 1, 'CAP_CHOWN is held'\n\
             assert call(126, header, struct.pack('6I', low[0], low[1], 1, *low[3:]))[1] == 'ok'\n\
             print(call(157, 47, 2, 0, 0, 0)[1])",
        ),
        held: "EPERM",
        open: "ok",
        ..PAIR
    },
];

const CHOWN: &str = "open('/tmp/own', 'w').close()\n\
     try: os.chown('/tmp/own', 5, 5); print('given away')\nexcept OSError as e: print(errno.errorcode[e.errno])";
