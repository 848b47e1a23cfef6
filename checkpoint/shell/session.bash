
# In bash the functions talk to one checkpoint-tool session, a coprocess, over pipes: a step then costs no new process.
# In a subshell, where two could talk at once, and in a bash without coprocesses, each call is a process as above.
__ckpt_say() {
    \printf '%s\n' "$*" >&2 || \:
}

__ckpt_is_there() {
    \type -t -- "$1" >/dev/null
}

__ckpt_is_program() {
    case $1 in
    . | source | eval | command | builtin | exec | coproc | trap) \return 1 ;;
    esac
    ! \declare -F -- "$1" >/dev/null 2>&1
}

# Where set -e is ignored, so are ERR traps. That of the script is put by while a function runs, unless it is
# inherited by functions (set -E): then it would be ours to spoil.
__ckpt_see_errexit() {
    case $- in
    *E*) \return 0 ;;
    *e*) ;;
    *) \return 0 ;;
    esac
    if ! __ckpt_is_program "$1"; then
        \set +e
        __ckpt_ignored=1
        \trap '__ckpt_ignored=""' ERR
        \false
        \trap - ERR
        \set -e
    fi
}

# In posix mode a special built-in comes before a function, such as one named export.
__ckpt_import() {
    if [[ ! -o posix ]] && ! __ckpt_is_program export; then
        \set -o posix
        \eval "$__ckpt_out"
        \set +o posix
    else
        \eval "$__ckpt_out"
    fi
}

# Where a mistake of the shell ends the look, bash has left every function by then; by "exit" it has not.
__ckpt_look_at() {
    \trap '__ckpt_answer "$?" "${FUNCNAME[*]}"' EXIT
    {
        \eval "__ckpt_effect() {
$1
}" && __ckpt_ask
    } 2>&1 </dev/null
}

__ckpt_answer() {
    case $__ckpt_seen-$2 in -*__ckpt_ask*) \printf '\n__ckpt_answer %s' "$1" ;; esac
    __ckpt_seen=answered
}

# After a signal, bash runs the EXIT trap where it stands, within the functions, and "return" is refused there.
__ckpt_how='"${FUNCNAME[*]}-$(\return 0 2>&1)"'

# A subshell shows the traps of the shell around it until it sets one: setting one that cannot be set ends that.
__ckpt_find_trap() {
    __ckpt_was='' __ckpt_traps=''
    {
        \[ -e /proc/self/fd/9 ] || \return 1
        \trap - KILL
        \trap -p EXIT >|/proc/self/fd/9
        IFS= \read -r -d '' __ckpt_traps <&9 || \:
    } 9<<<''
    __ckpt_traps=${__ckpt_traps#$'\n'}
    __ckpt_parse_traps
}

if [[ ${BASH_VERSINFO[0]}${BASH_VERSINFO[1]} -ge 41 ]]; then
    __ckpt_pid='' __ckpt_to='' __ckpt_from='' __ckpt_busy=''

    __ckpt_started() {
        __ckpt_close
        [[ $BASHPID == "$$" ]] || \return 0 # a subshell would never ask it
        # In an eval, for older ones cannot even read it.
        \eval '{ coproc __CKPT_SESSION { \exec "$CHECKPOINT_TOOL" session --owner-pid "$$"; }; } 2>/dev/null' || \return 0
        __ckpt_pid=$! __ckpt_to=${__CKPT_SESSION[1]-} __ckpt_from=${__CKPT_SESSION[0]-}
        # Or a plain "wait" in the script would wait for the session, which waits for the script.
        \disown "$__ckpt_pid" 2>/dev/null || \:
        [[ -n $__ckpt_to ]] || __ckpt_pid=''
    }

    __ckpt_close() {
        if [[ -n $__ckpt_pid ]]; then
            # Closing a descriptor that a variable names lasts, also without exec.
            \eval '\: {__ckpt_to}>&- {__ckpt_from}<&-'
            __ckpt_pid='' __ckpt_busy=''
        fi
    }

    # Whether the session can be asked. A second one is never started later: it would change $! behind the script's back.
    __ckpt_is_open() {
        if [[ -z $__ckpt_pid || -n $__ckpt_busy || $BASHPID != "$$" ]]; then
            \return 1 # busy: a trap of the script came between a question and its answer
        fi
        \kill -0 "$__ckpt_pid" 2>/dev/null || {
            __ckpt_close
            \return 1
        }
    }

    __ckpt_call() {
        case $1 in begin | end) \set -- "$1" --caller-pid "$BASHPID" "${@:2}" ;; esac
        if ! __ckpt_is_open; then
            __ckpt_out=$("$CHECKPOINT_TOOL" "$@" </dev/null)
            \return "$?"
        fi
        __ckpt_busy=1
        if \printf '%s\0' "$#" "$@" 2>/dev/null 1>&"$__ckpt_to" &&
            IFS= \read -r -d '' -u "$__ckpt_from" __ckpt_code &&
            IFS= \read -r -d '' -u "$__ckpt_from" __ckpt_out &&
            IFS= \read -r -d '' -u "$__ckpt_from" __ckpt_err; then
            __ckpt_busy=''
            case $__ckpt_err in '') ;; *) __ckpt_say "$__ckpt_err" ;; esac
            \return "$__ckpt_code"
        fi
        # The session died: what it was asked for can be asked again.
        __ckpt_close
        __ckpt_out=$("$CHECKPOINT_TOOL" "$@" </dev/null)
    }
else
    __ckpt_is_open() {
        \return 1
    }
fi
