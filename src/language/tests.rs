use super::*;

fn languages() -> Languages {
    Languages::load(None).expect("the embedded languages load")
}

fn language(name: &str) -> Arc<Language> {
    languages().get(name).expect("the language is embedded")
}

fn load_file(text: &str) -> Result<Languages, LanguageError> {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("own.toml"), text).expect("a file");
    Languages::load(Some(dir.path()))
}

const RUBY: &str = r#"
name = "ruby"
display_name = "Ruby"
aliases = ["rb"]
image = "ruby"
file_extension = ".rb"
run = ["ruby", "{file}"]
programs = ["ruby"]
version = ["ruby", "--version"]
"#;

#[test]
fn every_alias_leads_to_its_language() {
    for (alias, name) in
        [("py", "python"), ("python3", "python"), ("nodejs", "javascript"), ("JS", "javascript"), ("sh", "bash")]
    {
        assert_eq!(language(alias).name, name);
    }
    assert!(languages().get("cobol").is_none());
}

#[test]
fn a_plan_writes_the_source_then_runs_it_with_the_arguments() {
    let plan = execution_plan(&language("python"), "print(1)", &["-x".into()]).expect("a plan");
    let [Command::WriteFile(write), Command::ExecuteShell(run)] = plan.as_slice() else { panic!("two steps, got {plan:?}") };
    assert_eq!((write.path.as_str(), write.content.as_slice()), ("/workspace/.main.py", b"print(1)".as_slice()));
    assert_eq!(
        (run.program.as_str(), run.args.as_slice()),
        ("python3", ["/workspace/.main.py".to_owned(), "-x".into()].as_slice())
    );
    assert_eq!(run.env.get("PYTHONUNBUFFERED").map(String::as_str), Some("1"));
}

#[test]
fn an_operators_language_is_added() {
    let languages = load_file(RUBY).expect("a sound file");
    assert_eq!(languages.get("rb").map(|l| l.name.clone()), Some("ruby".into()));
    assert_eq!(languages.all().len(), 5);
}

#[test]
fn an_unsound_file_is_refused_with_file_and_field() {
    let cases = [
        (RUBY.replace("programs", "programms"), "programms"),
        (RUBY.replace("[\"ruby\", \"{file}\"]", "3"), "run"),
        (RUBY.replace("run = [\"ruby\", \"{file}\"]", "run = [\"ruby\"]"), "`run`"),
        (RUBY.replace("\".rb\"", "\"../rb\""), "`file_extension`"),
        (RUBY.replace("name = \"ruby\"\ndisplay", "name = \"Ru by\"\ndisplay"), "`name`"),
        (RUBY.replace("image = \"ruby\"", "image = \"../ruby\""), "`image`"),
        (format!("{RUBY}install = [\"gem\", \"{{packages}}\"]\n"), "`package_syntax`"),
    ];
    for (text, word) in cases {
        let message = load_file(&text).expect_err("refused").to_string();
        assert!(message.contains("own.toml") && message.contains(word), "{word} in {message}");
    }
}

#[test]
fn two_languages_with_one_name_collide() {
    let error = load_file(&RUBY.replace("[\"rb\"]", "[\"py\"]")).expect_err("py is taken");
    assert!(matches!(error, LanguageError::Collision { ref name, .. } if name == "py"), "{error}");
}

#[test]
fn package_names_pass_and_everything_else_does_not() {
    let good = [
        ("python", vec!["numpy", "numpy==1.26.4", "requests[socks]>=2,<3", "a~=1.0", "ruamel.yaml", "x===1.0+local"]),
        ("javascript", vec!["left-pad", "left-pad@1.3.0", "@types/node@^20", "lodash@latest", "a@>=1.2"]),
    ];
    for (name, packages) in good {
        for package in packages {
            assert_eq!(validate_package(&language(name), package), Ok(()), "{package}");
        }
    }
    let hostile = [
        "",
        "-r",
        "--index-url=http://x",
        "a b",
        "a\tb",
        "a\nb",
        "a\0",
        ".",
        "..",
        "./a",
        "../a",
        "/etc/passwd",
        "~",
        "~/a",
        "https://x/y.whl",
        "git+ssh://x",
        "a@https://x",
        "a;python_version<'3'",
        "file:x",
        "a/b/c",
        "x.whl",
        "x.tar.gz",
        "x.tgz",
        "é",
    ];
    for package in hostile {
        for name in ["python", "javascript"] {
            assert!(validate_package(&language(name), package).is_err(), "{name}: {package:?}");
        }
    }
    for package in ["user/repo", "@scope", "@a/b/c", "a@npm:b", "a@./b", "a@~/b", "a@x.tgz", "@-x/y"] {
        assert!(validate_package(&language("javascript"), package).is_err(), "{package:?}");
    }
    assert!(validate_package(&language("bash"), "numpy").is_err(), "bash has no packages");
}

#[test]
fn an_install_takes_one_argument_for_each_package() {
    let plan = install_plan(&language("py"), &["a".into(), "b==1".into()]).expect("a plan");
    let Command::ExecuteShell(run) = plan else { panic!("a program") };
    assert_eq!(run.args[run.args.len() - 3..], ["--".to_owned(), "a".into(), "b==1".into()]);
    assert!(install_plan(&language("py"), &["-e".into()]).is_err());
    let file = SessionPath::parse("-x.txt").expect("a path");
    let Ok(Command::ExecuteShell(run)) = install_file_plan(&language("py"), &file) else { panic!("a program") };
    assert_eq!(run.args.last().map(String::as_str), Some("./-x.txt"));
}
