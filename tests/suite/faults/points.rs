//! Which points of a sweep are tried: all of them, one shard of all, or a sample that moves on with each commit.
//!
//! Invariant: as many commits as a stretch is long try every point. `CODEBEAKER_TEST_SWEEP` is `full` for every point, `2/8` for
//! the second of eight shards of them, a number for that many of each kind; `CODEBEAKER_TEST_SEED` takes the place of the number
//! of commits, and is printed.

/// How many points of a kind a run tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sweep {
    Full,
    /// `number` from 1 to `of`.
    Shard {
        number: usize,
        of: usize,
    },
    Sample(usize),
}

impl Sweep {
    /// What the variable says; a word that is none of the three fails the trial.
    fn parse(text: &str, default: usize) -> Self {
        let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("CODEBEAKER_TEST_SWEEP is `{text}`"));
        match (text, text.split_once('/')) {
            ("", _) => Self::Sample(default),
            ("full", _) => Self::Full,
            (_, Some((first, last))) => {
                let (first, last) = (number(first), number(last));
                assert!((1..=last).contains(&first), "CODEBEAKER_TEST_SWEEP is `{text}`");
                Self::Shard { number: first, of: last }
            }
            (_, None) => Self::Sample(number(text)),
        }
    }
}

/// Which of `calls` points are tried, from 1; `default` of them unless the run says otherwise.
pub fn points(calls: usize, default: usize) -> Vec<usize> {
    let sweep = Sweep::parse(&std::env::var("CODEBEAKER_TEST_SWEEP").unwrap_or_default(), default);
    choose(calls, sweep, seed())
}

fn choose(calls: usize, sweep: Sweep, seed: usize) -> Vec<usize> {
    match sweep {
        Sweep::Shard { number, of } => (1..=calls).filter(|point| point % of == number % of).collect(),
        // One point in each of as many equal stretches, so that no stretch of the way is left out.
        Sweep::Sample(wanted) if wanted < calls => (0..wanted)
            .map(|stretch| {
                let (from, to) = (stretch * calls / wanted, (stretch + 1) * calls / wanted);
                1 + from + (seed + stretch) % (to - from)
            })
            .collect(),
        Sweep::Full | Sweep::Sample(_) => (1..=calls).collect(),
    }
}

/// The number of commits below the one that is tested, so that the next commit tries the next points.
fn seed() -> usize {
    let chosen = std::env::var("CODEBEAKER_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = chosen.or_else(commits).unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        since.subsec_nanos() as usize
    });
    println!("CODEBEAKER_TEST_SEED={seed}");
    seed
}

fn commits() -> Option<usize> {
    let mut git = std::process::Command::new("git");
    git.args(["rev-list", "--count", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = git.stderr(std::process::Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The claims of this page.
pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    crate::support::page(
        "harness",
        &[
            ("samples of a sweep move on until every point was tried", rotation),
            ("the shards of a sweep are all of it, each point once", shards),
        ],
    )
}

fn rotation() {
    let (calls, wanted) = (101, 7);
    let of = |seed| choose(calls, Sweep::Sample(wanted), seed);
    assert!((0..30).all(|seed| of(seed).len() == wanted), "a sample is no larger than asked for");
    let tried = |seeds| (0..seeds).flat_map(of).collect::<std::collections::BTreeSet<_>>();
    let longest = calls.div_ceil(wanted);
    assert_eq!(tried(longest).into_iter().collect::<Vec<_>>(), choose(calls, Sweep::Full, 0));
    assert!(tried(longest / 2).len() < calls, "the control");
    assert_eq!(choose(5, Sweep::Sample(7), 3), [1, 2, 3, 4, 5], "more than there are is all");
}

fn shards() {
    let mut all: Vec<usize> = (1..=4).flat_map(|number| choose(10, Sweep::Shard { number, of: 4 }, 0)).collect();
    all.sort_unstable();
    assert_eq!(all, choose(10, Sweep::Full, 0));
    assert_eq!(Sweep::parse("4/4", 3), Sweep::Shard { number: 4, of: 4 });
    assert_eq!((Sweep::parse("", 3), Sweep::parse("5", 3)), (Sweep::Sample(3), Sweep::Sample(5)));
}
