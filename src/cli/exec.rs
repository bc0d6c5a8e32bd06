//! `codebeaker exec`: one program in a session of a running server, its streams and exit code passed through.
//!
//! Invariant: a session made here is closed here, also after Ctrl-C; it is tied to the connection besides, so that a lost client
//! leaves none behind.

mod stream;

use std::num::NonZeroU32;

use clap::Args;
use serde_json::{Map, Value, json};

use super::client::{Client, ServerArgs, block_on};
use super::streams::{Interrupts, OutputPump, standard_input};
use super::{CliError, CommonArgs, parse_variable};
pub(super) use stream::Execution;

/// Runs a program or code in a session of a running server
///
/// Its streams and exit code pass through. Without a session one is made and closed again. Ctrl-C cancels the execution; a second Ctrl-C does not wait for it.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  codebeaker exec ses_3f9c… -- ls -la
  codebeaker exec --session ses_3f9c… -e 'print(1)'
  echo 'a b' | codebeaker exec -l bash -- tr a-z A-Z
  codebeaker exec -l python -e 'import sys; print(sys.argv)' -- one two

Exit codes: the program's own, 128+n when signal n ended it (137 also: timeout, out of memory);
  2    the call is wrongly written
  125  the session or the connection failed, or the output could not be written
  126  the program can't be executed
  127  the program is not found
  130  after Ctrl-C, 143 after SIGTERM, 141 when the reader of the output went away")]
pub(super) struct ExecArgs {
    /// Session to run in [default: a new one]
    #[arg(value_name = "SESSION")]
    target: Option<String>,
    /// The same as SESSION
    #[arg(long, value_name = "ID", conflicts_with = "target")]
    session: Option<String>,
    /// Language of the new session (bash when only a program is given), or of CODE
    #[arg(short, long, value_name = "L")]
    language: Option<String>,
    /// Profile of the new session
    #[arg(short, long, value_name = "P", conflicts_with_all = ["target", "session"])]
    profile: Option<String>,
    /// Image of the new session
    #[arg(short, long, value_name = "I", conflicts_with_all = ["target", "session"])]
    image: Option<String>,
    /// Code to run instead of a program; PROGRAM and ARGS are then its arguments
    #[arg(short = 'e', value_name = "CODE")]
    code: Option<String>,
    /// Wall time in seconds
    #[arg(short, long, value_name = "S")]
    timeout: Option<NonZeroU32>,
    /// A variable of the program; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Working directory of the program
    #[arg(short, long, value_name = "DIR", conflicts_with = "code")]
    workdir: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// Program and its arguments
    #[arg(last = true, value_name = "PROGRAM [ARGS]")]
    program: Vec<String>,
}

pub(super) fn exec(common: &CommonArgs, args: ExecArgs) -> Result<u8, CliError> {
    let command = args.command()?;
    let creation = args.creation()?;
    block_on(async move {
        let mut interrupts = Interrupts::listen()?;
        let mut client = Client::connect(common, &args.server).await?;
        let (session, is_own) = match args.target.or(args.session) {
            Some(session) => (session, false),
            None => (create(&mut client, creation).await?, true),
        };
        let mut execution = Execution::new(&session, OutputPump::to_standard_streams()?, standard_input);
        let outcome = execution.run(&mut client, command, &mut interrupts).await;
        if is_own {
            // When the connection is lost, the server closes the session by itself, and the outcome tells of the loss.
            client.call("session.close", json!({ "sessionId": session })).await.ok();
        }
        client.close().await;
        outcome
    })
    .map_err(CliError::not_set_up)
}

impl ExecArgs {
    /// The command as it stands on the wire.
    fn command(&self) -> Result<Value, CliError> {
        let mut command = Map::new();
        let has_session = self.target.is_some() || self.session.is_some();
        if let Some(code) = &self.code {
            command.insert("type".into(), json!("execute_code"));
            command.insert("code".into(), json!(code));
            command.insert("args".into(), json!(self.program));
            if let Some(language) = &self.language {
                command.insert("language".into(), json!(language));
            }
        } else {
            let Some((program, args)) = self.program.split_first() else {
                return Err(CliError::usage("nothing to run").hint("give a program after `--`, or code with -e"));
            };
            if has_session && self.language.is_some() {
                return Err(
                    CliError::usage("--language means nothing for a program in a session that exists").hint("leave it out")
                );
            }
            command.insert("type".into(), json!("execute_shell"));
            command.insert("commandName".into(), json!(program));
            command.insert("args".into(), json!(args));
        }
        if !self.env.is_empty() {
            command.insert("env".into(), self.env.iter().map(|(name, value)| (name.clone(), json!(value))).collect());
        }
        if let Some(timeout) = self.timeout {
            command.insert("timeoutSeconds".into(), json!(timeout));
        }
        if let Some(directory) = &self.workdir {
            command.insert("workingDirectory".into(), json!(directory));
        }
        Ok(Value::Object(command))
    }

    /// The parameters of `session.create`, should one be needed.
    fn creation(&self) -> Result<Value, CliError> {
        let has_session = self.target.is_some() || self.session.is_some();
        if self.code.is_some() && self.language.is_none() && !has_session {
            return Err(CliError::usage("which language is the code in?").hint("say it with --language, or name a --session"));
        }
        let language = self.language.as_deref().unwrap_or("bash");
        let mut params = json!({ "language": language, "onDisconnect": "close" });
        if let Some(profile) = &self.profile {
            params["profile"] = json!(profile);
        }
        if let Some(image) = &self.image {
            params["image"] = json!(image);
        }
        Ok(params)
    }
}

async fn create(client: &mut Client, params: Value) -> Result<String, CliError> {
    let created = client.call("session.create", params).await?;
    let session = created["sessionId"].as_str();
    session.map(str::to_owned).ok_or_else(|| CliError::new("the server gave no session id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(program: &[&str]) -> ExecArgs {
        ExecArgs { program: program.iter().map(|&arg| arg.to_owned()).collect(), ..ExecArgs::default() }
    }

    #[test]
    fn a_program_becomes_execute_shell_and_code_execute_code() {
        let shell = args(&["ls", "-la"]).command().expect("a program");
        assert_eq!(shell, json!({ "type": "execute_shell", "commandName": "ls", "args": ["-la"] }));
        let code =
            ExecArgs { code: Some("1".into()), language: Some("python".into()), timeout: NonZeroU32::new(5), ..args(&["a"]) };
        let expected = json!({ "type": "execute_code", "code": "1", "args": ["a"], "language": "python", "timeoutSeconds": 5 });
        assert_eq!(code.command().expect("code"), expected);
    }

    #[test]
    fn what_can_not_be_meant_is_refused() {
        assert!(args(&[]).command().is_err(), "nothing to run");
        let language = ExecArgs { session: Some("s".into()), language: Some("python".into()), ..args(&["ls"]) };
        assert!(language.command().is_err());
        let code = ExecArgs { code: Some("1".into()), ..args(&[]) };
        assert!(code.creation().is_err(), "no language");
        assert!(ExecArgs { session: Some("s".into()), ..code }.creation().is_ok(), "the session's language");
    }

    #[test]
    fn a_new_session_goes_with_its_connection() {
        let created = args(&["ls"]).creation().expect("a program needs no language");
        assert_eq!(created, json!({ "language": "bash", "onDisconnect": "close" }));
    }
}
