
# In zsh the functions talk to one checkpoint-tool session, a coprocess, over pipes: a step then costs no new process.
# In a subshell, where two could talk at once, each call is a process as above.
\zmodload zsh/system zsh/parameter 2>/dev/null
\typeset -g __ckpt_pid='' __ckpt_to='' __ckpt_from='' __ckpt_busy='' __ckpt_failed=''
\typeset -ga zshexit_functions
[[ -n ${(M)zshexit_functions:#__ckpt_exits} ]] || zshexit_functions+=(__ckpt_exits)

# In a subshell: after a built-in could not write, zsh ends the script.
__ckpt_say() {
    (\printf '%s\n' "$*" >&2) || \:
}

__ckpt_is_there() {
    \whence -- "$1" >/dev/null 2>&1
}

__ckpt_is_program() {
    case $1 in
    . | source | eval | command | builtin | exec | coproc | trap) \return 1 ;;
    esac
    [[ ${+functions[$1]} -eq 0 ]]
}

# Where set -e is ignored, so are ZERR traps.
__ckpt_see_errexit() {
    if [[ -o errexit ]] && ! __ckpt_is_program "$1"; then
        \setopt local_options local_traps
        \unsetopt err_exit
        __ckpt_ignored=1
        \trap '__ckpt_ignored=""' ZERR
        \false
    fi
    \return 0
}

# Declared as global, or warn_create_global would complain.
__ckpt_tell() {
    if [[ -n $1 ]]; then
        \typeset -gx CHECKPOINT_STEP="$1" CHECKPOINT_IDEMPOTENCY_KEY="$CHECKPOINT_RUN_ID/$1"
    else
        \unset CHECKPOINT_STEP CHECKPOINT_IDEMPOTENCY_KEY
    fi
}

# After a mistake of the shell, zsh runs always-lists with an error, or no zshexit function; by "exit" it does the other.
__ckpt_look_at() {
    zshexit_functions=(__ckpt_answer_at_exit)
    {
        functions[__ckpt_effect]=$1
        if [[ ${+functions[__ckpt_effect]} -eq 1 ]]; then
            {
                __ckpt_ask
            } always {
                __ckpt_failed=$TRY_BLOCK_ERROR
            }
        fi
    } 2>&1 </dev/null
}

__ckpt_ask() {
    \set -- 0
    __ckpt_effect || \set -- "$?"
    \exit "$1"
}

__ckpt_answer_at_exit() {
    \set -- "$?"
    case $__ckpt_failed in
    '' | 0) \printf '\n__ckpt_answer %s' "$1" ;;
    esac
}

# zsh runs no EXIT trap where set -e ends a script within a function, but ZERR traps; and zshexit functions
# after a mistake of the shell. After "exit" within a function it leaves these at once too: such a step stays in doubt.
__ckpt_guard() {
    __ckpt_depth=$((__ckpt_depth + 1))
    \typeset -g "__ckpt_verify_$__ckpt_depth=$1" "__ckpt_once_$__ckpt_depth=$2" "__ckpt_name_$__ckpt_depth=$3"
    \typeset -g "__ckpt_shell_$__ckpt_depth=$ZSH_SUBSHELL"
}

__ckpt_unguard() {
    __ckpt_depth=$((__ckpt_depth - 1))
}

__ckpt_run() {
    \shift 3
    if [[ $__ckpt_depth -gt 0 && -o err_exit ]] && __ckpt_find_trap; then
        \typeset -g "__ckpt_zerr_$__ckpt_depth=$__ckpt_was"
        # For as long as this function runs; the step's own function must not see the option, and keep no traps.
        __ckpt_was="__ckpt_fails \"\$?\" $__ckpt_depth || \eval \"\$__ckpt_zerr_$__ckpt_depth\"; __ckpt_leaves $__ckpt_depth"
        if [[ -o local_traps ]]; then
            \trap -- "$__ckpt_was" ZERR
        else
            \setopt local_traps
            \trap -- "$__ckpt_was" ZERR
            \unsetopt local_traps
        fi
    fi
    "$@"
}

# STATUS DEPTH: a line failed where set -e counts.
__ckpt_fails() {
    __ckpt_failed=$1
    if [[ -o err_exit && $1 -gt 0 && $__ckpt_depth -ge $2 ]] && __ckpt_is_here "$2"; then
        __ckpt_ended "$1" "$2" || \:
    fi
    \return "$1"
}

# DEPTH: end the script as set -e would do next, but with its EXIT trap, which zsh leaves out within a function.
__ckpt_leaves() {
    if [[ -o err_exit && $__ckpt_failed -gt 0 ]] && __ckpt_is_here "$1"; then
        \unsetopt err_exit # or zsh would end at once
        \exit "$__ckpt_failed"
    fi
}

# The script's ZERR trap as a line into __ckpt_was: it runs behind ours.
__ckpt_find_trap() {
    __ckpt_was='' __ckpt_traps=''
    if [[ ${+functions[TRAPZERR]} -eq 1 ]]; then
        functions[__ckpt_trapzerr_$__ckpt_depth]=$functions[TRAPZERR]
        __ckpt_was="__ckpt_trapzerr_$__ckpt_depth \"\$?\""
        \return 0
    fi
    {
        [[ -e /proc/self/fd/9 ]] || \return 1
        \trap >|/proc/self/fd/9
        IFS= \read -r -d '' __ckpt_traps <&9 || \:
    } 9<<<''
    \local -a words
    words=("${(@z)__ckpt_traps}")
    \local -i at=${words[(I)(Z|)ERR]}
    if [[ $at -gt 3 && ${words[at-3]} == trap ]]; then
        __ckpt_was=${(Q)words[at-1]}
    fi
}

__ckpt_exits() {
    \set -- "$?"
    # By a signal, which zsh notices where it stands, within the functions.
    [[ ${(j: :)funcstack} != *__ckpt_run* ]] || \return 0
    while [[ $__ckpt_depth -gt 0 ]]; do
        __ckpt_is_here "$__ckpt_depth" || \return 0
        __ckpt_ended "$1" "$__ckpt_depth" || \:
        [[ $1 -ne 0 ]] || \return 0
    done
}

# DEPTH: whether the step began in this shell, not in the one around it.
__ckpt_is_here() {
    \eval "[[ \$__ckpt_shell_$1 -eq \$ZSH_SUBSHELL ]]"
}

__ckpt_call() {
    case $1 in begin | end) \set -- "$1" --caller-pid "${sysparams[pid]-$$}" "${@:2}" ;; esac
    if ! __ckpt_is_open; then
        __ckpt_out=$("$CHECKPOINT_TOOL" "$@" </dev/null)
        \return "$?"
    fi
    \local code err
    __ckpt_busy=1
    if \printf '%s\0' "$#" "$@" 2>/dev/null 1>&"$__ckpt_to" &&
        IFS= \read -r -d '' -u "$__ckpt_from" code &&
        IFS= \read -r -d '' -u "$__ckpt_from" __ckpt_out &&
        IFS= \read -r -d '' -u "$__ckpt_from" err; then
        __ckpt_busy=''
        case $err in '') ;; *) __ckpt_say "$err" ;; esac
        \return "$code"
    fi
    # The session died: what it was asked for can be asked again.
    __ckpt_close
    __ckpt_out=$("$CHECKPOINT_TOOL" "$@" </dev/null)
}

