# Shell functions around checkpoint-tool, for any POSIX shell:
#
#   ckpt_start WORKFLOW [options of start]        begin the run, or go on with it; the script itself is its owner
#   ckpt_step [--once] [--verify CMD] [--add] NAME COMMAND...   run a step, unless it is done already
#   ckpt_once ...                                 the same as ckpt_step --once
#   ckpt_complete [options of complete]           finish the run
#
# A step runs in this shell: it may be a function or a built-in, and keeps the script's variables and folder.
#
# Below, return always names its status: bare, in a trap, it would give the one from before the trap.

[ -n "${CHECKPOINT_TOOL:-}" ] || CHECKPOINT_TOOL=@TOOL@

if ! command -v "$CHECKPOINT_TOOL" >/dev/null 2>&1; then
    echo "checkpoint: there is no $CHECKPOINT_TOOL on PATH, so nothing can be recorded; install it, or name it in CHECKPOINT_TOOL" >&2
    # Not only "return": a script without set -e would go on, and every step would be left out.
    case $- in
    *i*) return 127 ;;
    *) exit 127 ;;
    esac
fi

__ckpt_out='' __ckpt_seen='' __ckpt_rc='' __ckpt_verify='' __ckpt_once='' __ckpt_add='' __ckpt_ignored=''

ckpt_start() {
    if [ "$#" -eq 0 ]; then
        echo "ckpt_start: which workflow? ckpt_start WORKFLOW [options of checkpoint-tool start]" >&2
        return 2
    fi
    # What an outer run told us is not about the run that begins here.
    unset CHECKPOINT_ID CHECKPOINT_RUN_ID CHECKPOINT_TOKEN CHECKPOINT_STATUS CHECKPOINT_STEP CHECKPOINT_IDEMPOTENCY_KEY
    __ckpt_out=$("$CHECKPOINT_TOOL" start "$@" --owner-pid "$$" --format env) || return "$?"
    eval "$__ckpt_out"
    __ckpt_started "$@"
}

ckpt_step() {
    # A trap with a step of its own may come anywhere in another's: it leaves behind what it found.
    set -- "$__ckpt_out" "$__ckpt_seen" "$__ckpt_rc" "$__ckpt_verify" "$__ckpt_once" "$__ckpt_add" "${CHECKPOINT_STEP-}" "$@"
    __ckpt_step "$@"
    set -- "$?" "$1" "$2" "$3" "$4" "$5" "$6" "$7"
    __ckpt_out=$2 __ckpt_seen=$3 __ckpt_rc=$4 __ckpt_verify=$5 __ckpt_once=$6 __ckpt_add=$7
    __ckpt_tell "$8"
    return "$1"
}

__ckpt_step() {
    shift 7
    __ckpt_verify='' __ckpt_once='' __ckpt_add=''
    while :; do
        case ${1-} in
        --once) __ckpt_once=--once && shift ;;
        --add) __ckpt_add=--add && shift ;;
        --verify)
            if [ "$#" -lt 2 ] || [ -z "$2" ]; then
                echo "ckpt_step: --verify wants a command" >&2
                return 2
            fi
            __ckpt_verify=$2 && shift 2
            ;;
        --)
            shift
            break
            ;;
        -*)
            echo "ckpt_step: no such option: $1" >&2
            return 2
            ;;
        *) break ;;
        esac
    done
    if [ "$#" -lt 2 ]; then
        echo "ckpt_step: a step needs a name and a command: ckpt_step [--once] [--verify CMD] [--add] NAME COMMAND..." >&2
        return 2
    fi
    if [ -z "${CHECKPOINT_ID:-}" ]; then
        echo "ckpt_step: no run has begun here: ckpt_start WORKFLOW comes first" >&2
        return 2
    fi
    # From here on in arguments, not variables: a step may be a function that has steps of its own.
    set -- "$__ckpt_verify" "$__ckpt_once" "$@"
    __ckpt_ignored=''
    __ckpt_see_errexit "$4" # a command of its own: in a condition it would see itself
    if [ -n "$__ckpt_ignored" ]; then
        echo "ckpt_step: step $3: in a condition (if, while, &&, ||) the shell ignores set -e inside of $4, and may take half of it" \
            "for the whole; a line of its own is safe" >&2
    fi
    if ! __ckpt_is_there "$4"; then
        if [ -e "$4" ]; then
            echo "ckpt_step: step $3: $4 cannot be executed" >&2
            return 126
        fi
        echo "ckpt_step: step $3: there is no command $4" >&2
        return 127
    fi
    __ckpt_enter "$__ckpt_add" "$@" || return "$?"
    if [ "$__ckpt_out" = "done" ]; then
        return 0
    fi
    __ckpt_tell "$3"
    if __ckpt_is_program "$4"; then
        __ckpt_rc=0
        __ckpt_run "$@" || __ckpt_rc=$?
    else
        # Nothing around it: with "|| ..." the shell would ignore set -e inside a function, go on behind the line that
        # failed, and a half done step would pass for a whole one.
        __ckpt_run "$@"
        __ckpt_rc=$?
    fi
    # "|| return" keeps set -e from ending the script before the end is written down.
    __ckpt_leave "$__ckpt_rc" "$1" "$2" "$3" || return "$?"
}

ckpt_once() {
    ckpt_step --once "$@"
}

