# shellcheck disable=SC2288 # a backslash before [, too
# Shell functions around checkpoint-tool, for any POSIX shell:
#
#   ckpt_start WORKFLOW [options of start]        start the run or continue it; the script itself is its owner
#   ckpt_step [--once] [--verify CMD] [--add] NAME COMMAND...   run a step, unless it is done already
#   ckpt_once ...                                 the same as ckpt_step --once
#   ckpt_complete [options of complete]           finish the run
#
# A step runs in this shell: it may be a function or a built-in, and keeps the script's variables and directory.
#
# A script may have functions and aliases named like built-ins. Here a built-in has a backslash before it, against
# aliases; shell-init makes "builtin NAME" of that for bash and zsh. A POSIX shell takes no function in place of a
# special built-in; the other ones are called in a subshell, after "unset -f".
#
# Below, return always names its status: bare, in a trap, it would give the one from before the trap.

case ${CHECKPOINT_TOOL:-} in '') CHECKPOINT_TOOL=@TOOL@ ;; esac

__ckpt_out='' __ckpt_seen='' __ckpt_rc='' __ckpt_verify='' __ckpt_once='' __ckpt_add='' __ckpt_ignored=''
__ckpt_refused='' __ckpt_depth=0 __ckpt_traps='' __ckpt_was='' __ckpt_said='' __ckpt_name='' __ckpt_line='' __ckpt_odd='' __ckpt_caller=''

__ckpt_say() {
    (
        \unset -f printf 2>/dev/null || \:
        \printf '%s\n' "$*"
    ) >&2 || \:
}

# dash and busybox find a path also where it is no program.
__ckpt_is_there() {
    (
        \unset -f command || \:
        \command -v -- "$1"
    ) >/dev/null 2>&1 || \return 1
    case $1 in
    */*) ! \[ -e "$1" ] || { \[ -f "$1" ] && \[ -x "$1" ]; } ;;
    esac
}

__ckpt_path() {
    \unset -f command || \:
    \command -v -- "$1"
}

# A program outside of the shell: for it alone "|| ..." changes nothing.
__ckpt_is_program() {
    case $(__ckpt_path "$1" 2>/dev/null) in
    alias\ *) \return 1 ;;
    */*) \return 0 ;;
    *) \return 1 ;;
    esac
}

# A function "builtin" of the script would come before all of the shell's own.
__ckpt_ready() {
    __ckpt_odd=''
    __ckpt_returns
    case $__ckpt_odd in
    '') ;;
    *)
        echo "checkpoint: this script has a function named builtin, which hides those of the shell: rename it" >&2
        return 2
        ;;
    esac
}

__ckpt_returns() {
    \return 0
    # shellcheck disable=SC2317 # reached where return is not the shell's
    __ckpt_odd=1
}

# The words of "start --format env".
__ckpt_import() {
    \eval "$__ckpt_out"
}

ckpt_start() {
    __ckpt_ready || return 2
    if \[ "$#" -eq 0 ]; then
        __ckpt_say "ckpt_start: which workflow? ckpt_start WORKFLOW [options of checkpoint-tool start]"
        \return 2
    fi
    # These described an outer run, not the run that begins here.
    \unset CHECKPOINT_ID CHECKPOINT_RUN_ID CHECKPOINT_RUN_STORE CHECKPOINT_TOKEN CHECKPOINT_STATUS CHECKPOINT_STEP \
        CHECKPOINT_IDEMPOTENCY_KEY
    __ckpt_refused=''
    __ckpt_out=$("$CHECKPOINT_TOOL" start "$@" --owner-pid "$$" --format env) || \return "$?"
    __ckpt_import
    __ckpt_started "$@"
}

ckpt_step() {
    __ckpt_ready || return 2
    # A trap with a step of its own may come anywhere in another's: it leaves behind what it found.
    \set -- "$__ckpt_out" "$__ckpt_seen" "$__ckpt_rc" "$__ckpt_verify" "$__ckpt_once" "$__ckpt_add" "${CHECKPOINT_STEP-}" "$@"
    __ckpt_step "$@"
    \set -- "$?" "$1" "$2" "$3" "$4" "$5" "$6" "$7"
    __ckpt_out=$2 __ckpt_seen=$3 __ckpt_rc=$4 __ckpt_verify=$5 __ckpt_once=$6 __ckpt_add=$7
    __ckpt_tell "$8"
    \return "$1"
}

