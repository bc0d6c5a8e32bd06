//! `codebeaker token`: who may connect.

use clap::{Args, Subcommand};

use super::output::{FormatArgs, OutputFormat, emit, emit_json, emit_table, note};
use super::{CliError, CommonArgs, compose};

/// The tokens that clients connect with
///
/// Each token is a principal: a session belongs to the one that made it, and no other can see it.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    call: TokenCall,
}

#[derive(Debug, Subcommand)]
enum TokenCall {
    Create(CreateArgs),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// Makes a token for a new principal and prints it; it can't be shown again
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  codebeaker token create ci
  codebeaker token create ci > ci.token            the token alone goes to standard output")]
struct CreateArgs {
    /// Name of the principal: lower-case letters, digits, `-` and `_`
    #[arg(value_parser = parse_name)]
    name: String,
}

/// Lists the principals, without their tokens
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Example:
  codebeaker token list -o json"
)]
struct ListArgs {
    #[command(flatten)]
    format: FormatArgs,
}

/// Revokes a principal's token
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  codebeaker token revoke ci")]
struct RevokeArgs {
    /// Name of the principal
    #[arg(value_parser = parse_name)]
    name: String,
}

pub(super) fn token(common: &CommonArgs, args: TokenArgs) -> Result<(), CliError> {
    let config = common.load()?.config;
    match args.call {
        TokenCall::Create(CreateArgs { name }) => {
            let secret = compose::token_create(&config, &name)?;
            emit(&format!("{secret}\n"))
        }
        TokenCall::List(args) => {
            let rows = compose::token_list(&config)?;
            match args.format.format {
                OutputFormat::Json => emit_json(&serde_json::json!({ "tokens": rows })),
                OutputFormat::Table => {
                    emit_table(&["name", "created"], rows.into_iter().map(|row| vec![row.name, row.created]))
                }
            }
        }
        TokenCall::Revoke(RevokeArgs { name }) => {
            compose::token_revoke(&config, &name)?;
            note(&format!("revoked {name}\n"));
            Ok(())
        }
    }
}

/// A name that is safe as a file name and in a log line.
fn parse_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
        return Err("1 to 64 lower-case letters, digits, `-` and `_`".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_name_can_not_be_a_path() {
        assert!(parse_name("ci-2_x").is_ok());
        for bad in ["", "../x", "A", "a b", &"x".repeat(65)] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }
}
