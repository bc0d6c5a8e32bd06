//! The soak of `scripts/soak` itself, for seconds: that its load runs, and finds nothing.

use std::process::Command;

use crate::support::fixture_user::binary_for;
use crate::support::{Feature, host, page};

pub fn trials() -> Vec<libtest_mimic::Trial> {
    page("harness", &[("a soak of some seconds finds no wrong verdict, lost event or leak", some_seconds)])
}

fn some_seconds() {
    host().need(Feature::Root).need(Feature::Python);
    let soak = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/soak.py");
    let run = Command::new("python3")
        .args(["-B", soak, "0.15", "--server"])
        .arg(binary_for(None))
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .output()
        .expect("Python starts");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    for line in ["wrong_verdict: 0", "lost_event: 0", "leak: 0", "broken: 0"] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    // The control: it did something to see flaws in.
    assert!(said.lines().any(|line| line.starts_with("did: ") && line.contains("session")), "{said}");
}
