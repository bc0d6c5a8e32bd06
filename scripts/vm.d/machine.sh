# shellcheck shell=bash
# The parts of the emulated machine: kernel, root file system, payload, QEMU. Sourced by scripts/vm.
#
# Whatever is made lies below target/vm. A cached part is complete or absent: it is made under another name and moved.

# What the guest's root file system holds besides Debian's essential packages, and the release.
vm_packages="python3,nodejs,util-linux,procps,iproute2,uidmap,systemd,systemd-sysv,dbus,libpam-systemd,apparmor${CODEBEAKER_VM_PACKAGES:+,$CODEBEAKER_VM_PACKAGES}"
# A release newer than the kernel's: its systemd knows DelegateSubgroup=, its apparmor_parser the rule userns.
vm_release=trixie
# Modules of the kernel package, in the order of their dependencies: the disks, and what sandboxes are made with.
vm_modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk overlay"

# fetch DIRECTORY PACKAGE [APT-OPTION...]: downloads and unpacks one Debian package, without installing it.
fetch() {
    local directory=$1 package=$2
    shift 2
    rm -rf "$directory.part" && mkdir -p "$directory.part"
    (cd "$directory.part" && apt-get "$@" download -qq "$package" >/dev/null 2>&1 && dpkg -x ./*.deb . && rm -f ./*.deb) \
        || { rm -rf "$directory.part"; return 1; }
    rm -rf "$directory" && mv "$directory.part" "$directory"
}

# kernel_of PASS: the Debian release whose kernel the pass runs on. Root and the user have the oldest that is served, with what it
# lacks; systemd has one whose AppArmor knows user namespaces (Linux 6.7).
kernel_of() {
    case $1 in
        systemd) echo trixie ;;
        *) echo bookworm ;;
    esac
}

# fetch_kernel CACHE RELEASE: CACHE/RELEASE with the kernel's image and an initrd of its modules and a shell.
fetch_kernel() {
    local cache=$1 release=$2 package options=()
    [ -f "$cache/$release/initrd" ] && return 0
    command -v apt-get >/dev/null 2>&1 || return 1
    mkdir -p "$cache/$release"
    if ! grep -qx "VERSION_CODENAME=$release" /etc/os-release; then
        other_release "$cache" "$release" || return 1
        options=("${vm_apt[@]}")
    fi
    package=$(cloud_kernel ${options[@]+"${options[@]}"})
    if [ -z "$package" ] && [ "$(id -u)" -eq 0 ]; then
        apt-get ${options[@]+"${options[@]}"} update -qq >/dev/null 2>&1 || true
        package=$(cloud_kernel ${options[@]+"${options[@]}"})
    fi
    [ -n "$package" ] || return 1
    say "downloading $package"
    fetch "$cache/$release/kernel" "$package" ${options[@]+"${options[@]}"} || return 1
    [ -d "$cache/busybox" ] || fetch "$cache/busybox" busybox-static || return 1
    cp "$cache/$release"/kernel/boot/vmlinuz-* "$cache/$release/vmlinuz" && make_initrd "$cache" "$release"
}

# other_release CACHE RELEASE: vm_apt, the options with which apt sees that release of the mirror that this host uses, and nothing else.
# Its lists lie in CACHE; those of the host stay as they are.
other_release() {
    local place=$1/$2/apt mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null | head -n 1)
    [ -n "$mirror" ] || return 1
    mkdir -p "$place"/state/lists/partial "$place"/cache/archives/partial
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $2 main" >"$place/sources.list"
    vm_apt=(-o "Dir::State=$place/state" -o "Dir::Cache=$place/cache" -o "Dir::Etc::SourceList=$place/sources.list" -o Dir::Etc::SourceParts=-)
}

# cloud_kernel [APT-OPTION...]: the real package behind Debian's name for the newest cloud kernel.
cloud_kernel() {
    apt-cache "$@" depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ {print $2; exit}'
}

# copy_modules KERNEL DIRECTORY NAME...: numbered, so that the order of loading is the order of names.
copy_modules() {
    local kernel=$1 directory=$2 number=10 name file
    shift 2
    mkdir -p "$directory"
    for name in "$@"; do
        file=$(find "$kernel" -name "$name.ko" -o -name "$name.ko.xz" | head -n 1)
        # A module that is not there is built in.
        case $file in
            '') continue ;;
            *.xz) xz -dc "$file" >"$directory/$number-$name.ko" ;;
            *) cp "$file" "$directory/$number-$name.ko" ;;
        esac
        number=$((number + 1))
    done
}

# make_initrd CACHE RELEASE: a shell and the modules.
make_initrd() {
    local cache=$1 release=$2 tree
    tree=$cache/$release/initrd.tree
    rm -rf "$tree" && mkdir -p "$tree"/{bin,dev,proc,root}
    cp "$(find "$cache/busybox" -type f -path '*bin/busybox' | head -n 1)" "$tree/bin/busybox"
    # shellcheck disable=SC2086
    copy_modules "$cache/$release/kernel" "$tree/modules" $vm_modules
    install -m 755 scripts/vm.d/initrd-init "$tree/init"
    (cd "$tree" && find . | cpio --quiet -o -H newc) >"$cache/$release/initrd.part" || return 1
    rm -rf "$tree" && mv "$cache/$release/initrd.part" "$cache/$release/initrd"
}

# root_image CACHE: where the root file system of these packages is.
root_image() {
    echo "$1/root-$(printf '%s' "$vm_release $vm_packages" | sha256sum | cut -c 1-12).ext4"
}

# fetch_root CACHE: the root file system as an ext4 image, made without a mount on this host.
fetch_root() {
    local cache=$1 image
    image=$(root_image "$cache")
    [ -f "$image" ] && return 0
    [ "$(id -u)" -eq 0 ] || return 1
    need_command mmdebstrap mmdebstrap || return 1
    say "making the root file system ($vm_packages)"
    rm -rf "$cache/root.tree"
    mmdebstrap --quiet --variant=minbase --include="$vm_packages" "$vm_release" "$cache/root.tree" >"$cache/root.log" 2>&1 \
        || { tail -n 5 "$cache/root.log" >&2; rm -rf "$cache/root.tree"; return 1; }
    rm -rf "$cache"/root.tree/var/cache/apt/* "$cache"/root.tree/var/lib/apt/lists/*
    rm -f "$image.part"
    mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$cache/root.tree" "$image.part" 1G >/dev/null || return 1
    rm -rf "$cache/root.tree" && mv "$image.part" "$image"
}

# suite_binary: builds the suite and the server; prints where the suite is.
suite_binary() {
    cargo test --quiet --test suite --no-run --message-format=json 2>/dev/null \
        | sed -n 's/.*"executable":"\([^"]*\/suite-[^"]*\)".*/\1/p' | tail -n 1 | grep .
}

# make_payload WORK SUITE PASSES COMMAND SKIPS FILTER...: the disk that differs from run to run. It holds what the suite
# looks for below the clone, and the guest gives it the clone's path. SKIPS is a file of what a run without filters leaves out.
make_payload() {
    local work=$1 suite=$2 passes=$3 command=$4 skips=$5 tree=$1/payload
    shift 5
    mkdir -p "$tree/clone/target/debug" "$tree/clone/tests"
    cp -r tests/golden "$tree/clone/tests/"
    cp -r deploy "$tree/clone/"
    grep -v '^#' "$skips" >"$tree/skips" || true
    # Line numbers and symbols are half of the binary, and each server makes its launcher from a copy of the whole.
    if [ -e target/debug/codebeaker ]; then objcopy --strip-all target/debug/codebeaker "$tree/clone/target/debug/codebeaker"; fi
    if [ -n "$suite" ]; then objcopy --strip-all "$suite" "$tree/suite"; fi
    install -m 755 scripts/vm.d/guest-init "$tree/guest-init"
    printf '%s\n' "$PWD" >"$tree/clone.path"
    printf '%s\n' "$passes" >"$tree/passes"
    printf '%s\n' "${CODEBEAKER_TEST_REQUIRE:-}" >"$tree/require"
    if [ $# -gt 0 ]; then printf '%s\n' "$@" >"$tree/filters"; fi
    if [ -n "$command" ]; then printf '%s\n' "$command" >"$tree/command"; fi
    mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$tree" "$work/payload.ext4" "$(($(du -sm "$tree" | cut -f 1) * 5 / 4 + 32))M" >/dev/null
    rm -rf "$tree"
}

# run_machine CACHE RELEASE WORK SECONDS CONSOLE: boots and waits for its end. The first serial line carries the kernel's messages,
# the second what the guest says. The processes stand in vm_processes, for end_machine; none of them inherits the lock.
# What costs an emulator time and has nothing to do with the claims is off: a fifth level of page tables, SMAP, string instructions
# that promise speed (they are emulated byte by byte), pages cleared twice, a clock that is read from a device because the emulated
# time stamp counter is not trusted otherwise, and addresses that differ from process to process: translated code is found again only
# at the same address. One processor: where two are emulated side by
# side, one can still run an instruction that the other has patched in the kernel, which then panics ("int3" in a static branch).
run_machine() {
    local cache=$1 release=$2 work=$3 seconds=$4 console=$5 machine reader
    : >"$work/console"
    mkfifo "$work/serial"
    (sed -u 's/\r$//' <"$work/serial" | tee "$work/results" | sed -u "s/^/[$(basename "$work")] /" >&2) 9>&- &
    reader=$!
    timeout --kill-after=5 "$seconds" qemu-system-x86_64 -accel tcg -cpu max,la57=off,smap=off,erms=off,fsrm=off -m 2048 -smp 1 -no-reboot \
        -nodefaults -nic none -display none -serial "file:$work/console" -serial stdio \
        -kernel "$cache/$release/vmlinuz" -initrd "$cache/$release/initrd" -append "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable init_on_alloc=0 norandmaps" \
        -drive "file=$(root_image "$cache"),format=raw,if=virtio,snapshot=on" \
        -drive "file=$work/payload.ext4,format=raw,if=virtio,readonly=on" </dev/null >"$work/serial" 2>&1 9>&- &
    machine=$!
    vm_processes="$machine"
    if [ -n "$console" ]; then
        tail -f "$work/console" >&2 9>&- &
        vm_processes="$machine $!"
    fi
    wait "$machine" || say "the machine was ended from outside"
    wait "$reader" || true
    end_machine
}

# end_machine: ends what run_machine started and still runs; timeout(1) hands the signal on to QEMU.
end_machine() {
    # shellcheck disable=SC2086
    if [ -n "${vm_processes:-}" ]; then kill $vm_processes 2>/dev/null || true; fi
    vm_processes=
}

# counts FILE: the sums of the suite's last lines: passed, failed, skipped.
counts() {
    awk '/^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ {p += $1; f += $3; s += $5} END {print p + 0, f + 0, s + 0}' "$1"
}
