use super::*;
use crate::command::{Command, SessionPath};

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

const LUA: &str = r#"
name = "lua"
display_name = "Lua"
aliases = ["luajit"]
image = "lua"
file_extension = ".lua"
run = ["lua", "{file}"]
programs = ["lua"]
version = ["lua", "-v"]
"#;

/// The same, compiled.
fn compiled() -> String {
    let run = "run = [\"lua\", \"{file}\"]";
    LUA.replace(run, "compile = [\"luac\", \"-o{output}\", \"{file}\"]\nrun = [\"lua\", \"{output}\"]")
}

#[test]
fn every_alias_leads_to_its_language() {
    for (alias, name) in [
        ("py", "python"),
        ("python3", "python"),
        ("nodejs", "javascript"),
        ("JS", "javascript"),
        ("sh", "bash"),
        ("ts", "typescript"),
        ("golang", "go"),
        ("cs", "csharp"),
        ("dotnet", "csharp"),
        ("rb", "ruby"),
        ("c++", "cpp"),
        ("rs", "rust"),
    ] {
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
fn a_compiled_language_compiles_between_writing_and_running_and_leaves_one_directory() {
    let plan = execution_plan(&language("go"), "package main", &["{file}".into()]).expect("a plan");
    let [Command::WriteFile(write), Command::ExecuteShell(compile), Command::ExecuteShell(run)] = plan.as_slice() else {
        panic!("three steps, got {plan:?}")
    };
    assert_eq!(write.path.as_str(), "/workspace/.main/main.go");
    assert_eq!(compile.args[compile.args.len() - 3..], ["-o", "/workspace/.main/main", "/workspace/.main/main.go"]);
    assert_eq!((run.program.as_str(), run.args.as_slice()), ("/workspace/.main/main", ["{file}".to_owned()].as_slice()));
    assert_eq!(leftovers(&language("go")), ["/workspace/.main"]);
    assert_eq!(leftovers(&language("typescript")), ["/workspace/.main.ts", "/workspace/.main.js"]);
    assert_eq!(leftovers(&language("python")), ["/workspace/.main.py"]);
}

#[test]
fn a_helper_stands_as_one_argument_and_its_text_is_not_read_for_placeholders() {
    let text = compiled().replace("\"luac\", ", "\"luac\", \"{helper:h}\", ") + "[helpers]\nh = \"print('{file}')\"\n";
    let language = load_file(&text).expect("sound").get("lua").expect("there");
    let plan = execution_plan(&language, "", &[]).expect("a plan");
    let Command::ExecuteShell(compile) = &plan[1] else { panic!("{plan:?}") };
    assert_eq!(compile.args, ["print('{file}')", "-o/workspace/.main.out", "/workspace/.main.lua"]);
}

#[test]
fn every_language_says_what_it_does_step_by_step() {
    for language in languages().all() {
        let names: Vec<&str> = plan::describe(language).iter().map(|step| step.name).collect();
        let compiled = language.compile.is_some();
        assert_eq!(names.contains(&"compile"), compiled, "{}", language.name);
        assert_eq!((names.first(), names.last()), (Some(&"write"), Some(&"version")));
        // Debian has no package of wasmtime, and the runtime WebAssembly needs none.
        assert_eq!(language.host_packages.is_empty(), language.name == "wasm", "{}: a mend for hosts", language.name);
    }
}

#[test]
fn an_operators_language_is_added() {
    let languages = load_file(LUA).expect("a sound file");
    assert_eq!(languages.get("luajit").map(|l| l.name.clone()), Some("lua".into()));
    assert_eq!(languages.all().len(), 12);
}

#[test]
fn an_unsound_file_is_refused_with_file_and_field() {
    let cases = [
        (LUA.replace("programs", "programms"), "programms"),
        (LUA.replace("[\"lua\", \"{file}\"]", "3"), "run"),
        (LUA.replace("run = [\"lua\", \"{file}\"]", "run = [\"lua\"]"), "`run`"),
        (LUA.replace("\"{file}\"]", "\"{output}\"]"), "`run`"),
        (LUA.replace("[\"lua\", \"{file}\"]", "[\"{file}\"]"), "`run`"),
        (LUA.replace("\"-v\"", "\"{file}\""), "`version`"),
        (compiled().replace("\"-o{output}\", ", ""), "`compile`"),
        (compiled().replace("{output}\"]", "{file}\"]"), "`run`"),
        (compiled() + "source_name = \"main.lua\"\n", "`source_name`"),
        (compiled() + "output_name = \".main/../x\"\n", "`output_name`"),
        (compiled() + "output_name = \".main//x\"\n", "`output_name`"),
        (compiled().replace("\"luac\"", "\"{helper:none}\""), "`helpers`"),
        (compiled() + "[helpers]\n\"a b\" = \"text\"\n", "`helpers`"),
        (LUA.replace("\".lua\"", "\"../lua\""), "`file_extension`"),
        (LUA.replace("name = \"lua\"\ndisplay", "name = \"Lu a\"\ndisplay"), "`name`"),
        (LUA.replace("image = \"lua\"", "image = \"../lua\""), "`image`"),
        (format!("{LUA}install = [\"luarocks\", \"{{packages}}\"]\n"), "`package_syntax`"),
        (format!("{LUA}packages_like = \"bash\"\n"), "`packages_like`"),
        (format!("{LUA}packages_like = \"python\"\ninstall = [\"luarocks\", \"{{packages}}\"]\n"), "`install`"),
        (format!("{LUA}[source_env]\n\"A=B\" = \"x\"\n"), "`source_env`"),
        (format!("{LUA}install = [\"luarocks\", \"-x{{packages}}\"]\npackage_syntax = \"npm\"\n"), "`install`"),
    ];
    assert!(load_file(&compiled()).is_ok(), "the control: nothing else is wrong with them");
    for (text, word) in cases {
        let message = load_file(&text).expect_err("refused").to_string();
        assert!(message.contains("own.toml") && message.contains(word), "{word} in {message}");
    }
}

#[test]
fn two_languages_with_one_name_collide() {
    let error = load_file(&LUA.replace("[\"luajit\"]", "[\"py\"]")).expect_err("py is taken");
    assert!(matches!(error, LanguageError::Collision { ref name, .. } if name == "py"), "{error}");
}

#[test]
fn package_names_pass_and_everything_else_does_not() {
    let good = [
        ("python", vec!["numpy", "numpy==1.26.4", "requests[socks]>=2,<3", "a~=1.0", "ruamel.yaml", "x===1.0+local"]),
        ("ruby", vec!["rack", "rack:3.0.1", "net-http"]),
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
        for name in ["python", "javascript", "typescript", "ruby"] {
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
