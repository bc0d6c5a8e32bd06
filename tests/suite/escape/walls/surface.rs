//! Calls that are allowed for some arguments only: which arguments get past the filters of each profile, and that without them
//! all do. A filter of the trial ends every such call before the kernel sees it, so whole tables can be asked.

use std::collections::BTreeMap;

use serde_json::Value;

use super::cuts;
use super::kernel::{Call, ENDS_HERE, answer, json_told};
use crate::escape::PROFILES;
use crate::support::page;

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "escape",
        &[
            ("of all socket families, types and protocols those of the profile get past the filters", sockets),
            ("options of sockets that load code or write into pages do not get past the filters", socket_options),
            ("no flag of clone that makes a namespace gets past the filters", clone_flags),
            ("prctl and ioctl get past the filters as the profile says", operations),
        ],
    )
}

/// What a call with these arguments comes to: past the filters, or refused.
type Told = BTreeMap<String, String>;

/// Asks for every row of arguments, with the filters of a profile and without them.
fn ask(profile: &str, marks: &[Call], number: u32, rows: &str) -> Told {
    // The upper half of each register is not the kernel's for these calls, so it must not be a way round.
    let code = format!(
        "told = {{}}\nfor row in {rows}:\n  low = call({number}, *row)[1]\n  high = call({number}, *[word | (1 << 32) for word in row])[1]\n  \
         told[','.join(map(str, row))] = low if low == high else low + ' but ' + high\nprint(json.dumps(told))"
    );
    let filter = answer(marks);
    let with = json_told(profile, |plan| cuts::add_filter(plan, filter.clone()), &code);
    let without = |plan: &mut codebeaker::plan::Plan| {
        cuts::seccomp(plan);
        cuts::add_filter(plan, filter.clone());
    };
    let without = told(&json_told(profile, without, &code));
    let stopped: Vec<&String> = without.iter().filter(|(_, answer)| *answer != "ENOSYS").map(|(row, _)| row).collect();
    assert!(stopped.is_empty() && !without.is_empty(), "{profile}: without the filters {stopped:?} do not get past them");
    told(&with)
}

fn told(value: &Value) -> Told {
    let rows = value.as_object().expect("a map").iter();
    rows.map(|(row, answer)| (row.clone(), answer.as_str().unwrap_or("nothing").to_owned())).collect()
}

fn every(number: u32) -> [Call; 1] {
    [Call { number, argument: None, how: ENDS_HERE }]
}

/// Fails for each row whose answer is another than `allowed` says.
fn expect(profile: &str, told: &Told, allowed: impl Fn(&[u64]) -> bool) {
    let wrong = told.iter().filter(|(row, answer)| {
        let words: Vec<u64> = row.split(',').map(|word| word.parse().expect("a number")).collect();
        let past = if allowed(&words) { "ENOSYS" } else { "EPERM" };
        answer.as_str() != past
    });
    let wrong: Vec<String> = wrong.map(|(row, answer)| format!("{row}: {answer}")).collect();
    assert!(wrong.is_empty(), "{profile}: {}", wrong.join("; "));
}

fn sockets() {
    const ROWS: &str = "[(f, t, p) for f in range(48) for t in (1, 2, 3, 4, 5, 6, 10, 0o4001, 0o2000002) \
                        for p in (0, 1, 2, 6, 15, 16, 17, 58, 132, 136, 255, 262)]";
    for profile in PROFILES {
        let told = ask(profile, &every(41), 41, ROWS);
        expect(profile, &told, |row| {
            let (family, kind, protocol) = (row[0], row[1] & 15, row[2]);
            match (profile, family) {
                ("permissive", 1 | 2 | 10) => true,
                ("permissive", 16) => protocol != 6,
                ("permissive", _) => false,
                (_, 1) => protocol == 0 && matches!(kind, 1 | 2 | 5),
                ("default", 2 | 10) => matches!((kind, protocol), (1, 0 | 6) | (2, 0 | 17)),
                ("default", 16) => protocol == 0 && matches!(kind, 2 | 3),
                _ => false,
            }
        });
    }
}

fn socket_options() {
    // Level and option: TCP_ULP, UDP_ENCAP, the XFRM policies; then filters of packets, SO_ZEROCOPY, TCP_REPAIR.
    const PAGES: [(u64, u64); 6] = [(6, 31), (17, 100), (0, 16), (0, 17), (41, 34), (41, 35)];
    const CODE: [(u64, u64); 8] = [(1, 26), (1, 50), (1, 51), (1, 52), (1, 60), (0, 64), (41, 64), (6, 19)];
    let rows = format!("[(0, level, option, 0, 0) for level, option in {:?} + [(1, 2), (1, 9)]]", [&PAGES[..], &CODE].concat());
    for profile in PROFILES {
        let told = ask(profile, &every(54), 54, &rows);
        expect(profile, &told, |row| {
            let option = (row[1], row[2]);
            let loads = profile != "permissive" && CODE.contains(&option);
            !(PAGES.contains(&option) || loads)
        });
    }
}

fn clone_flags() {
    const NAMESPACES: [u64; 8] =
        [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x7e02_0000];
    let rows = format!("[(flags | 17, 0, 0, 0, 0) for flags in {NAMESPACES:?} + [0, 0x100, 0x3d0f00]]");
    for profile in PROFILES {
        let told = ask(profile, &every(56), 56, &rows);
        expect(profile, &told, |row| !NAMESPACES.iter().any(|flags| row[0] & flags != 0));
    }
}

/// What `strict` lets a program ask or set of itself.
const PRCTL_OF_STRICT: [u64; 18] = [1, 2, 3, 4, 7, 15, 16, 21, 23, 27, 29, 30, 36, 37, 38, 39, 41, 42];

fn operations() {
    // PR_SET_SECCOMP is how the later filters of the stack come, so it is not ended here.
    let prctl: Vec<Call> =
        (0..80).filter(|op| *op != 22).map(|op| Call { number: 157, argument: Some((0, op)), how: ENDS_HERE }).collect();
    let rows = "[(op, 0, 0, 0, 0) for op in range(80) if op != 22]";
    let told = ask("strict", &prctl, 157, rows);
    expect("strict", &told, |row| PRCTL_OF_STRICT.contains(&row[0]));
    let told = ask("default", &prctl, 157, rows);
    expect("default", &told, |row| !matches!(row[0], 35 | 62));
    // TCGETS, TIOCSWINSZ, FIONREAD; then TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD.
    let rows = "[(0, op, 0) for op in (0x5401, 0x5414, 0x541b, 0x5412, 0x541c, 0x541d, 0x5423)]";
    for profile in PROFILES {
        let told = ask(profile, &every(16), 16, rows);
        expect(profile, &told, |row| match profile {
            "permissive" => !matches!(row[1], 0x5412 | 0x541c),
            _ => !matches!(row[1], 0x5412 | 0x541c | 0x541d | 0x5423),
        });
    }
}