__ckpt_step() {
    \shift 7
    __ckpt_verify='' __ckpt_once='' __ckpt_add=''
    while \:; do
        case ${1-} in
        --once) __ckpt_once=--once && \shift ;;
        --add) __ckpt_add=--add && \shift ;;
        --verify)
            case ${2-} in
            '')
                __ckpt_refuse "${3-}" 2 "ckpt_step: --verify wants a command"
                \return 2
                ;;
            esac
            __ckpt_verify=$2 && \shift 2
            ;;
        --)
            \shift
            \break
            ;;
        -*)
            __ckpt_refuse "${2-}" 2 "ckpt_step: no such option: $1"
            \return 2
            ;;
        *) \break ;;
        esac
    done
    if \[ "$#" -lt 2 ]; then
        __ckpt_refuse "${1-}" 2 \
            "ckpt_step: a step needs a name and a command: ckpt_step [--once] [--verify CMD] [--add] NAME COMMAND..."
        \return 2
    fi
    if \[ -z "${CHECKPOINT_ID:-}" ]; then
        __ckpt_say "ckpt_step: no run has begun here: ckpt_start WORKFLOW comes first"
        \return 2
    fi
    # From here on in arguments, not variables: a step may be a function that has steps of its own.
    \set -- "$__ckpt_verify" "$__ckpt_once" "$@"
    __ckpt_ignored=''
    __ckpt_see_errexit "$4" # a command of its own: in a condition it would see itself
    if \[ -n "$__ckpt_ignored" ]; then
        __ckpt_say "ckpt_step: step $3: in a condition (if, while, &&, ||) the shell ignores set -e inside of $4, and may take" \
            "half of it for the whole; a line of its own is safe"
    fi
    if ! __ckpt_is_there "$4"; then
        if \[ -e "$4" ]; then
            __ckpt_refuse "$3" 126 "ckpt_step: step $3: $4 cannot be executed"
            \return 126
        fi
        __ckpt_refuse "$3" 127 "ckpt_step: step $3: there is no command $4"
        \return 127
    fi
    __ckpt_enter "$__ckpt_add" "$@" || {
        \set -- "$?" "$3"
        __ckpt_refuse "$2" "$1"
        \return "$1"
    }
    __ckpt_allow "$3"
    if \[ "$__ckpt_out" = "done" ]; then
        \return 0
    fi
    __ckpt_tell "$3"
    if __ckpt_is_program "$4"; then
        __ckpt_rc=0
        __ckpt_run "$@" || __ckpt_rc=$?
    else
        # Nothing around it: with "|| ..." the shell would ignore set -e inside a function, go on behind the line that
        # failed, and a half done step would pass for a whole one.
        __ckpt_guard "$1" "$2" "$3"
        __ckpt_run "$@"
        __ckpt_rc=$?
        __ckpt_unguard
    fi
    # "|| return" keeps set -e from ending the script before the end is written down.
    __ckpt_leave "$__ckpt_rc" "$1" "$2" "$3" || \return "$?"
}

ckpt_once() {
    ckpt_step --once "$@"
}

ckpt_complete() {
    __ckpt_ready || return 2
    if \[ -z "${CHECKPOINT_ID:-}" ]; then
        __ckpt_say "ckpt_complete: no run has begun here: ckpt_start WORKFLOW comes first"
        \return 2
    fi
    case $__ckpt_refused-" $* " in
    -* | *" --force "*) ;;
    *)
        __ckpt_name=${__ckpt_refused#/}
        __ckpt_name=${__ckpt_name%%/*}
        __ckpt_say "ckpt_complete: step '${__ckpt_name%=*}' was refused (exit ${__ckpt_name##*=}) and did not run; run it, or" \
            "leave it out: ckpt_complete --force --reason TEXT"
        \return 15
        ;;
    esac
    __ckpt_call complete "$CHECKPOINT_ID" --token "${CHECKPOINT_TOKEN:-}" "$@"
}

# NAME STATUS [MESSAGE]: the step did not run; until it does, ckpt_complete is refused.
__ckpt_refuse() {
    case ${3-} in '') ;; *) __ckpt_say "$3" ;; esac
    __ckpt_allow "$1"
    __ckpt_refused=$__ckpt_refused/$1=$2/
}

# NAME: it runs after all.
__ckpt_allow() {
    case $__ckpt_refused in
    *"/$1="*)
        __ckpt_was=${__ckpt_refused#*"/$1="}
        __ckpt_refused=${__ckpt_refused%%"/$1="*}${__ckpt_was#*/}
        ;;
    esac
}

# STEP: what the command is told in its environment; by that it is also known should it outlive this script.
__ckpt_tell() {
    if \[ -n "$1" ]; then
        # shellcheck disable=SC2034 # exported
        CHECKPOINT_STEP=$1
        # shellcheck disable=SC2034 # exported
        CHECKPOINT_IDEMPOTENCY_KEY=$CHECKPOINT_RUN_ID/$1
        # shellcheck disable=SC2034
        \export CHECKPOINT_STEP CHECKPOINT_IDEMPOTENCY_KEY
    else
        \unset CHECKPOINT_STEP CHECKPOINT_IDEMPOTENCY_KEY
    fi
}

