//! The whole system call table, probed inside a session and compared with `tests/golden/syscalls-PROFILE.txt`, whose lines
//! are `nr name verdict` with a verdict of allow, errno:EPERM, errno:ENOSYS, kill or conditional.
//!
//! Each number is called in a child of its own with arguments that can't work (-1 everywhere), under an alarm, so that a call
//! that is let through does nothing. `ELSEWHERE` lists the numbers for which that does not hold. The lists are made for the
//! newest kernel that the table knows; `BROUGHT` says what an older one may answer with ENOSYS.

use std::collections::BTreeMap;

use libtest_mimic::Trial;

use super::{PROFILES, probe_under};
use crate::support::host::{kernel, release};
use crate::support::{Feature, host, pace, trial};

/// Numbers not called: they end, stop or double the child itself whatever their arguments. That exit, fork and signal
/// returns are allowed is shown by every program that runs at all.
const ELSEWHERE: [u32; 8] = [15, 34, 56, 57, 58, 60, 231, 130];

/// Names that the kernel itself may answer with EPERM, since they ask for a capability that programs lack.
const NEEDS_CAPABILITY: [&str; 24] = [
    "acct",
    "adjtimex",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "fanotify_init",
    "ioperm",
    "iopl",
    "kcmp",
    "mlockall",
    "open_by_handle_at",
    "quotactl",
    "reboot",
    "setdomainname",
    "setgroups",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "unshare",
    "vhangup",
    "pidfd_getfd",
];

/// Names that the kernel itself may answer with ENOSYS, since it was built without them or never had them.
const MAYBE_NOT_BUILT: [&str; 26] = [
    "_sysctl",
    "afs_syscall",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "futex_requeue",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "get_kernel_syms",
    "get_thread_area",
    "getpmsg",
    "lookup_dcookie",
    "map_shadow_stack",
    "memfd_secret",
    "modify_ldt",
    "nfsservctl",
    "putpmsg",
    "query_module",
    "security",
    "set_thread_area",
    "sysfs",
    "tuxcall",
    "uretprobe",
    "uselib",
    "vserver",
];

pub fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = Vec::new();
    for profile in PROFILES {
        let name = format!("the whole system call table under {profile} is as its golden list says");
        trials.push(trial("escape", &name, move || compare(profile)));
    }
    trials.push(trial("harness", "a golden list is read, and a verdict that differs is found", harness));
    trials
}

/// `uretprobe` and `uprobe`: since Linux 6.14 the kernel lets them past every filter (they do nothing outside a probe's own
/// trampoline), so no verdict of a profile can be seen.
const PASSED_THROUGH: [u32; 2] = [335, 336];

/// Major and minor number of a kernel.
type Release = (u32, u32);

/// The release that brought each number since Linux 5.1, for x86-64 (the last of a run of numbers counts): what came later than the running kernel is ENOSYS there
/// though the filter lets it through. Source: the history of the kernel's arch/x86/entry/syscalls/syscall_64.tbl.
const BROUGHT: [(std::ops::RangeInclusive<u32>, Release); 24] = [
    (335..=335, (6, 11)),
    (336..=336, (6, 18)),
    (424..=434, (5, 3)),
    (435..=435, (5, 3)),
    (436..=436, (5, 9)),
    (437..=438, (5, 6)),
    (439..=439, (5, 8)),
    (440..=440, (5, 10)),
    (441..=441, (5, 11)),
    (442..=442, (5, 12)),
    (443..=443, (5, 14)),
    (444..=446, (5, 13)),
    (447..=447, (5, 14)),
    (448..=448, (5, 15)),
    (449..=449, (5, 16)),
    (450..=450, (5, 17)),
    (451..=451, (6, 5)),
    (452..=453, (6, 6)),
    (454..=456, (6, 7)),
    (457..=461, (6, 8)),
    (462..=462, (6, 10)),
    (463..=466, (6, 13)),
    (467..=467, (6, 15)),
    (468..=469, (6, 17)),
];

/// Whether a kernel of this release may lack the number. One that is not in the table is older than what is served.
fn may_lack(kernel: Release, number: u32) -> bool {
    BROUGHT.iter().any(|(numbers, release)| numbers.contains(&number) && kernel < *release)
}

/// One line of a golden list.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    name: String,
    verdict: String,
}

fn golden(text: &str) -> BTreeMap<u32, Promise> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(words.len() >= 3, "not `nr name verdict`: {line}");
        (words[0].parse().expect("a number first"), Promise { name: words[1].into(), verdict: words[2].into() })
    });
    rows.collect()
}

/// Whether the running kernel has a call at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Expected,
    MayLack,
}

