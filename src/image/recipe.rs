//! Recipes: root file systems from Debian packages, made by mmdebstrap without Docker.
//!
//! Invariants: a `Recipe` has been checked, so that nothing in it can be an option of mmdebstrap or apt; a build that fails or is
//! cancelled leaves no file and no process. The result is a tar, to be imported like any other.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde::Deserialize;
use thiserror::Error;

use super::ImageName;

/// Longest file taken.
const BYTES_MAX: u64 = 16 << 10;
const PACKAGES_MAX: usize = 256;
/// How long mmdebstrap gets to clear up after it was told to end.
const CLEAR_UP_TIME: Duration = Duration::from_secs(20);
/// Lines of mmdebstrap that are kept to say why it failed.
const LINES_KEPT: usize = 12;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the image.
    pub name: String,
    /// What it is, for people.
    pub summary: String,
    /// Debian packages, besides those that Debian calls essential.
    pub packages: Vec<String>,
    /// Programs that must be in the image in the end.
    pub programs: Vec<String>,
    /// Debian's release.
    #[serde(default = "default_suite")]
    pub suite: String,
    /// Where packages are fetched from; absent: Debian's own mirrors.
    pub mirror: Option<String>,
    /// Patterns of paths that are left out, besides [`EXCLUDED`].
    #[serde(default)]
    pub exclude: Vec<String>,
}

fn default_suite() -> String {
    "bookworm".into()
}

/// Left out of every image: texts for people who sit at a terminal of it.
const EXCLUDED: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];

/// Why there is no image.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// No built-in recipe has that name.
    #[error("there is no recipe `{name}`")]
    Unknown {
        /// As asked.
        name: String,
    },
    /// A file can't be read.
    #[error("reading {} failed", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not TOML, an unknown or missing field, or a wrong type.
    #[error("{file}: not a recipe: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// What the parser said, with the line.
        message: String,
    },
    /// A value that can't be used.
    #[error("{file}: `{field}` holds {found:?}, but takes {takes}")]
    Field {
        /// The file.
        file: String,
        /// Which field.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What may stand there.
        takes: &'static str,
    },
    /// There is no mmdebstrap.
    #[error("mmdebstrap is not installed")]
    NoTool,
    /// It can't be run.
    #[error("mmdebstrap can't be run")]
    Run(#[source] std::io::Error),
    /// It ended badly.
    #[error("mmdebstrap failed with {status}:\n{said}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        said: String,
    },
    /// Told to stop.
    #[error("the build was cancelled")]
    Cancelled,
}

const EMBEDDED: [(&str, &str); 9] = [
    ("rootfs/recipes/bash.toml", include_str!("../../rootfs/recipes/bash.toml")),
    ("rootfs/recipes/python.toml", include_str!("../../rootfs/recipes/python.toml")),
    ("rootfs/recipes/python-data.toml", include_str!("../../rootfs/recipes/python-data.toml")),
    ("rootfs/recipes/node.toml", include_str!("../../rootfs/recipes/node.toml")),
    ("rootfs/recipes/go.toml", include_str!("../../rootfs/recipes/go.toml")),
    ("rootfs/recipes/csharp.toml", include_str!("../../rootfs/recipes/csharp.toml")),
    ("rootfs/recipes/ruby.toml", include_str!("../../rootfs/recipes/ruby.toml")),
    ("rootfs/recipes/gcc.toml", include_str!("../../rootfs/recipes/gcc.toml")),
    ("rootfs/recipes/rust.toml", include_str!("../../rootfs/recipes/rust.toml")),
];

/// The built-in recipes.
pub fn built_in() -> Result<Vec<Recipe>, RecipeError> {
    EMBEDDED.iter().map(|(file, text)| parse(file, text)).collect()
}

