#!/bin/bash
# `systemd --user` on a machine whose first process need not be systemd. See common.sh. Its environment is the caller's.
set -euo pipefail
# shellcheck source=tests/harness/common.sh
. "$(dirname "$0")/common.sh"
mapfile -t clock < <(preload)
own_cgroup
trap drop_cgroup EXIT
# shellcheck disable=SC2016 # the variables are those of the shell inside
(
    echo "$BASHPID" >"$cgroup/cgroup.procs"
    exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc --cgroup bash -euc '
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir -p /run/systemd/system /run/user/0
        chmod 700 /run/user/0
        export XDG_RUNTIME_DIR=/run/user/0
        env "$@" /lib/systemd/systemd --user --unit=basic.target --log-target="${LOG_TARGET:-null}"
    ' inside "${clock[@]}"
) </dev/null >/dev/null &
unshare=$!
trap 'finish "$unshare"; drop_cgroup' EXIT
init "$unshare" /run/user/0/systemd/private
cat >/dev/null