/// What is wrong with an observed answer, if anything. `seen` is an errno's name, `ok`, or `died:STATUS`.
fn difference(promise: &Promise, presence: Presence, seen: &str) -> Option<String> {
    let name = promise.name.as_str();
    let killed =
        seen.strip_prefix("died:").and_then(|status| status.parse::<u32>().ok()).is_some_and(|status| status & 0x7f == 31);
    let kept = match promise.verdict.as_str() {
        "EPERM" => seen == "EPERM",
        "ENOSYS" => seen == "ENOSYS",
        "kill" => killed,
        "conditional" => true,
        "allow" => match seen {
            "EPERM" => NEEDS_CAPABILITY.contains(&name),
            "ENOSYS" => presence == Presence::MayLack || MAYBE_NOT_BUILT.contains(&name),
            _ => !killed,
        },
        other => return Some(format!("{name}: the golden list has the unknown verdict `{other}`")),
    };
    (!kept).then(|| format!("{name}: {} promised, {seen} seen", promise.verdict))
}

const PROBE: &str = r"
def one(nr):
    signal.alarm(3)
    if nr == 202: return call(nr, 0, 1, 0, 0, 0, 0)[1]
    if nr in (62, 129, 200, 234, 297): return call(nr, 0x7ffffffe, 0x7ffffffe, 0, 0)[1]
    return call(nr, -1, -1, -1, -1, -1, -1)[1]
print(json.dumps({nr: forked(lambda: one(nr)) for nr in NUMBERS}))";

/// The committed list of a profile.
fn list_of(profile: &str) -> BTreeMap<u32, Promise> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/syscalls-{profile}.txt"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    golden(&text)
}

/// Name and errno of every call that the list of a profile refuses whatever its arguments.
pub(super) fn refused(profile: &str) -> BTreeMap<u32, (String, String)> {
    let all = list_of(profile).into_iter().filter(|(number, _)| !PASSED_THROUGH.contains(number));
    let refused = all.filter(|(_, promise)| matches!(promise.verdict.as_str(), "EPERM" | "ENOSYS"));
    refused.map(|(number, promise)| (number, (promise.name, promise.verdict))).collect()
}

/// Numbers called by one program, fewer on a slow host: it must come through within the time that a profile gives a command.
const NUMBERS_AT_ONCE: usize = 96;
const NUMBERS_AT_ONCE_MIN: usize = 12;

/// What each number answers.
fn probed(profile: &str, numbers: &[u32]) -> BTreeMap<String, String> {
    let at_once = (NUMBERS_AT_ONCE / pace() as usize).max(NUMBERS_AT_ONCE_MIN);
    let answers = numbers.chunks(at_once).map(|some| {
        let answers = probe_under(profile, &PROBE.replace("NUMBERS", &format!("{some:?}")));
        serde_json::from_value::<BTreeMap<String, String>>(answers).expect("a word for each number")
    });
    answers.flatten().collect()
}

fn compare(profile: &str) {
    host().need(Feature::X86);
    let golden = list_of(profile);
    assert!(golden.len() > 300, "the whole table: {} lines", golden.len());
    let numbers: Vec<u32> =
        golden.keys().copied().filter(|number| !ELSEWHERE.contains(number) && !PASSED_THROUGH.contains(number)).collect();
    let seen = probed(profile, &numbers);
    let kernel = kernel();
    let differs = numbers.iter().filter_map(|&number| {
        let presence = if may_lack(kernel, number) { Presence::MayLack } else { Presence::Expected };
        difference(&golden[&number], presence, seen.get(&number.to_string()).map_or("nothing", String::as_str))
    });
    let differs: Vec<String> = differs.collect();
    assert!(differs.is_empty(), "{profile}: {}", differs.join("; "));
}

fn harness() {
    let list =
        golden("# a comment\n0 read allow\n165 mount EPERM\n\n435 clone3 ENOSYS\n166 umount2 kill\n41 socket conditional\n");
    assert_eq!(list.len(), 5);
    let check = |number: u32, seen: &str| difference(&list[&number], Presence::Expected, seen).is_none();
    assert!(check(0, "EBADF") && check(0, "ok") && !check(0, "ENOSYS") && !check(0, "EPERM") && !check(0, "died:31"));
    assert!(check(165, "EPERM") && !check(165, "ok") && !check(165, "EFAULT"));
    assert!(check(435, "ENOSYS") && !check(435, "EPERM"));
    assert!(check(166, "died:31") && check(166, "died:159") && !check(166, "died:14") && check(41, "EPERM"));
    // What an older kernel lacks is ENOSYS where it would be allowed, and nothing else changes.
    let older = |number: u32, seen: &str| difference(&list[&number], Presence::MayLack, seen).is_none();
    assert!(older(0, "ENOSYS") && older(0, "EBADF") && !older(0, "EPERM") && !older(165, "ENOSYS") && older(165, "EPERM"));
    assert_eq!(release("6.1.0-13-cloud-amd64\n"), (6, 1));
    assert_eq!([450, 451, 462, 469, 0].map(|number| may_lack((6, 1), number)), [false, true, true, true, false]);
    assert_eq!([451, 467, 469].map(|number| may_lack((6, 18), number)), [false; 3]);
}
