//! Where an engine is: a place that the operator names, the server's PATH, the usual places, an image of the engine's name.
//!
//! Invariant: looking does not run anything, and no sentence that comes out holds a path of the host.

use std::path::{Path, PathBuf};

use crate::image::minimal::MinimalRoot;
use crate::image::{ImageName, Store, program_exists};
use crate::language::engines::Engine;

/// What the configuration says of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nothing: look everywhere.
    Anywhere,
    /// Not to be used.
    Off,
    /// This program of the host.
    Program(PathBuf),
    /// This image.
    Image(String),
}

impl Place {
    /// Of the text in the configuration: empty, `off`, `image:NAME` or a path.
    pub fn parse(text: &str) -> Self {
        match text.trim() {
            "" => Self::Anywhere,
            "off" => Self::Off,
            text => match text.strip_prefix("image:") {
                Some(image) => Self::Image(image.to_owned()),
                None => Self::Program(PathBuf::from(text)),
            },
        }
    }
}

/// An engine that was found.
#[derive(Debug, Clone)]
pub enum Found {
    /// A program of the host, for a root of its own.
    Program(Box<MinimalRoot>),
    /// A program of this image.
    Image(String),
}

/// Looks for the engine; the error is a sentence with the cause and the mend.
pub fn find(engine: Engine, key: &str, place: &Place, directories: &[PathBuf], store: &Store) -> Result<Found, String> {
    let program = engine.program();
    match place {
        Place::Off => Err(format!("`{key}` of the configuration switches it off; leave the key empty to have it looked for")),
        Place::Program(path) => minimal(path, program).map_err(|cause| {
            format!("`{key}` of the configuration names a program that can't be used: {cause}; name another one")
        }),
        Place::Image(image) => in_image(image, program, store).ok_or_else(|| {
            format!("`{key}` of the configuration names the image `{image}`, which has no `{program}` or is not there")
        }),
        Place::Anywhere => anywhere(program, directories, store).map_err(|refused| {
            let refused = refused.map(|cause| format!(" (one that was found can't be used: {cause})")).unwrap_or_default();
            format!(
                "there is no `{program}` on the server's PATH, in the usual places or in an image `{program}`{refused}; \
                 install it, or name it with `{key}` in the configuration"
            )
        }),
    }
}

/// The error holds why the last one that was found can't be used.
fn anywhere(program: &str, directories: &[PathBuf], store: &Store) -> Result<Found, Option<String>> {
    let mut refused = None;
    for path in directories.iter().map(|directory| directory.join(program)).filter(|path| path.is_file()) {
        match minimal(&path, program) {
            Ok(found) => return Ok(found),
            Err(cause) => refused = Some(cause),
        }
    }
    in_image(program, program, store).ok_or(refused)
}

fn minimal(path: &Path, program: &str) -> Result<Found, String> {
    MinimalRoot::of(path, program).map(|root| Found::Program(Box::new(root)))
}

fn in_image(image: &str, program: &str, store: &Store) -> Option<Found> {
    // The image `host` is the host itself, where a root of its own is better.
    ImageName::parse(image).ok().filter(|name| !name.is_host())?;
    let root = store.resolve(image).ok()?;
    program_exists(&root, program).then(|| Found::Image(image.to_owned()))
}

#[cfg(test)]
mod tests {
    use crate::image::import::Request;
    use crate::image::{Bounds, Choice, Taken, import};

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        store: Store,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let store = Store::open(&dir.path().join("state")).expect("a store");
            Self { dir, store }
        }

        /// A directory with a real program called `bun`.
        fn with_bun(&self) -> PathBuf {
            let directory = self.dir.path().join("bin");
            std::fs::create_dir_all(&directory).expect("a directory");
            std::fs::copy("/bin/sh", directory.join("bun")).expect("a copy");
            directory
        }

        fn find(&self, place: &str, directories: &[PathBuf]) -> Result<Found, String> {
            find(Engine::Bun, "runtimes.bun", &Place::parse(place), directories, &self.store)
        }
    }

    #[test]
    fn an_engine_is_found_on_the_path_and_in_the_place_that_is_named() {
        let fixture = Fixture::new();
        let directory = fixture.with_bun();
        assert!(matches!(fixture.find("", &["/absent".into(), directory.clone()]), Ok(Found::Program(_))));
        let named = directory.join("bun");
        assert!(matches!(fixture.find(named.to_str().expect("UTF-8"), &[]), Ok(Found::Program(_))));
    }

    #[test]
    fn what_is_not_found_is_told_with_the_mend_and_without_a_path() {
        let fixture = Fixture::new();
        let directory = fixture.with_bun();
        std::fs::write(directory.join("bun"), "#!/bin/sh\n").expect("a script");
        let own = fixture.dir.path().display().to_string();
        for (place, directories) in [
            ("", vec![]),
            ("", vec![directory.clone()]),
            ("off", vec![directory.clone()]),
            ("/absent/bun", vec![]),
            ("image:none", vec![]),
        ] {
            let reason = fixture.find(place, &directories).expect_err("not found");
            assert!(
                reason.contains("runtimes.bun") && !reason.contains(&own) && !reason.contains("/absent"),
                "{place}: {reason}"
            );
        }
        assert!(fixture.find("", &[directory]).expect_err("a script").contains("no ELF program"));
    }

    #[test]
    fn an_image_of_the_engines_name_is_the_last_place() {
        let fixture = Fixture::new();
        let root = fixture.dir.path().join("root");
        std::fs::create_dir_all(root.join("usr/bin")).expect("directories");
        std::fs::copy("/bin/sh", root.join("usr/bin/bun")).expect("a copy");
        let request = Request {
            source: &root,
            name: "bun",
            choice: &Choice::native(),
            taken: Taken::Refuse,
            bounds: Bounds::default(),
            cancel: &std::sync::atomic::AtomicBool::new(false),
        };
        import(&fixture.store, request, &mut |_| {}).expect("imported");
        assert!(matches!(fixture.find("", &[]), Ok(Found::Image(image)) if image == "bun"));
        assert!(matches!(fixture.find("image:bun", &[]), Ok(Found::Image(_))));
        assert!(matches!(fixture.find("", &[fixture.with_bun()]), Ok(Found::Program(_))), "the PATH comes first");
        assert!(fixture.find("image:host", &[]).is_err());
    }
}
