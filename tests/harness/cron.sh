#!/bin/bash
# The cron daemon, with an empty folder of crontabs. See common.sh.
set -euo pipefail
# shellcheck source=tests/harness/common.sh
. "$(dirname "$0")/common.sh"
mapfile -t clock < <(preload)
# shellcheck disable=SC2016 # the variables are those of the shell inside
unshare --mount --propagation private --pid --fork --kill-child --mount-proc bash -euc '
    mount -t tmpfs tmpfs /var/spool/cron
    mkdir -m 1730 /var/spool/cron/crontabs
    chgrp crontab /var/spool/cron/crontabs
    mount -t tmpfs tmpfs /run
    mkdir /run/empty
    mount --bind /run/empty /etc/cron.d
    mount --bind /dev/null /etc/crontab
    # The daemon reads crontabs when the second of a change is another than that of the last one it saw.
    touch -d "1 day ago" /var/spool/cron/crontabs /run/empty
    exec env "$@" cron -f
' inside "${clock[@]}" </dev/null >/dev/null &
unshare=$!
trap 'finish "$unshare"' EXIT
init "$unshare" /run/crond.pid
cat >/dev/null
