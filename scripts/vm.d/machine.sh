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

# fetch DIRECTORY PACKAGE: downloads and unpacks one Debian package, without installing it.
fetch() {
    local directory=$1 package=$2
    rm -rf "$directory.part" && mkdir -p "$directory.part"
    (cd "$directory.part" && apt-get download -qq "$package" >/dev/null 2>&1 && dpkg -x ./*.deb . && rm -f ./*.deb) \
        || { rm -rf "$directory.part"; return 1; }
    rm -rf "$directory" && mv "$directory.part" "$directory"
}

# fetch_kernel CACHE: CACHE/kernel with the image and its modules, CACHE/busybox for the first seconds, CACHE/initrd.
fetch_kernel() {
    local cache=$1 package
    [ -f "$cache/initrd" ] && return 0
    command -v apt-get >/dev/null 2>&1 || return 1
    package=$(cloud_kernel)
    if [ -z "$package" ] && [ "$(id -u)" -eq 0 ]; then
        apt-get update -qq >/dev/null 2>&1 || true
        package=$(cloud_kernel)
    fi
    [ -n "$package" ] || return 1
    say "downloading $package"
    fetch "$cache/kernel" "$package" && fetch "$cache/busybox" busybox-static || return 1
    cp "$cache"/kernel/boot/vmlinuz-* "$cache/vmlinuz" && make_initrd "$cache"
}

# The real package behind Debian's name for the newest cloud kernel.
cloud_kernel() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ {print $2; exit}'
}

# copy_modules CACHE DIRECTORY NAME...: numbered, so that the order of loading is the order of names.
copy_modules() {
    local cache=$1 directory=$2 number=10 name file
    shift 2
    mkdir -p "$directory"
    for name in "$@"; do
        file=$(find "$cache/kernel" -name "$name.ko" -o -name "$name.ko.xz" | head -n 1)
        # A module that is not there is built in.
        case $file in
            '') continue ;;
            *.xz) xz -dc "$file" >"$directory/$number-$name.ko" ;;
            *) cp "$file" "$directory/$number-$name.ko" ;;
        esac
        number=$((number + 1))
    done
}

# make_initrd CACHE: a shell and the modules.
make_initrd() {
    local cache=$1 tree
    tree=$cache/initrd.tree
    rm -rf "$tree" && mkdir -p "$tree"/{bin,dev,proc,root}
    cp "$(find "$cache/busybox" -type f -path '*bin/busybox' | head -n 1)" "$tree/bin/busybox"
    # shellcheck disable=SC2086
    copy_modules "$cache" "$tree/modules" $vm_modules
    install -m 755 scripts/vm.d/initrd-init "$tree/init"
    (cd "$tree" && find . | cpio --quiet -o -H newc) >"$cache/initrd.part" || return 1
    rm -rf "$tree" && mv "$cache/initrd.part" "$cache/initrd"
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
    if [ -e target/debug/codebeaker ]; then cp --reflink=auto target/debug/codebeaker "$tree/clone/target/debug/"; fi
    if [ -n "$suite" ]; then cp --reflink=auto "$suite" "$tree/suite"; fi
    install -m 755 scripts/vm.d/guest-init "$tree/guest-init"
    printf '%s\n' "$PWD" >"$tree/clone.path"
    printf '%s\n' "$passes" >"$tree/passes"
    printf '%s\n' "${CODEBEAKER_TEST_REQUIRE:-}" >"$tree/require"
    if [ $# -gt 0 ]; then printf '%s\n' "$@" >"$tree/filters"; fi
    if [ -n "$command" ]; then printf '%s\n' "$command" >"$tree/command"; fi
    mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$tree" "$work/payload.ext4" "$(($(du -sm "$tree" | cut -f 1) * 5 / 4 + 32))M" >/dev/null
    rm -rf "$tree"
}

# run_machine CACHE WORK SECONDS CONSOLE: boots and waits for its end. The first serial line carries the kernel's messages,
# the second what the guest says. The processes stand in vm_processes, for end_machine; none of them inherits the lock.
run_machine() {
    local cache=$1 work=$2 seconds=$3 console=$4 machine reader
    : >"$work/console"
    mkfifo "$work/serial"
    (sed -u 's/\r$//' <"$work/serial" | tee "$work/results" >&2) 9>&- &
    reader=$!
    timeout --kill-after=5 "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 2048 -smp 2 -no-reboot \
        -nodefaults -nic none -display none -serial "file:$work/console" -serial stdio \
        -kernel "$cache/vmlinuz" -initrd "$cache/initrd" -append "console=ttyS0 quiet panic=-1 mitigations=off" \
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

# ended WORK: whether the guest came to its last line.
ended() { grep -qx '== the machine ends' "$1/results"; }

# counts FILE: the sums of the suite's last lines: passed, failed, skipped.
counts() {
    awk '/^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ {p += $1; f += $3; s += $5} END {print p + 0, f + 0, s + 0}' "$1"
}
