//! A trial is a sentence and a function that panics when the sentence is not true. A skip is a word of its own, never silent.
//!
//! A trial that failed among the others is tried once more, alone: a machine that many share is slow now and then. It is named
//! `unsteady`, and fails the run when it fails again. On an ordinary host those about walls are not: what gets through once gets through.
//!
//! Invariant: the last line of a run is `N passed, N failed, N skipped`; every skip stands above it with its reason, and every
//! failure with its name and what it said.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use libtest_mimic::{Arguments, Completion, Conclusion, Failed, Trial};

/// What a trial throws when the host lacks something that it needs.
struct Skip {
    reason: String,
}

/// Skipped trials with their reasons, in the order they ended.
static SKIPPED: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Failed trials with what they said, in the order they ended.
static FAILED: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// So much of what a failure said stands in the summary, in characters; all of it stands above.
const SAID_MAX: usize = 2_000;

/// With more failures than this something else than the machine's pace is wrong.
const TRIED_AGAIN_MAX: usize = 12;

/// Pages whose claims hold always or not at all. An emulated machine, whose pace is uneven, repeats what the host has shown.
const NEVER_AGAIN: [&str; 5] = ["escape: ", "isolates: ", "egress: ", "faults: ", "warm: "];

thread_local! {
    /// Where the last panic of this thread was: a payload alone does not say.
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes a trial; `name` is a sentence, prefixed with the module that it stands in.
pub fn trial(module: &str, name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    let full_name = format!("{module}: {name}");
    let reported = full_name.clone();
    Trial::ignorable_test(full_name, move || outcome(&reported, test))
}

/// Makes the trials of one page.
pub fn page(module: &str, trials: &[(&str, fn())]) -> Vec<Trial> {
    trials.iter().map(|&(name, test)| trial(module, name, test)).collect()
}

/// Ends the running trial as skipped.
pub fn skip(reason: &str) -> ! {
    resume_unwind(Box::new(Skip { reason: reason.to_owned() }))
}

fn outcome(name: &str, test: impl FnOnce()) -> Result<Completion, Failed> {
    let payload = match catch_unwind(AssertUnwindSafe(test)) {
        Ok(()) => return Ok(Completion::Completed),
        Err(payload) => payload,
    };
    if let Some(skip) = payload.downcast_ref::<Skip>() {
        SKIPPED.lock().expect("no holder panics").push((name.to_owned(), skip.reason.clone()));
        return Ok(Completion::ignored_with(&skip.reason));
    }
    let message = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    let place = PANIC_PLACE.with_borrow(Clone::clone);
    let said = format!("{place}: {}", message.unwrap_or("a panic without a message"));
    FAILED.lock().expect("no holder panics").push((name.to_owned(), said.clone()));
    Err(said.into())
}

/// Runs the trials that `make` makes; `end` is called after the last of them and gives the failures that belong to no single trial.
pub fn run(make: impl Fn() -> Vec<Trial>, end: impl FnOnce() -> Vec<String>) -> u8 {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |place| format!("{}:{}", place.file(), place.line()));
        PANIC_PLACE.with_borrow_mut(|kept| *kept = place);
    }));
    let mut arguments = Arguments::from_args();
    // A trial mostly waits for a server, but a hostile one keeps a core busy.
    arguments.test_threads.get_or_insert(3);
    let listing = arguments.list;
    let mut conclusion = libtest_mimic::run(&arguments, make());
    if !listing {
        try_again(&mut conclusion, make);
    }
    let left = end();
    if listing {
        return 0;
    }
    report(&conclusion, &left)
}

/// What failed, one by one and with nothing beside it; the conclusion counts the second outcome.
fn try_again(conclusion: &mut Conclusion, make: impl Fn() -> Vec<Trial>) {
    let failed = std::mem::take(&mut *FAILED.lock().expect("no holder panics"));
    let too_many = failed.len() > TRIED_AGAIN_MAX;
    let mut bad = Vec::new();
    for (name, said) in failed {
        if too_many || (super::pace() == 1 && NEVER_AGAIN.iter().any(|page| name.starts_with(page))) {
            bad.push((name, said));
            continue;
        }
        println!("== once more, alone: {name}");
        let arguments = Arguments { exact: true, filter: Some(name.clone()), test_threads: Some(1), ..Arguments::default() };
        if makes_good(conclusion, &libtest_mimic::run(&arguments, make())) {
            println!("unsteady: {name} – failed among the others, passed alone");
        } else {
            bad.push((name, said));
        }
    }
    *FAILED.lock().expect("no holder panics") = bad;
}

