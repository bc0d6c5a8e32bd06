//! What every target does with what it read. `src/seccomp` is taken in by its path: it needs nothing else of the crate.

#[path = "../../src/seccomp/mod.rs"]
#[allow(dead_code, missing_docs)]
pub mod seccomp;

use seccomp::document::Format;
use seccomp::policy::{Policy, stacked};
use seccomp::read::{Contents, guess, read};
use seccomp::resolve::{Target, resolve};
use seccomp::ruleset::{Engine, Ruleset};
use seccomp::{Arch, Invocation, KernelVersion, paths};

/// Programs that are followed for all arguments; longer ones are only run.
const FOLLOWED_MAX: usize = 64;
/// Calls that are asked about: socket, clone, read, and one that does not exist.
const CALLS: [u32; 4] = [41, 56, 0, 4095];

/// Reads bytes as the format says, and asks the questions of the tools.
pub fn try_bytes(bytes: &[u8], format: Format) {
    let _: Format = guess(bytes);
    let Ok(contents) = read(bytes, format) else { return };
    let target = Target { arch: Arch::X86_64, kernel: KernelVersion { major: 6, minor: 18 }, capabilities: &[] };
    match contents {
        Contents::Document(document) => {
            for engine in [Engine::CodeBeaker, Engine::Libseccomp, Engine::Seccompiler] {
                let rules = Ruleset::new(&document, target, engine);
                for number in CALLS {
                    rules.decide(&Invocation::native(Arch::X86_64, number, [u64::MAX; 6]));
                }
            }
            if let Ok(resolved) = resolve(&document.profile, target) {
                resolved.verdict(41, [38, 0, 0, 0, 0, 0]);
            }
        }
        Contents::Program(program) => {
            let filters = [program];
            for number in CALLS {
                let call = Invocation::native(Arch::X86_64, number, [1, 2, 3, 4, 5, 6]);
                let verdict = stacked(&filters, &call);
                let policy = Policy::Programs { arch: Arch::X86_64, filters: filters.to_vec() };
                assert_eq!(policy.verdict(&call), verdict);
                if filters[0].instructions().len() <= FOLLOWED_MAX {
                    // What can be followed at all has a way through for every call.
                    let ways = paths::cases(&filters, Arch::X86_64, number);
                    assert!(ways.is_err() || ways.is_ok_and(|ways| !ways.is_empty()));
                }
            }
        }
    }
}
