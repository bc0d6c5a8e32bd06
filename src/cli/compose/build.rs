//! `codebeaker image build`: from a recipe to an image of the store.
//!
//! Invariant: the tar between the two lies below the state directory, under a lock, and goes however the build ends; what a
//! killed build left is replaced by the next one of that name.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use indicatif::ProgressBar;
use rustix::fs::FlockOperation;

use super::images::{ImageRow, Incoming, draw_target, image_import, interruptible};
use super::{CliError, store};
use crate::cli::error::chain;
use crate::config::Config;
use crate::image::recipe::{self, Recipe, RecipeError};
use crate::image::{ImageError, Taken, program_exists};

/// The built-in recipes, and whether an image of each name is there.
pub fn recipes(config: &Config) -> Result<Vec<(Recipe, bool)>, CliError> {
    let store = store(config)?;
    let recipes = recipe::built_in().map_err(|error| told(&error))?;
    let mut rows = Vec::with_capacity(recipes.len());
    for recipe in recipes {
        let there = store.resolve(&recipe.name).is_ok();
        rows.push((recipe, there));
    }
    Ok(rows)
}

/// Builds a recipe and imports the result.
pub fn image_build(config: &Config, recipe: &str, name: Option<&str>) -> Result<ImageRow, CliError> {
    let recipe = recipe::find(recipe).map_err(|error| told(&error))?;
    let name = name.unwrap_or(&recipe.name);
    let store = store(config)?;
    // Minutes would be lost on a name that can't be had.
    match store.info(name) {
        Err(ImageError::NotFound { .. }) => {}
        Ok(_) => return Err(ImageError::AlreadyExists { name: name.to_owned() }.into()),
        Err(error) => return Err(error.into()),
    }
    let tar = Tar::claim(config, name)?;
    let bar = ProgressBar::with_draw_target(None, draw_target());
    let made = interruptible(|cancel| {
        let done = recipe::bootstrap(&recipe, &tar.path, cancel, &mut |line| {
            bar.set_message(format!("{name}: {}", line.trim().trim_start_matches("I: ")));
            bar.tick();
        });
        match done {
            Err(RecipeError::Cancelled) => Err(ImageError::Cancelled),
            done => Ok(done),
        }
    });
    bar.finish_and_clear();
    made?.map_err(|error| told(&error))?;
    let row = image_import(config, &tar.path, Incoming { name: Some(name), platform: None, tag: None, taken: Taken::Refuse })?;
    let root = store.resolve(name)?;
    match recipe.programs.iter().find(|program| !program_exists(&root, program)) {
        None => Ok(row),
        Some(program) => Err(CliError::new(format!("the image `{name}` was made, but has no `{program}`"))
            .hint("name a package that brings it in the recipe, and `codebeaker image remove` this one")),
    }
}

fn told(error: &RecipeError) -> CliError {
    let hint = match error {
        RecipeError::Unknown { .. } => {
            let names: Vec<String> = recipe::built_in().unwrap_or_default().into_iter().map(|recipe| recipe.name).collect();
            format!("there are: {}; a file of your own is named with its path: ./mine.toml", names.join(", "))
        }
        RecipeError::Read { .. } => "check the path and its permissions".into(),
        RecipeError::Syntax { .. } | RecipeError::Field { .. } => "docs/images.md has the fields of a recipe".into(),
        RecipeError::NoTool => "apt-get install mmdebstrap (Debian, Ubuntu)".into(),
        RecipeError::Run(_) => "is it executable, and has the host processes and memory left?".into(),
        RecipeError::Failed { .. } => {
            "is a Debian mirror within reach (http_proxy, `mirror` of the recipe)? Without root it needs ranges in /etc/subuid and newuidmap".into()
        }
        RecipeError::Cancelled => "nothing of it stays".into(),
    };
    CliError::new(chain(error)).hint(hint)
}

/// The tar on its way from mmdebstrap to the store.
struct Tar {
    path: PathBuf,
    _lock: File,
}

impl Tar {
    fn claim(config: &Config, name: &str) -> Result<Self, CliError> {
        let directory = config.state_dir.join("build");
        let failed = |error: std::io::Error| CliError::new(format!("{} can't be used: {error}", directory.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let path = directory.join(format!("{name}.tar"));
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(_) => {
                Err(CliError::new(format!("`{name}` is being built already")).hint("wait for it, or take another --name"))
            }
        }
    }
}

impl Drop for Tar {
    fn drop(&mut self) {
        // The next build of that name would replace it.
        std::fs::remove_file(&self.path).ok();
    }
}