/// Counts a failure as passed when the second try did pass: one that was skipped or not found proves nothing.
fn makes_good(conclusion: &mut Conclusion, again: &Conclusion) -> bool {
    let good = again.num_passed == 1 && again.num_failed == 0;
    if good {
        conclusion.num_failed -= 1;
        conclusion.num_passed += 1;
    }
    good
}

fn report(conclusion: &Conclusion, left: &[String]) -> u8 {
    let skipped = SKIPPED.lock().expect("no holder panics");
    for (name, reason) in skipped.iter() {
        println!("skipped: {name} – {reason}");
    }
    for (name, said) in FAILED.lock().expect("no holder panics").iter() {
        println!("failed: {name} – {}", one_line(said));
    }
    for sentence in left {
        println!("failed: after the last trial – {sentence}");
    }
    let failed = conclusion.num_failed + left.len() as u64;
    println!("{} passed, {failed} failed, {} skipped", conclusion.num_passed, conclusion.num_ignored);
    if failed == 0 { 0 } else { 101 }
}

/// The beginning of `said` as one line, for whoever has only the end of a log.
fn one_line(said: &str) -> String {
    let words: Vec<&str> = said.split_whitespace().collect();
    words.join(" ").chars().take(SAID_MAX).collect()
}

/// The claims of this page, as trials of the suite itself.
pub fn trials() -> Vec<Trial> {
    let outcome_of = |test: fn()| outcome("a trial within a trial", test);
    vec![
        trial("harness", "a trial that panics fails and says where", move || {
            let failed = outcome_of(|| assert_eq!(1, 2, "numbers differ")).err().expect("it panicked");
            // This failure was only tried; it must not stand in the ledger of the run.
            FAILED.lock().expect("no holder panics").retain(|(name, _)| name != "a trial within a trial");
            let message = failed.message().expect("a failure has a message");
            assert!(message.contains("numbers differ") && message.contains("trial.rs:"), "{message}");
        }),
        trial("harness", "the summary says a failure in one line, cut where it is too long", || {
            assert_eq!(one_line("left: 1\n right:  2\0"), "left: 1 right: 2\0");
            assert_eq!(one_line(&"ä".repeat(SAID_MAX + 1)).chars().count(), SAID_MAX);
        }),
        trial("harness", "a trial that returns passes", move || {
            assert!(matches!(outcome_of(|| {}), Ok(Completion::Completed)));
        }),
        trial("harness", "only a second try that passes makes a failure good", || {
            let counts = |num_passed, num_failed, num_ignored| Conclusion {
                num_filtered_out: 0,
                num_passed,
                num_failed,
                num_ignored,
                num_measured: 0,
            };
            let after = |again: &Conclusion| {
                let mut all = counts(5, 2, 0);
                (makes_good(&mut all, again), all.num_passed, all.num_failed)
            };
            assert_eq!(after(&counts(1, 0, 0)), (true, 6, 1));
            for (what, again) in [("failed", counts(0, 1, 0)), ("skipped", counts(0, 0, 1)), ("not found", counts(0, 0, 0))] {
                assert_eq!(after(&again), (false, 5, 2), "{what}");
            }
        }),
        trial("harness", "a trial that skips is neither passed nor failed", move || {
            let skipped = outcome_of(|| skip("the reason"));
            // This skip was only tried; it must not stand in the ledger of the run.
            SKIPPED.lock().expect("no holder panics").retain(|(name, _)| name != "a trial within a trial");
            assert!(matches!(skipped, Ok(Completion::Ignored { reason: Some(reason) }) if reason == "the reason"));
        }),
    ]
}
