//! The tree of calls: it is sound, and every page of help is as committed.

use clap::CommandFactory;

use super::*;

#[test]
fn the_tree_of_calls_is_sound() {
    Cli::command().debug_assert();
}

/// Pages in the order of the tree, as a terminal of 100 columns shows them.
fn pages(command: &mut clap::Command) -> Vec<String> {
    let name = command.get_bin_name().unwrap_or("codebeaker").to_owned();
    let page = command.render_long_help().to_string();
    let lines: Vec<&str> = page.lines().map(str::trim_end).collect();
    let mut all = vec![format!("==== {name}"), lines.join("\n")];
    all.extend(command.get_subcommands_mut().filter(|sub| sub.get_name() != "help").flat_map(pages));
    all
}

#[test]
fn help_is_as_committed() {
    let mut command = Cli::command().term_width(100);
    command.build();
    insta::assert_snapshot!("help", pages(&mut command).join("\n"));
}

#[test]
fn every_call_has_an_example() {
    fn check(command: &clap::Command) {
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(command.has_subcommands() || examples.contains("Example"), "{}", command.get_name());
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn calls_of_the_protocol_page_are_taken() {
    let calls = [
        "serve --listen 127.0.0.1:0 --config f.toml --state-dir d --no-auth",
        "run --language python --image i --profile strict --runtime NativeProcess -e 1 -- a -b",
        "run -l bash - -- a",
        "run f.py",
        "run -- ls -la",
        "exec ses_1 -- ls",
        "exec --session ses_1 -e 1",
        "ps -o json",
        "close ses_1 ses_2",
        "close --all",
        "image import rootfs.tar --name n",
        "image list -o json",
        "image inspect host",
        "image remove n",
        "languages",
        "runtimes -o table",
        "doctor --json",
        "plan --profile strict --image host",
        "seccomp explain default socket AF_ALG -o json",
        "seccomp audit p.json --fail-on high --format sarif",
        "config show --state-dir d",
        "token create ci",
        "completion bash",
    ];
    for call in calls {
        let words = std::iter::once("codebeaker").chain(call.split(' '));
        assert!(Cli::try_parse_from(words).is_ok(), "{call}");
    }
    for call in ["", "frobnicate", "close", "close --all ses_1", "run f.py -e 1", "run --memory 0 f.py", "run -r Dockr f.py"] {
        let words = std::iter::once("codebeaker").chain(call.split(' ').filter(|word| !word.is_empty()));
        let error = Cli::try_parse_from(words).expect_err(call);
        assert_eq!(error.exit_code(), 2, "{call}");
    }
}

#[test]
fn variables_need_a_name() {
    assert_eq!(parse_variable("A=b=c"), Ok(("A".into(), "b=c".into())));
    assert!(parse_variable("=b").is_err());
    assert!(parse_variable("A").is_err());
}