# Whether the session can be asked. A second one is never started later: it would change $! behind the script's back.
__ckpt_is_open() {
    if [[ -z $__ckpt_pid || -n $__ckpt_busy || $ZSH_SUBSHELL -ne 0 ]]; then
        \return 1 # busy: a trap of the script came between a question and its answer
    fi
    \kill -0 "$__ckpt_pid" 2>/dev/null || {
        __ckpt_close
        \return 1
    }
}

__ckpt_close() {
    if [[ -n $__ckpt_pid ]]; then
        \emulate -L zsh
        \eval 'exec {__ckpt_to}>&- {__ckpt_from}<&-'
        __ckpt_pid='' __ckpt_busy=''
    fi
}

__ckpt_started() {
    __ckpt_close
    [[ $ZSH_SUBSHELL -eq 0 ]] || \return 0 # a subshell would never ask it
    \emulate -L zsh
    \setopt no_monitor no_notify
    \local to from
    coproc \exec "$CHECKPOINT_TOOL" session --owner-pid "$$" 2>/dev/null || \return 0
    __ckpt_pid=$!
    # Or a plain "wait" in the script would wait for the session, which waits for the script.
    \disown 2>/dev/null || \: # it may have ended already
    # Descriptors of our own, for the script may start a coprocess too; and closed in every command that it runs.
    \eval '\exec {to}>&p {from}<&p' # in an eval, for the script may have been read with ignore_braces
    if \sysopen -w -o cloexec -u __ckpt_to "/dev/fd/$to" 2>/dev/null &&
        \sysopen -r -o cloexec -u __ckpt_from "/dev/fd/$from" 2>/dev/null; then
        \eval '\exec {to}>&- {from}<&-'
    else
        __ckpt_to=$to __ckpt_from=$from
    fi
    coproc \exit
}
