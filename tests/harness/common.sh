# shellcheck shell=bash
# What the three hosts share. A host is a scheduler in namespaces of its own: it prints the process id to enter it by
# (nsenter --target PID ...) once it is up, and ends with its standard input, so that nothing outlives a test that was killed.
# CLOCK, if set, is what libfaketime takes: "@2026-03-29 01:30:00 x60", "+1h".

# The clock for the scheduler alone: what it starts, and what enters the namespaces, has the real one.
preload() {
    if [ -n "${CLOCK-}" ]; then
        printf '%s\n' "LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketime.so.1)" "FAKETIME=$CLOCK"
    fi
}

# A cgroup of our own. systemd takes whatever stands in the cgroup that it is started in for its own and moves it about,
# so it must never be started in one that others are in.
own_cgroup() {
    local top=/sys/fs/cgroup/unified
    [ -d "$top" ] || top=/sys/fs/cgroup
    cgroup=$top/checkpoint-test-$$
    mkdir "$cgroup"
}

drop_cgroup() {
    for _ in {1..100}; do
        find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$cgroup" ] || return 0
        sleep 0.05
    done
}

# init UNSHARE FILE: the process id of the first process in the namespaces, once FILE exists in there.
init() {
    local pid
    for _ in {1..200}; do
        kill -0 "$1" || return 1
        read -r pid _ <"/proc/$1/task/$1/children" || true
        if [ -n "$pid" ] && [ -e "/proc/$pid/root$2" ]; then
            echo "$pid"
            return 0
        fi
        sleep 0.05
    done 2>/dev/null
    return 1
}

finish() {
    { kill -KILL "$1" && wait "$1"; } 2>/dev/null || true
}
