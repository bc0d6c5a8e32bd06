//! `codebeaker image`: the image store below the state directory.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::{FormatArgs, OutputFormat, bytes, emit, emit_json, emit_table};
use super::{CliError, CommonArgs, compose};
use crate::config::Config;
use crate::image::recipe::Recipe;

/// The images that sandboxes run on
///
/// The image `host`, a read-only view of this host's own programs, is always there.
#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    call: ImageCall,
}

#[derive(Debug, Subcommand)]
enum ImageCall {
    Import(ImportArgs),
    List(ListArgs),
    Inspect(InspectArgs),
    Remove(RemoveArgs),
    Build(BuildArgs),
}

/// Builds an image from a recipe: Debian packages, by mmdebstrap, without Docker
///
/// RECIPE is one of `--list`, or the path of a file of your own. The packages are fetched from a Debian mirror (http_proxy is honoured).
/// Ctrl-C leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker image build --list
  codebeaker image build ruby
  codebeaker image build ./lua.toml --name lua-dev")]
struct BuildArgs {
    /// Name of a recipe, or path of one
    #[arg(required_unless_present = "list")]
    recipe: Option<String>,
    /// Name to keep the image under [default: the recipe's]
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// Lists the recipes
    #[arg(long, conflicts_with_all = ["recipe", "name"])]
    list: bool,
    #[command(flatten)]
    format: FormatArgs,
}

/// Imports an image from a file or directory and prints its name
///
/// SOURCE is a directory that holds a root file system, or a tar of one as `docker export` writes it (plain, gzip or zstd).
/// Devices, set-id bits and privileged attributes are left out, and counted on standard error. Ctrl-C leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  docker export CONTAINER > rootfs.tar && codebeaker image import rootfs.tar --name python-slim
  codebeaker image import ./rootfs --name mine
  codebeaker image import busybox.tar.gz           under the name busybox")]
struct ImportArgs {
    /// Directory or tar
    source: PathBuf,
    /// Name to keep it under, such as python-slim or python:3.12 [default: SOURCE's name up to its first dot]
    #[arg(long, value_name = "N")]
    name: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Lists the images
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  codebeaker image list
  codebeaker image list -o json | jq -r '.images[].name'"
)]
struct ListArgs {
    #[command(flatten)]
    format: FormatArgs,
}

/// Prints all that is known about an image, as JSON
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  codebeaker image inspect host | jq .binds")]
struct InspectArgs {
    /// Name of the image
    name: String,
}

/// Removes images; one that a session uses stays and is an error
#[derive(Debug, Args)]
#[command(
    visible_alias = "rm",
    after_help = "\
Example:
  codebeaker image remove python-slim"
)]
struct RemoveArgs {
    /// Names of the images
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(super) fn image(common: &CommonArgs, args: ImageArgs) -> Result<(), CliError> {
    let config = common.load()?.config;
    match args.call {
        ImageCall::Import(args) => {
            let row = compose::image_import(&config, &args.source, args.name.as_deref())?;
            match args.format.format {
                OutputFormat::Table => emit(&format!("{}\n", row.name)),
                OutputFormat::Json => emit_json(&serde_json::json!(row)),
            }
        }
        ImageCall::List(args) => list(&compose::image_list(&config)?, args.format.format),
        ImageCall::Inspect(args) => emit_json(&compose::image_inspect(&config, &args.name)?),
        ImageCall::Build(args) => build(&config, &args),
        ImageCall::Remove(args) => args.names.iter().try_for_each(|name| {
            compose::image_remove(&config, name)?;
            emit(&format!("{name}\n"))
        }),
    }
}

fn build(config: &Config, args: &BuildArgs) -> Result<(), CliError> {
    let Some(recipe) = &args.recipe else { return list_recipes(&compose::recipes(config)?, args.format.format) };
    let row = compose::image_build(config, recipe, args.name.as_deref())?;
    match args.format.format {
        OutputFormat::Table => emit(&format!("{}\n", row.name)),
        OutputFormat::Json => emit_json(&serde_json::json!(row)),
    }
}

fn list_recipes(recipes: &[(Recipe, bool)], format: OutputFormat) -> Result<(), CliError> {
    match format {
        OutputFormat::Json => {
            let rows = recipes.iter().map(|(recipe, there)| {
                let Recipe { name, summary, packages, suite, .. } = recipe;
                serde_json::json!({ "name": name, "summary": summary, "packages": packages, "suite": suite, "built": there })
            });
            emit_json(&serde_json::json!({ "recipes": rows.collect::<Vec<_>>() }))
        }
        OutputFormat::Table => emit_table(
            &["recipe", "what", "packages", "built"],
            recipes.iter().map(|(recipe, there)| {
                let built = if *there { "yes" } else { "no" };
                vec![recipe.name.clone(), recipe.summary.clone(), recipe.packages.join(" "), built.to_owned()]
            }),
        ),
    }
}

fn list(rows: &[compose::ImageRow], format: OutputFormat) -> Result<(), CliError> {
    match format {
        OutputFormat::Json => emit_json(&serde_json::json!({ "images": rows })),
        OutputFormat::Table => emit_table(
            &["name", "size", "created", "source", "digest"],
            rows.iter().map(|row| {
                let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
                let size = or_dash(row.size_bytes.map(bytes));
                vec![row.name.clone(), size, or_dash(row.created.clone()), row.source.to_owned(), or_dash(row.digest.clone())]
            }),
        ),
    }
}