__ckpt_run() {
    \shift 3
    "$@"
}

# ADD VERIFY ONCE NAME COMMAND...: begin the step; __ckpt_out says "begun" or "done".
__ckpt_enter() {
    __ckpt_begin "${2:+--ask}" "$@" || \return "$?"
    case $__ckpt_out in
    begun) \return 0 ;;
    "done")
        __ckpt_say "$CHECKPOINT_ID: step $4: already done, not run again"
        \return 0
        ;;
    in_doubt) ;;
    *)
        __ckpt_say "ckpt_step: an unexpected answer: $__ckpt_out"
        \return 1
        ;;
    esac
    __ckpt_look "$2"
    case $__ckpt_seen in
    --in-place)
        __ckpt_call end "$CHECKPOINT_ID" "$4" --token "${CHECKPOINT_TOKEN:-}" --in-place || \return "$?"
        __ckpt_say "$CHECKPOINT_ID: step $4: its effect is in place, not run again"
        __ckpt_out="done"
        ;;
    --absent) __ckpt_begin --absent "$@" || \return "$?" ;;
    *)
        __ckpt_say "ckpt_step: step $4 of $CHECKPOINT_ID is in doubt, and --verify could not tell whether its effect is in place"
        \return 20
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
        __ckpt_find_caller
        __ckpt_ask=$1 __ckpt_add=$2 __ckpt_once=$4 __ckpt_name=$5
        \shift 5
        \unset -f printf 2>/dev/null || \:
        \printf '%s\0' "$@" | "$CHECKPOINT_TOOL" begin "$CHECKPOINT_ID" "$__ckpt_name" --token "${CHECKPOINT_TOKEN:-}" \
            ${__ckpt_once:+"$__ckpt_once"} ${__ckpt_add:+"$__ckpt_add"} ${__ckpt_ask:+"$__ckpt_ask"} \
            --command-stdin --caller-pid "$__ckpt_caller"
    )
}

# STATUS VERIFY ONCE NAME: end the step by the exit status of its command, which is given back.
__ckpt_leave() {
    __ckpt_seen=''
    if \[ -n "$2" ] && { \[ "$1" -eq 0 ] || \[ -n "$3" ]; }; then
        __ckpt_look "$2"
    fi
    __ckpt_call end "$CHECKPOINT_ID" "$4" --token "${CHECKPOINT_TOKEN:-}" --exit-code "$1" ${__ckpt_seen:+"$__ckpt_seen"} ||
        \return "$?"
    case $__ckpt_out in
    completed) \return 0 ;;
    in_doubt)
        __ckpt_say "$CHECKPOINT_ID: step $4 is in doubt: it may have taken effect before it ended with exit status $1, and it must" \
            "not be repeated blindly (check, then: checkpoint-tool update $CHECKPOINT_ID --complete $4, or --retry $4)"
        ;;
    *)
        case $__ckpt_seen in
        --absent) __ckpt_say "$CHECKPOINT_ID: step $4: its effect is not in place (--verify)" ;;
        --unseen) __ckpt_say "$CHECKPOINT_ID: step $4: its effect could not be looked at (--verify)" ;;
        esac
        ;;
    esac
    if \[ "$1" -eq 0 ]; then
        \return 1
    fi
    \return "$1"
}

# Look at an effect: __ckpt_seen becomes --in-place, --absent or --unseen. Only the command's own answer counts, as 0 or
# 1, which it leaves behind its output: where the shell fails it (a closed stream, a typing error, set -u), that has
# status 1 too. The output goes through a pipe: an "echo" into a full or closed stream must not fail the look.
__ckpt_look() {
    __ckpt_seen=''
    __ckpt_said=$(__ckpt_look_at "$1") || \:
    case $__ckpt_said in
    *"
__ckpt_answer 0") __ckpt_seen=--in-place ;;
    *"
__ckpt_answer 1") __ckpt_seen=--absent ;;
    *) __ckpt_seen=--unseen ;;
    esac
    __ckpt_said=${__ckpt_said%"
__ckpt_answer "*}
    case $__ckpt_said in '') ;; *) __ckpt_say "$__ckpt_said" ;; esac
}

# In a subshell. In a function of its own, what cannot be parsed is never run.
__ckpt_look_at() {
    \trap '__ckpt_answer "$?"' EXIT
    {
        \eval "__ckpt_effect() {
$1
}" && __ckpt_ask
    } 2>&1 </dev/null
}

__ckpt_ask() {
    \set -- 0
    __ckpt_effect || \set -- "$?"
    # Not by the trap: within an EXIT trap of the script, bash runs no other.
    __ckpt_answer "$1" __ckpt_ask
}

