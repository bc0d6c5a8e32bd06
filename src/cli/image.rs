//! `codebeaker image`: the image store below the state directory.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::compose::{Incoming, Tls};
use super::output::{FormatArgs, OutputFormat, bytes, emit, emit_json, emit_table, warn};
use super::{CliError, CommonArgs, compose};
use crate::config::Config;
use crate::image::Taken;
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
    Pull(PullArgs),
    List(ListArgs),
    Inspect(InspectArgs),
    Remove(RemoveArgs),
    Prune(PruneArgs),
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
/// SOURCE is what `docker save` or `docker export` writes, an OCI archive, an OCI layout or any other directory; archives may be
/// packed with gzip or zstd. Which of them it is, is found by looking into it. Devices, set-id bits and privileged attributes are left out, and counted on standard error. Ctrl-C leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  docker save python:3.12-slim | gzip > python.tar.gz && codebeaker image import python.tar.gz
  docker export CONTAINER > rootfs.tar && codebeaker image import rootfs.tar --name python-slim
  skopeo copy docker://python:3.12-slim oci:layout && codebeaker image import ./layout --name python-slim
  codebeaker image import ./rootfs --name mine
  codebeaker image import busybox.tar.gz           under the name busybox")]
struct ImportArgs {
    /// Directory or archive
    source: PathBuf,
    /// Name to keep it under, such as python-slim or python:3.12 [default: SOURCE's name up to its first dot]
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// Which image of an archive with several: its tag, such as python:3.12
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    #[command(flatten)]
    incoming: IncomingArgs,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(Debug, Args)]
struct IncomingArgs {
    /// Platform to take of an image for several, such as linux/arm64 [default: this host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Let a name that is taken mean this image from now on
    #[arg(long)]
    replace: bool,
}

impl IncomingArgs {
    fn incoming<'a>(&'a self, name: Option<&'a str>, tag: Option<&'a str>) -> Incoming<'a> {
        let taken = if self.replace { Taken::Replace } else { Taken::Refuse };
        Incoming { name, platform: self.platform.as_deref(), tag, taken }
    }
}

/// Pulls an image from a registry and prints its name
///
/// Credentials are those of `docker login` (~/.docker/config.json and its helpers). Ctrl-C keeps what has come of the blobs, and
/// the next pull goes on from there; `codebeaker image prune` removes it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker image pull python:3.12-slim
  codebeaker image pull ghcr.io/team/tool@sha256:DIGEST --name tool
  codebeaker image pull registry.example.org:5000/tool:v1 --ca-file ca.pem
  codebeaker image pull 127.0.0.1:5000/tool:v1")]
struct PullArgs {
    /// [REGISTRY/]REPOSITORY[:TAG][@sha256:DIGEST]
    reference: String,
    /// Name to keep it under [default: the end of REPOSITORY, with TAG]
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// Speak to this registry without TLS (credentials are readable on the way)
    #[arg(long)]
    plain_http: bool,
    /// Certificates in PEM to believe beside those of the system [default: images.ca_file]
    #[arg(long, value_name = "FILE", conflicts_with = "plain_http")]
    ca_file: Option<PathBuf>,
    #[command(flatten)]
    incoming: IncomingArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Removes what no image needs: parts of pulls that ended early, blobs, root file systems
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  codebeaker image prune")]
struct PruneArgs {
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
            let incoming = args.incoming.incoming(args.name.as_deref(), args.tag.as_deref());
            named(&compose::image_import(&config, &args.source, incoming)?, args.format.format)
        }
        ImageCall::Pull(args) => {
            let incoming = args.incoming.incoming(args.name.as_deref(), None);
            let tls = if args.plain_http { Tls::Plain } else { Tls::Believing(args.ca_file.as_deref()) };
            named(&compose::image_pull(&config, &args.reference, incoming, tls)?, args.format.format)
        }
        ImageCall::List(args) => list(&compose::image_list(&config)?, args.format.format),
        ImageCall::Inspect(args) => emit_json(&compose::image_inspect(&config, &args.name)?),
        ImageCall::Build(args) => build(&config, &args),
        ImageCall::Remove(args) => args.names.iter().try_for_each(|name| {
            compose::image_remove(&config, name)?;
            emit(&format!("{name}\n"))
        }),
        ImageCall::Prune(args) => {
            let pruned = compose::image_prune(&config)?;
            if pruned.pull_running {
                warn("a pull is at work, so blobs were left alone");
            }
            match args.format.format {
                OutputFormat::Table => emit(&format!("removed: {} blobs, {}\n", pruned.blobs, bytes(pruned.bytes))),
                OutputFormat::Json => emit_json(&serde_json::json!(pruned)),
            }
        }
    }
}

fn named(row: &compose::ImageRow, format: OutputFormat) -> Result<(), CliError> {
    match format {
        OutputFormat::Table => emit(&format!("{}\n", row.name)),
        OutputFormat::Json => emit_json(&serde_json::json!(row)),
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

/// `sha256:` and the first 12 digits, which tell images apart for people; JSON has all of them.
fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn list(rows: &[compose::ImageRow], format: OutputFormat) -> Result<(), CliError> {
    match format {
        OutputFormat::Json => emit_json(&serde_json::json!({ "images": rows })),
        OutputFormat::Table => emit_table(
            &["name", "size", "created", "source", "digest"],
            rows.iter().map(|row| {
                let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
                let size = or_dash(row.size_bytes.map(bytes));
                let digest = or_dash(row.digest.as_deref().map(short));
                vec![row.name.clone(), size, or_dash(row.created.clone()), row.source.to_owned(), digest]
            }),
        ),
    }
}