/// A built-in recipe by name, or one of the operator's own by a path: with a slash, or ending in `.toml`.
pub fn find(name: &str) -> Result<Recipe, RecipeError> {
    if name.contains('/') || Path::new(name).extension().is_some_and(|extension| extension == "toml") {
        let unreadable = |source| RecipeError::Read { path: name.into(), source };
        let mut text = String::new();
        File::open(name).map_err(unreadable)?.take(BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
        return parse(name, &text);
    }
    let unknown = || RecipeError::Unknown { name: name.chars().take(80).collect() };
    built_in()?.into_iter().find(|recipe| recipe.name == name).ok_or_else(unknown)
}

fn parse(file: &str, text: &str) -> Result<Recipe, RecipeError> {
    let recipe: Recipe =
        toml::from_str(text).map_err(|error| RecipeError::Syntax { file: file.to_owned(), message: error.to_string() })?;
    check(&recipe).map_err(|(field, found, takes)| RecipeError::Field { file: file.to_owned(), field, found, takes })?;
    Ok(recipe)
}

/// The first field that can't be used: its name, what stands there, what may.
fn check(recipe: &Recipe) -> Result<(), (&'static str, String, &'static str)> {
    let refuse = |field, found: &str, takes| Err((field, found.to_owned(), takes));
    if ImageName::parse(&recipe.name).map_or(true, |name| name.is_host()) {
        return refuse("name", &recipe.name, "the name of an image, and not `host`");
    }
    if recipe.summary.is_empty() || recipe.summary.chars().any(char::is_control) {
        return refuse("summary", &recipe.summary, "one line for people");
    }
    if recipe.packages.is_empty() || recipe.packages.len() > PACKAGES_MAX {
        return refuse("packages", &recipe.packages.len().to_string(), "1 to 256 Debian packages");
    }
    if let Some(package) = recipe.packages.iter().find(|package| !is_package(package)) {
        return refuse("packages", package, "names of Debian packages: lower-case letters, digits and `+.-`");
    }
    let is_program = |program: &String| {
        program.starts_with(|c: char| c.is_ascii_alphanumeric())
            && program.chars().all(|c| c.is_ascii_alphanumeric() || "+._-".contains(c))
    };
    if let Some(program) = recipe.programs.iter().find(|program| !is_program(program)) {
        return refuse("programs", program, "names of programs");
    }
    let suite = &recipe.suite;
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !suite.starts_with(|c: char| c.is_ascii_lowercase()) || !suite.chars().all(is_word) {
        return refuse("suite", suite, "a release of Debian, such as bookworm");
    }
    if let Some(mirror) = recipe.mirror.as_ref().filter(|mirror| !is_mirror(mirror)) {
        return refuse("mirror", mirror, "an address that begins with http:// or https://, without white space");
    }
    let is_pattern = |pattern: &String| {
        pattern.starts_with('/') && !pattern.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\'')
    };
    if let Some(pattern) = recipe.exclude.iter().find(|pattern| !is_pattern(pattern)) {
        return refuse("exclude", pattern, "absolute paths with `*`, without white space");
    }
    Ok(())
}

/// Debian policy 5.6.1.
fn is_package(package: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    package.len() >= 2
        && package.len() <= 128
        && package.starts_with(letter)
        && package.chars().all(|c| letter(c) || "+.-".contains(c))
        // apt takes a name that ends in one of these for an order to remove or install.
        && !package.ends_with('-')
        && (!package.ends_with('+') || package.ends_with("++"))
}

fn is_mirror(mirror: &str) -> bool {
    let scheme = mirror.starts_with("http://") || mirror.starts_with("https://");
    scheme && mirror.len() <= 512 && mirror.chars().all(|c| c.is_ascii_graphic() && !"'\"[]".contains(c))
}

/// The command that makes a tar of the recipe.
fn command(recipe: &Recipe, tar: &Path) -> Vec<String> {
    let mut argv: Vec<String> =
        ["mmdebstrap", "--variant=essential", "--format=tar", "--dpkgopt=force-unsafe-io"].map(String::from).into();
    argv.push(format!("--include={}", recipe.packages.join(",")));
    let excluded = EXCLUDED.iter().copied().chain(recipe.exclude.iter().map(String::as_str));
    argv.extend(excluded.map(|pattern| format!("--dpkgopt=path-exclude={pattern}")));
    argv.extend([recipe.suite.clone(), tar.to_string_lossy().into_owned()]);
    argv.extend(recipe.mirror.clone());
    argv
}

/// Makes the tar; `progress` gets each line of mmdebstrap, on the caller's thread. Nothing is left of a build that `cancel` ended.
pub fn bootstrap(recipe: &Recipe, tar: &Path, cancel: &AtomicBool, progress: &mut dyn FnMut(&str)) -> Result<(), RecipeError> {
    let argv = command(recipe, tar);
    let mut child = Command::new(&argv[0])
        .args(&argv[1..])
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Its own group: an interrupt of the terminal reaches it once, from here.
        .process_group(0)
        .spawn()
        .map_err(
            |error| if error.kind() == std::io::ErrorKind::NotFound { RecipeError::NoTool } else { RecipeError::Run(error) },
        )?;
    let Some(stderr) = child.stderr.take() else { return Err(RecipeError::Run(std::io::Error::other("no pipe"))) };
    let (sender, lines) = std::sync::mpsc::sync_channel::<String>(64);
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut kept = std::collections::VecDeque::new();
    let status = loop {
        if cancel.load(Ordering::Relaxed) {
            end(&mut child).map_err(RecipeError::Run)?;
            return Err(RecipeError::Cancelled);
        }
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                progress(&line);
                if kept.len() == LINES_KEPT {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break child.wait().map_err(RecipeError::Run)?,
        }
    };
    // It has ended: its end of the pipe is what the loop has seen.
    reader.join().ok();
    if status.success() {
        return Ok(());
    }
    Err(RecipeError::Failed { status, said: Vec::from(kept).join("\n") })
}

