# Shared by the scripts: words for people, and packages that are missing. Sourced, never run.

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $1"; [ -n "${2:-}" ] && say "hint: $2"; exit 1; }

# need_cargo: a Rust toolchain is the one thing the scripts do not install.
need_cargo() {
    if ! command -v cargo >/dev/null 2>&1 && [ -f "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
    command -v cargo >/dev/null 2>&1 || fail "there is no Rust toolchain" "install one with rustup, then run this again"
}

# need_command COMMAND PACKAGE: installs the Debian package when the command is missing. Answers 1 when it can't.
need_command() {
    command -v "$1" >/dev/null 2>&1 && return 0
    [ "$(id -u)" -eq 0 ] || { say "note: $1 is missing; as root: apt-get install $2"; return 1; }
    command -v apt-get >/dev/null 2>&1 || { say "note: $1 is missing, and there is no apt-get to install $2 with"; return 1; }
    say "installing $2 (for $1)"
    if [ -z "${APT_UPDATED:-}" ]; then
        apt-get update -qq >/dev/null 2>&1 || true
        APT_UPDATED=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null 2>&1 \
        || { say "note: $2 could not be installed"; return 1; }
    hash -r
    command -v "$1" >/dev/null 2>&1
}

# need_module MODULE PACKAGE: the same for a module of the system's Python.
need_module() {
    /usr/bin/python3 -c "import $1" 2>/dev/null && return 0
    # The package brings no command, so `need_command` only installs it.
    need_command "python module $1" "$2" || true
    /usr/bin/python3 -c "import $1" 2>/dev/null
}
