#!/bin/bash
# system-systemd.sh [FOLDER ...]: systemd as the first process of a machine of its own, on a throw-away copy of this one's root, in which
# nothing is started but what is asked for. The folders are those of outside, at the same place. See common.sh.
set -euo pipefail
# shellcheck source=tests/harness/common.sh
. "$(dirname "$0")/common.sh"
mapfile -t clock < <(preload)
own_cgroup
root=$(mktemp -d)
export root
trap 'drop_cgroup; rmdir "$root"' EXIT
# shellcheck disable=SC2016 # the variables are those of the shell inside
(
    echo "$BASHPID" >"$cgroup/cgroup.procs"
    exec unshare --mount --propagation private --pid --fork --kill-child --uts --ipc --cgroup bash -euc '
        mount -t tmpfs tmpfs "$root"
        mkdir "$root"/{upper,work,root}
        cd "$root/root"
        mount -t overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" overlay .
        cd "$root/root"
        while [ "$1" != -- ]; do
            mkdir -p ".$1"
            mount --bind "$1" ".$1"
            shift
        done
        shift
        mount -t proc proc proc
        mount -t sysfs -o ro sysfs sys
        mount -t cgroup2 cgroup2 sys/fs/cgroup
        mount -t tmpfs -o mode=755 tmpfs run
        mount -t tmpfs -o mode=755 tmpfs dev
        mkdir dev/pts dev/shm
        for device in null zero full random urandom tty; do
            touch "dev/$device"
            mount --bind "/dev/$device" "dev/$device"
        done
        mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
        mount -t tmpfs tmpfs dev/shm
        ln -s pts/ptmx dev/ptmx
        ln -s /proc/self/fd dev/fd
        mkdir -p mnt/outside run/systemd/system
        printf "[Unit]\nDefaultDependencies=no\n" >run/systemd/system/checkpoint-test.target
        pivot_root . mnt/outside
        umount -l /mnt/outside
        exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@" \
            /lib/systemd/systemd --system --unit=checkpoint-test.target --show-status=no --log-target="${LOG_TARGET:-null}"
    ' inside "$@" -- "${clock[@]}"
) </dev/null >/dev/null &
unshare=$!
trap 'finish "$unshare"; drop_cgroup; rmdir "$root"' EXIT
init "$unshare" /run/systemd/private
cat >/dev/null
