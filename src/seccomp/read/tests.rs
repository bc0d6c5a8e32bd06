//! Every format is read as its own tools mean it, and what is broken is told with its place.

use super::super::policy::Policy;
use super::super::resolve::Target;
use super::super::ruleset::{Engine, Ruleset};
use super::super::verdict::Verdict;
use super::super::{Arch, KernelVersion};
use super::*;

const OCI: &str = include_str!("../../../profiles/seccomp/default.json");
const SECCOMPILER: &str = r#"{"main": {"mismatch_action": {"errno": 38}, "match_action": "allow", "filter": [
  {"syscall": "read"},
  {"syscall": "socket", "args": [{"index": 0, "type": "dword", "op": "eq", "val": 1, "comment": "AF_UNIX"}]},
  {"syscall": "clone", "args": [{"index": 0, "type": "qword", "op": {"masked_eq": 2114060288}, "val": 0}], "comment": "threads"}
]}}"#;
const SPO: &str = "\
apiVersion: security-profiles-operator.x-k8s.io/v1beta1
kind: SeccompProfile
metadata:
  name: nginx
  namespace: web
spec:
  defaultAction: SCMP_ACT_ERRNO
  architectures:
  - SCMP_ARCH_X86_64
  syscalls:
  - action: SCMP_ACT_ALLOW
    names:
    - read
    - write
  - action: SCMP_ACT_ALLOW
    names: [personality]
    args:
    - index: 0
      value: 8
      op: SCMP_CMP_EQ
";

fn document(text: &str) -> Document {
    match read(text.as_bytes(), guess(text.as_bytes())).expect("it reads") {
        Contents::Document(document) => document,
        Contents::Program(_) => panic!("a text is no program"),
    }
}

fn policy(text: &str, engine: Engine) -> Policy {
    let target = Target { arch: Arch::X86_64, kernel: KernelVersion { major: 6, minor: 18 }, capabilities: &[] };
    Policy::Rules(Ruleset::new(&document(text), target, engine))
}

#[test]
fn the_format_is_seen_from_the_bytes() {
    for (text, format) in [(OCI, Format::Oci), (SECCOMPILER, Format::Seccompiler), (SPO, Format::Spo)] {
        assert_eq!(guess(text.as_bytes()), format);
    }
    assert_eq!(guess(&[6, 0, 0, 0, 0, 0, 0xFF, 0x7F]), Format::Bpf);
}

#[test]
fn each_format_is_read_as_its_own_tools_mean_it() {
    let seccompiler = policy(SECCOMPILER, Engine::Seccompiler);
    let socket = |family| seccompiler.native(41, [family, 0, 0, 0, 0, 0]);
    assert_eq!(socket(1), Verdict::Allow);
    assert_eq!(socket(1 | 1 << 32), Verdict::Allow, "a dword does not see the high word");
    assert_eq!(socket(38), Verdict::Errno(38));
    assert_eq!(seccompiler.native(56, [0x1000_0000, 0, 0, 0, 0, 0]), Verdict::Errno(38));
    let spo = policy(SPO, Engine::Libseccomp);
    assert_eq!(spo.native(135, [8, 0, 0, 0, 0, 0]), Verdict::Allow);
    assert_eq!(spo.native(135, [9, 0, 0, 0, 0, 0]), Verdict::Errno(1), "an SCMP_ACT_ERRNO without a number is EPERM");
    assert_eq!(document(SPO).losses[0].field, "metadata.name");
}

#[test]
fn words_of_docker_and_containers_common_are_known() {
    let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "defaultErrno": "ENOSYS", "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"name": "read", "action": "SCMP_ACT_ALLOW", "args": null, "errno": "EPERM"}]}"#;
    let read = document(text);
    assert_eq!((read.profile.default_errno_ret, read.profile.syscalls[0].errno_ret), (Some(38), Some(1)));
    assert_eq!(read.losses, [super::super::document::Loss::at("flags", "how the filter is installed, not what it says")]);
    let Policy::Rules(set) = policy(text, Engine::Libseccomp) else { panic!("rules") };
    assert_eq!(set.foreign, ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
}

#[test]
fn what_is_broken_is_told_with_its_place() {
    let told = |text: &str, format| read(text.as_bytes(), format).expect_err(text).to_string();
    let unknown = OCI.replacen("\"comment\"", "\"commment\"", 1);
    assert!(told(&unknown, Format::Oci).starts_with("line 11, column "), "{}", told(&unknown, Format::Oci));
    assert!(told("{\"defaultAction\": 3}", Format::Oci).starts_with("line 1, column 1"));
    assert!(told(&SPO.replace("SCMP_CMP_EQ", "SCMP_CMP_IS"), Format::Spo).contains("line 20"));
    assert!(told(&SPO.replace("kind: SeccompProfile", "kind: Pod"), Format::Spo).starts_with("kind: "));
    assert!(told(&SECCOMPILER.replace("dword", "word"), Format::Seccompiler).starts_with("line 3, column "));
    assert!(told("{}", Format::Seccompiler).contains("no filter"));
    assert_eq!(read(&[0xFF], Format::Oci).expect_err("no text").to_string(), "byte 0 is not UTF-8");
    let bpf = |bytes: &[u8]| read(bytes, Format::Bpf).expect_err("no filter").to_string();
    assert_eq!(bpf(&[0; 7]), "7 bytes are not a whole number of 8-byte instructions");
    assert!(bpf(&[]).contains("from 1 to 4096"));
    assert_eq!(bpf(&[5, 0, 0, 0, 9, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]), "instruction 0: it jumps out of the program");
    assert!(bpf(&[0x20, 0, 0, 0, 0, 0, 0, 0]).contains("no return"));
    assert_eq!(
        read(&vec![b' '; BYTES_MAX + 1], Format::Oci).expect_err("too long").to_string(),
        "it has more than 4194304 bytes"
    );
}

#[test]
fn deep_and_repeating_yaml_is_refused_and_does_not_exhaust_the_machine() {
    let deep = "[".repeat(100_000);
    assert!(read(deep.as_bytes(), Format::Spo).is_err());
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (one, other) in ["ab", "bc", "cd", "de", "ef", "fg", "gh", "hi"].iter().map(|pair| pair.split_at(1)) {
        let list = format!("*{one}, ").repeat(10);
        bomb += &[other, ": &", other, " [", &list, "]\n"].concat();
    }
    assert!(read(bomb.as_bytes(), Format::Spo).is_err());
}