ckpt_complete() {
    if [ -z "${CHECKPOINT_ID:-}" ]; then
        echo "ckpt_complete: no run has begun here: ckpt_start WORKFLOW comes first" >&2
        return 2
    fi
    __ckpt_call complete "$CHECKPOINT_ID" --token "${CHECKPOINT_TOKEN:-}" "$@"
}

# STEP: what the command is told in its environment; by that it is also known should it outlive this script.
__ckpt_tell() {
    if [ -n "$1" ]; then
        export CHECKPOINT_STEP="$1" CHECKPOINT_IDEMPOTENCY_KEY="$CHECKPOINT_RUN_ID/$1"
    else
        unset CHECKPOINT_STEP CHECKPOINT_IDEMPOTENCY_KEY
    fi
}

__ckpt_run() {
    shift 3
    "$@"
}

# ADD VERIFY ONCE NAME COMMAND...: begin the step; __ckpt_out says "begun" or "done".
__ckpt_enter() {
    __ckpt_begin "${2:+--ask}" "$@" || return "$?"
    case $__ckpt_out in
    begun) return 0 ;;
    "done")
        echo "$CHECKPOINT_ID: step $4: already done, not run again" >&2
        return 0
        ;;
    in_doubt) ;;
    *)
        echo "ckpt_step: an unexpected answer: $__ckpt_out" >&2
        return 1
        ;;
    esac
    __ckpt_look "$2"
    case $? in
    0)
        __ckpt_call end "$CHECKPOINT_ID" "$4" --token "${CHECKPOINT_TOKEN:-}" --in-place || return "$?"
        echo "$CHECKPOINT_ID: step $4: its effect is in place, not run again" >&2
        __ckpt_out="done"
        ;;
    1) __ckpt_begin --absent "$@" || return "$?" ;;
    *)
        echo "ckpt_step: step $4 of $CHECKPOINT_ID is in doubt, and --verify could not tell whether its effect is in place" >&2
        return 20
        ;;
    esac
}

# ASK ADD VERIFY ONCE NAME COMMAND...: tell checkpoint-tool that the step begins, and what its command is.
__ckpt_begin() {
    __ckpt_begin_apart "$@"
}

# The command goes through a pipe: as arguments of a program anyone could read it in ps, and the system limits them.
__ckpt_begin_apart() {
    __ckpt_out=$(
        __ckpt_ask=$1 __ckpt_add=$2 __ckpt_once=$4 __ckpt_name=$5
        shift 5
        command printf '%s\0' "$@" | "$CHECKPOINT_TOOL" begin "$CHECKPOINT_ID" "$__ckpt_name" --token "${CHECKPOINT_TOKEN:-}" \
            ${__ckpt_once:+"$__ckpt_once"} ${__ckpt_add:+"$__ckpt_add"} ${__ckpt_ask:+"$__ckpt_ask"} --command-stdin
    )
}

# STATUS VERIFY ONCE NAME: end the step by the exit status of its command, which is given back.
__ckpt_leave() {
    __ckpt_seen=''
    if [ -n "$2" ] && { [ "$1" -eq 0 ] || [ -n "$3" ]; }; then
        __ckpt_look "$2"
        case $? in
        0) __ckpt_seen=--in-place ;;
        1) __ckpt_seen=--absent ;;
        *) __ckpt_seen=--unseen ;;
        esac
    fi
    __ckpt_call end "$CHECKPOINT_ID" "$4" --token "${CHECKPOINT_TOKEN:-}" --exit-code "$1" ${__ckpt_seen:+"$__ckpt_seen"} || return "$?"
    case $__ckpt_out in
    completed) return 0 ;;
    in_doubt) echo "$CHECKPOINT_ID: step $4 is in doubt: exit status $1, and it may not be repeated blindly" >&2 ;;
    *)
        case $__ckpt_seen in
        --absent) echo "$CHECKPOINT_ID: step $4: its effect is not in place (--verify)" >&2 ;;
        --unseen) echo "$CHECKPOINT_ID: step $4: its effect could not be looked at (--verify)" >&2 ;;
        esac
        ;;
    esac
    if [ "$1" -eq 0 ]; then
        return 1
    fi
    return "$1"
}

# Look at an effect: 0 it is in place, 1 it is not, else that could not be told (as of test, grep and cmp).
__ckpt_look() {
    (eval "$1") >&2 </dev/null
}

# One command of checkpoint-tool: what it prints is left in __ckpt_out. Standard input belongs to the script.
__ckpt_call() {
    __ckpt_out=$("$CHECKPOINT_TOOL" "$@" </dev/null)
}

__ckpt_started() {
    :
}

# dash and busybox find a path also where it is no program.
__ckpt_is_there() {
    command -v -- "$1" >/dev/null 2>&1 || return 1
    case $1 in
    */*) [ ! -e "$1" ] || { [ -f "$1" ] && [ -x "$1" ]; } ;;
    esac
}

# A program outside of the shell: for it alone "|| ..." changes nothing.
__ckpt_is_program() {
    case $(command -v -- "$1" 2>/dev/null) in
    alias\ *) return 1 ;;
    */*) return 0 ;;
    *) return 1 ;;
    esac
}

# Sets __ckpt_ignored where set -e is on, and yet ignored here, and matters to this command. Only bash and zsh let that
# be seen.
__ckpt_see_errexit() {
    :
}
