//! Arguments by the names that programs and manual pages use: `AF_ALG` for 38, `CLONE_NEWUSER` for a bit.
//!
//! Invariant: what is written by name reads back as the same number; a number without a name stays a number. The tables are in
//! `constants`.

use super::constants as table;

/// How the numbers of one argument are named.
#[derive(Debug, Clone, Copy)]
pub(super) enum Naming {
    /// One of these.
    Choice(&'static [(u64, &'static str)]),
    /// Bits.
    Flags(&'static [(u64, &'static str)]),
    /// One of these in the masked bits, the others are flags.
    Both(u64, &'static [(u64, &'static str)], &'static [(u64, &'static str)]),
}

/// How an argument is named; the option of a socket call depends on its level.
fn naming(syscall: &str, index: u8, level: Option<u64>) -> Option<Naming> {
    if matches!(syscall, "setsockopt" | "getsockopt") && index == 2 {
        return level.and_then(table::options).map(Naming::Choice);
    }
    table::NAMED.iter().find(|(name, at, _)| *name == syscall && *at == index).map(|(_, _, naming)| *naming)
}

/// One argument as text: `AF_ALG`, `CLONE_NEWUSER|CLONE_NEWPID`, else the number. `level` is the second argument of `setsockopt`.
pub fn render(syscall: &str, index: u8, value: u64, level: Option<u64>) -> String {
    let named = naming(syscall, index, level).and_then(|naming| name_of(naming, value));
    named.unwrap_or_else(|| number(value))
}

/// A mask: always by its bits, where the argument has any.
pub fn render_mask(syscall: &str, index: u8, mask: u64) -> String {
    let bits = match naming(syscall, index, None) {
        Some(Naming::Flags(flags)) => flags_of(flags, mask),
        Some(Naming::Both(part, _, flags)) if mask & part == 0 => flags_of(flags, mask),
        Some(Naming::Choice(_) | Naming::Both(..)) | None => None,
    };
    bits.unwrap_or_else(|| number(mask))
}

/// Small numbers are decimal, large ones hexadecimal.
fn number(value: u64) -> String {
    match value {
        0..=4095 => value.to_string(),
        u64::MAX => "-1".to_owned(),
        _ => format!("{value:#x}"),
    }
}

fn name_of(naming: Naming, value: u64) -> Option<String> {
    match naming {
        Naming::Choice(choices) => choice_of(choices, value).map(str::to_owned),
        Naming::Flags(flags) => flags_of(flags, value),
        Naming::Both(mask, choices, flags) => {
            let choice = choice_of(choices, value & mask)?;
            if value & !mask == 0 {
                return Some(choice.to_owned());
            }
            flags_of(flags, value & !mask).map(|flags| format!("{choice}|{flags}"))
        }
    }
}

fn choice_of(choices: &[(u64, &'static str)], value: u64) -> Option<&'static str> {
    choices.iter().find(|(known, _)| *known == value).map(|(_, name)| *name)
}

fn flags_of(flags: &[(u64, &'static str)], value: u64) -> Option<String> {
    if value == 0 {
        return choice_of(flags, 0).map(str::to_owned);
    }
    let mut rest = value;
    let mut names = Vec::new();
    for (bits, name) in flags {
        if *bits != 0 && rest & bits == *bits {
            rest &= !bits;
            names.push((*name).to_owned());
        }
    }
    if names.is_empty() {
        return None;
    }
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    Some(names.join("|"))
}

/// Reads `AF_ALG`, `CLONE_NEWUSER|0x11`, `38`, `0x26`, `-1`. The level names the options of `setsockopt`.
pub fn parse(syscall: &str, index: u8, text: &str, level: Option<u64>) -> Option<u64> {
    let mut value = 0;
    for word in text.split('|') {
        value |= parse_number(word).or_else(|| parse_name(naming(syscall, index, level)?, word))?;
    }
    Some(value)
}

fn parse_name(naming: Naming, word: &str) -> Option<u64> {
    let (first, second): (&[_], &[_]) = match naming {
        Naming::Choice(names) | Naming::Flags(names) => (names, &[]),
        Naming::Both(_, choices, flags) => (choices, flags),
    };
    first.iter().chain(second).find(|(_, name)| *name == word).map(|(value, _)| *value)
}

/// Decimal, hexadecimal with `0x`, octal with `0o`; a minus sign as in C.
pub fn parse_number(word: &str) -> Option<u64> {
    let (negative, digits) = word.strip_prefix('-').map_or((false, word), |digits| (true, digits));
    let value = match (digits.strip_prefix("0x"), digits.strip_prefix("0o")) {
        (Some(digits), _) => u64::from_str_radix(digits, 16),
        (None, Some(digits)) => u64::from_str_radix(digits, 8),
        (None, None) => digits.parse(),
    };
    value.ok().map(|value| if negative { value.wrapping_neg() } else { value })
}

/// Names an argument has, to help who misspelt one.
pub fn names(syscall: &str, index: u8) -> Vec<&'static str> {
    match naming(syscall, index, None) {
        Some(Naming::Choice(names) | Naming::Flags(names)) => names.iter().map(|(_, name)| *name).collect(),
        Some(Naming::Both(_, choices, flags)) => choices.iter().chain(flags).map(|(_, name)| *name).collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::arch;

    #[test]
    fn numbers_get_their_names() {
        assert_eq!(render("socket", 0, 38, None), "AF_ALG");
        assert_eq!(render("socket", 1, 0x8_0001, None), "SOCK_STREAM|SOCK_CLOEXEC");
        assert_eq!(render("clone", 0, 0x1000_0011, None), "CLONE_NEWUSER|0x11");
        assert_eq!(render("setsockopt", 2, 31, Some(6)), "TCP_ULP");
        assert_eq!(render("setsockopt", 2, 31, None), "31", "the option of an unknown level");
        assert_eq!(render("read", 0, 0xFFFF_FFFF, None), "0xffffffff");
        assert_eq!(
            render_mask("clone", 0, 2_114_060_288),
            "CLONE_NEWNS|CLONE_NEWCGROUP|CLONE_NEWUTS|CLONE_NEWIPC|CLONE_NEWUSER|CLONE_NEWPID|CLONE_NEWNET"
        );
    }

    #[test]
    fn every_name_reads_back_as_its_number() {
        for (syscall, index, _) in table::NAMED {
            assert!(arch::is_known(syscall), "{syscall}");
            for name in names(syscall, *index) {
                let value = parse(syscall, *index, name, None).expect(name);
                assert_eq!(
                    parse(syscall, *index, &render(syscall, *index, value, None), None),
                    Some(value),
                    "{syscall} {name}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_name_and_no_number_is_refused() {
        assert_eq!(parse("socket", 0, "AF_NONSENSE", None), None);
        assert_eq!(parse("socket", 0, "", None), None);
        assert_eq!(parse("clone", 0, "CLONE_NEWUSER|0x11", None), Some(0x1000_0011));
        assert_eq!(parse("personality", 0, "-1", None), Some(u64::MAX));
    }
}