/// An interrupt first, on which mmdebstrap removes what it made; it is over when nobody of its group lives.
fn end(child: &mut Child) -> std::io::Result<()> {
    let group = Pid::from_child(child);
    kill_process_group(group, Signal::INT)?;
    let deadline = Instant::now() + CLEAR_UP_TIME;
    while child.try_wait()?.is_none() || test_kill_process_group(group).is_ok() {
        if Instant::now() >= deadline {
            // An error says that the last one has just gone.
            kill_process_group(group, Signal::KILL).ok();
            child.wait()?;
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_recipes_are_sound_and_named_as_their_files() {
        let recipes = built_in().expect("sound");
        for (recipe, (file, _)) in recipes.iter().zip(EMBEDDED) {
            assert_eq!(file, format!("rootfs/recipes/{}.toml", recipe.name));
            assert!(!recipe.programs.is_empty());
        }
        assert_eq!(find("python-data").expect("there").packages.len(), 4);
        assert!(matches!(find("cobol"), Err(RecipeError::Unknown { .. })));
    }

    const SOUND: &str =
        "name = \"mine\"\nsummary = \"x\"\npackages = [\"lua5.4\", \"g++\"]\nprograms = [\"lua5.4\"]\nsuite = \"trixie\"\n";

    #[test]
    fn nothing_in_a_recipe_can_be_an_option_or_another_command() {
        assert!(parse("mine.toml", SOUND).is_ok(), "the control");
        let hostile = [
            ("\"mine\"", "\"../mine\"", "name"),
            ("\"mine\"", "\"host\"", "name"),
            ("\"lua5.4\", ", "\"--aptopt=x\", ", "packages"),
            ("\"lua5.4\", ", "\"a,b\", ", "packages"),
            ("\"lua5.4\", ", "\"./x.deb\", ", "packages"),
            ("\"lua5.4\", ", "\"?installed\", ", "packages"),
            ("\"lua5.4\", ", "\"dash-\", ", "packages"),
            ("\"lua5.4\", ", "\"dash+\", ", "packages"),
            ("\"trixie\"", "\"--setup-hook=id\"", "suite"),
            ("\"trixie\"", "\"a b\"", "suite"),
            ("\"trixie\"", "\"trixie\"\nmirror = \"/etc/passwd\"", "mirror"),
            ("\"trixie\"", "\"trixie\"\nmirror = \"http://x y\"", "mirror"),
            ("\"trixie\"", "\"trixie\"\nmirror = \"deb [trusted=yes] http://x\"", "mirror"),
            ("\"trixie\"", "\"trixie\"\nexclude = [\"usr\"]", "exclude"),
            ("[\"lua5.4\"]", "[\"/bin/sh\"]", "programs"),
            ("\"x\"", "\"x\\ny\"", "summary"),
            ("\"trixie\"", "\"trixie\"\nhook = \"id\"", "hook"),
        ];
        for (from, to, field) in hostile {
            let message = parse("mine.toml", &SOUND.replacen(from, to, 1)).expect_err(to).to_string();
            assert!(message.contains("mine.toml") && message.contains(field), "{field}: {message}");
        }
    }

    #[test]
    fn the_command_names_everything_and_ends_with_suite_and_tar() {
        let recipe = parse("mine.toml", SOUND).expect("sound");
        let argv = command(&recipe, Path::new("/state/x.tar"));
        assert!(argv.contains(&"--include=lua5.4,g++".to_owned()));
        assert_eq!(argv[argv.len() - 2..], ["trixie", "/state/x.tar"]);
        let mirrored = Recipe { mirror: Some("http://127.0.0.1/debian".into()), ..recipe };
        assert_eq!(command(&mirrored, Path::new("x")).last().map(String::as_str), Some("http://127.0.0.1/debian"));
    }
}