# STATUS: dash and busybox end with 2 where they fail a command, so that 0 and 1 are answers.
__ckpt_answer() {
    case $__ckpt_seen in answered) \return 0 ;; esac
    __ckpt_seen=answered
    (
        \unset -f printf || \:
        \printf '\n__ckpt_answer %s' "$1"
    ) 2>/dev/null || \:
}

# One command of checkpoint-tool: what it prints is left in __ckpt_out. Standard input belongs to the script.
__ckpt_call() {
    __ckpt_out=$(__ckpt_ask_tool "$@" </dev/null)
}

__ckpt_ask_tool() {
    case $1 in
    end)
        __ckpt_find_caller
        \set -- "$@" --caller-pid "$__ckpt_caller"
        ;;
    esac
    \exec "$CHECKPOINT_TOOL" "$@"
}

# In a subshell of the shell that runs the step: that one's pid, by which it is told apart from others of the script.
__ckpt_find_caller() {
    \unset -f read 2>/dev/null || \:
    __ckpt_line=
    { IFS= \read -r __ckpt_line </proc/self/stat; } 2>/dev/null || __ckpt_line=") S $$"
    __ckpt_line=${__ckpt_line##*") "}
    __ckpt_line=${__ckpt_line#* }
    __ckpt_caller=${__ckpt_line%% *}
}

__ckpt_started() {
    \:
}

# Sets __ckpt_ignored where set -e is on, and yet ignored here, and matters to this command. Only bash and zsh let that
# be seen.
__ckpt_see_errexit() {
    \:
}

# VERIFY ONCE NAME: a function begins that may end the script, by set -e, exit or a mistake. An EXIT trap of ours records
# that; the script's own is kept in __ckpt_exit_N, and runs after it. "-" there: ours could not be set.
__ckpt_guard() {
    __ckpt_depth=$((__ckpt_depth + 1))
    \eval "__ckpt_verify_$__ckpt_depth=\$1 __ckpt_once_$__ckpt_depth=\$2 __ckpt_name_$__ckpt_depth=\$3 __ckpt_exit_$__ckpt_depth=-"
    __ckpt_find_trap || \return 0
    \eval "__ckpt_exit_$__ckpt_depth=+\$__ckpt_was"
    # In the trap itself, not in a function, is the script's own run: its \$? and its arguments are as without us.
    __ckpt_was="\\eval \"\${__ckpt_exit_$__ckpt_depth#+}\""
    \trap -- "if __ckpt_ended \"\$?\" $__ckpt_depth $__ckpt_how; then $__ckpt_was; else $__ckpt_was; fi" EXIT
}

# shellcheck disable=SC2120 # it sets its own
__ckpt_unguard() {
    \eval "\set -- \"\$__ckpt_exit_$__ckpt_depth\" $__ckpt_depth"
    __ckpt_depth=$((__ckpt_depth - 1))
    case $1 in -) \return 0 ;; esac
    __ckpt_find_trap || \return 0
    case $__ckpt_was in
    *"__ckpt_ended \"\$?\" $2 "*) ;;
    *) \return 0 ;; # the function has set one of its own
    esac
    case $1 in
    +) \trap - EXIT ;;
    *) \trap -- "${1#+}" EXIT ;;
    esac
}

# More words for __ckpt_ended, evaluated in the trap.
__ckpt_how=''

# STATUS DEPTH [HOW]: the script ends within a function that is a step; gives the status back. Not known to have failed is
# what ended well, or as after a signal.
__ckpt_ended() {
    case $1-${3-} in
    0-* | 129-* | 130-* | 131-* | 143-* | *-*__ckpt_run*-?*) \return "$1" ;;
    esac
    __ckpt_depth=$(($2 - 1))
    \eval "\set -- \"\$1\" \"\$__ckpt_verify_$2\" \"\$__ckpt_once_$2\" \"\$__ckpt_name_$2\""
    __ckpt_leave "$@" || \:
    \return "$1"
}

# The script's EXIT trap into __ckpt_was. A shell lists its traps only to itself: in a subshell it has none. So they are
# written into the pipe of a here-document, and read out of it.
__ckpt_find_trap() {
    __ckpt_was='' __ckpt_traps=''
    {
        \[ -p /proc/self/fd/9 ] || \return 1
        { \trap; } >|/proc/self/fd/9
        __ckpt_traps=$(__ckpt_copy <&9)
    } 9<<EOF
EOF
    __ckpt_parse_traps
}

# In a subshell.
__ckpt_copy() {
    \unset -f read printf 2>/dev/null || \:
    while IFS= \read -r __ckpt_line; do
        \printf '%s\n' "$__ckpt_line"
    done
}

# EXIT stands first where there is one. What follows sets the other traps, as they are.
# shellcheck disable=SC2120
__ckpt_parse_traps() {
    \eval "\set -- $__ckpt_traps"
    case ${4-} in EXIT) __ckpt_was=$3 ;; esac
}
