//! `image import --replace` is killed before every step by which it changes the disk: the name means the old image or the new one, whole,
//! and what is left of the other goes when the store is next opened.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use super::tracer::{Fault, Report, Role, Rule, trace};
use crate::images::made::marked;
use crate::support::fixture_user::{binary_for, directory_of};
use crate::support::{Feature, cli, eventually, host, page};

pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    page(
        "faults",
        &[("an import that replaces an image is killed before every step and the name never means nothing", replaced)],
    )
}

/// What changes the disk, as the importing process itself calls it.
const STEPS: [&str; 12] = [
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "fsync",
    "fdatasync",
    "syncfs",
    "write",
];

fn counts(_: Role, name: &str) -> bool {
    STEPS.contains(&name)
}

/// A process that nobody has waited for yet is a zombie then.
fn has_ended(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

struct Stores {
    state: TempDir,
    old: TempDir,
    new: TempDir,
}

impl Stores {
    fn call(&self, arguments: &[&str]) -> cli::Output {
        cli::Invocation::new(arguments).state_dir(self.state.path()).run()
    }

    fn place(&self, name: &str) -> PathBuf {
        self.state.path().join("images").join(name)
    }

    fn count(&self, name: &str) -> usize {
        std::fs::read_dir(self.place(name)).map_or(0, Iterator::count)
    }

    fn import(&self, layout: &Path) -> Child {
        let mut command = Command::new(binary_for(None));
        command
            .args(["image", "import", "--replace", "--name", "it", "--state-dir"])
            .arg(self.state.path())
            .arg(layout.join("image"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts")
    }

    fn reset(&self) {
        assert!(self.import(self.old.path()).wait().expect("it ends").success());
        assert_eq!(self.means(), "old");
    }

    /// Lets the new image take the place of the old one, with a fault at its n-th step.
    fn replace(&self, nth: usize, fault: Fault) -> Report {
        // The import waits for this lock before its first step, and so can be followed from there.
        let file = File::open(self.place("lock")).expect("the store is there");
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("nobody else holds it");
        let mut child = self.import(self.new.path());
        let waits = || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
            locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&format!(" {} ", child.id())))
        };
        assert!(eventually(Duration::from_secs(60), waits), "the import waits for the store");
        let seeds = [(child.id().cast_signed(), Role::Server)];
        let rule = Rule { seeds: &seeds, counted: &[Role::Server], counts, nth, fault };
        let (ended, report) = trace(&rule, || {
            drop(lock);
            // Waiting for it here would take the tracer's stops away.
            eventually(Duration::from_secs(60), || has_ended(child.id()))
        });
        assert!(ended, "the import ends: {report:?}");
        child.wait().expect("the trial's own child");
        report
    }

    /// What the file of the one image says that the store has; all of that image is there, and nothing else.
    fn means(&self) -> String {
        // Who unpacks for an import that was killed holds its directory until it has ended too.
        let clean = || {
            self.call(&["image", "list"]).expect_code(0);
            (self.count("names"), self.count("layers"), self.count("tmp")) == (1, 1, 0)
        };
        assert!(eventually(Duration::from_secs(60), clean), "one image and nothing half-made");
        let it = self.call(&["image", "inspect", "it"]).expect_code(0).json();
        for digest in it["blobs"].as_array().expect("digests") {
            let file = digest.as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
            assert!(self.place("blobs/sha256").join(&file).is_file(), "{file} of {it}");
        }
        let root = Path::new(it["root"].as_str().expect("a path"));
        std::fs::read_to_string(root.join("marker")).expect("the image is whole")
    }
}

fn replaced() {
    host().need(Feature::Root).need(Feature::X86).need(Feature::ImageTools);
    let stores = Stores { state: directory_of(None), old: marked("old"), new: marked("new") };
    stores.reset();
    let steps = stores.replace(0, Fault::Nothing).calls;
    assert!(steps > 10 && stores.means() == "new", "the control: nobody is killed in {steps} steps");
    let mut meant = BTreeSet::new();
    for nth in 1..=steps {
        stores.reset();
        let report = stores.replace(nth, Fault::Kill(Role::Server));
        let means = stores.means();
        assert!(report.hit.is_some() || means == "new", "step {nth} of {steps}: {report:?}");
        meant.insert(means);
    }
    println!("killed before each of {steps} steps");
    assert_eq!(meant, BTreeSet::from(["new".to_owned(), "old".to_owned()]), "{steps} steps lie on both sides of the change");
    let pruned = stores.call(&["image", "prune", "-o", "json"]).expect_code(0).json();
    assert!(pruned["blobs"].is_u64(), "{pruned}");
    let kept = stores.call(&["image", "inspect", "it"]).expect_code(0).json();
    assert_eq!(
        stores.count("blobs/sha256"),
        kept["blobs"].as_array().map_or(0, Vec::len),
        "documents of killed imports go with prune"
    );
}
