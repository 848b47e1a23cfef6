
# In zsh the functions talk to one checkpoint-tool session, a coprocess, over pipes: a step then costs no new process.
# In a subshell, where two could talk at once, each call is a process as above.
typeset -g __ckpt_pid='' __ckpt_to='' __ckpt_from='' __ckpt_busy=''

__ckpt_started() {
    __ckpt_close
    emulate -L zsh
    setopt no_monitor no_notify
    local to from
    coproc exec "$CHECKPOINT_TOOL" session --owner-pid "$$" 2>/dev/null || return 0
    __ckpt_pid=$!
    # Or a plain "wait" in the script would wait for the session, which waits for the script.
    disown 2>/dev/null || true # it may have ended already
    # Descriptors of our own, for the script may start a coprocess too; and closed in every command that it runs.
    eval 'exec {to}>&p {from}<&p' # in an eval, for the script may have been read with ignore_braces
    if zmodload zsh/system 2>/dev/null && sysopen -w -o cloexec -u __ckpt_to "/dev/fd/$to" 2>/dev/null &&
        sysopen -r -o cloexec -u __ckpt_from "/dev/fd/$from" 2>/dev/null; then
        eval 'exec {to}>&- {from}<&-'
    else
        __ckpt_to=$to __ckpt_from=$from
    fi
    coproc exit
}

__ckpt_close() {
    if [ -n "$__ckpt_pid" ]; then
        emulate -L zsh
        eval 'exec {__ckpt_to}>&- {__ckpt_from}<&-'
        __ckpt_pid='' __ckpt_busy=''
    fi
}

# Whether the session can be asked. A second one is never started later: it would change $! behind the script's back.
__ckpt_is_open() {
    if [ -z "$__ckpt_pid" ] || [ -n "$__ckpt_busy" ] || [ "$ZSH_SUBSHELL" -ne 0 ]; then
        return 1 # busy: a trap of the script came between a question and its answer
    fi
    kill -0 "$__ckpt_pid" 2>/dev/null || {
        __ckpt_close
        return 1
    }
}

__ckpt_call() {
    if ! __ckpt_is_open; then
        __ckpt_out=$("$CHECKPOINT_TOOL" "$@" </dev/null)
        return "$?"
    fi
    local code err
    __ckpt_busy=1
    if printf '%s\0' "$#" "$@" 2>/dev/null 1>&"$__ckpt_to" &&
        IFS= read -r -d '' -u "$__ckpt_from" code &&
        IFS= read -r -d '' -u "$__ckpt_from" __ckpt_out &&
        IFS= read -r -d '' -u "$__ckpt_from" err; then
        __ckpt_busy=''
        if [ -n "$err" ]; then
            printf '%s\n' "$err" >&2
        fi
        return "$code"
    fi
    # The session died: what it was asked for can be asked again.
    __ckpt_close
    __ckpt_out=$("$CHECKPOINT_TOOL" "$@" </dev/null)
}

# A command of more words than a session takes in one question goes the other way.
__ckpt_begin() {
    local __ckpt_words="$*"
    if ! __ckpt_is_open || [ "$#" -gt 1000 ] || [ "${#__ckpt_words}" -gt 100000 ]; then
        __ckpt_begin_apart "$@"
        return "$?"
    fi
    local __ckpt_ask=$1 __ckpt_add=$2 __ckpt_once=$4 __ckpt_name=$5
    shift 5
    __ckpt_call begin "$CHECKPOINT_ID" "$__ckpt_name" --token "${CHECKPOINT_TOKEN:-}" ${__ckpt_once:+"$__ckpt_once"} \
        ${__ckpt_add:+"$__ckpt_add"} ${__ckpt_ask:+"$__ckpt_ask"} -- "$@"
}

# In zsh "command printf" is a program, whose arguments anyone could read in ps.
__ckpt_begin_apart() {
    __ckpt_out=$(
        __ckpt_ask=$1 __ckpt_add=$2 __ckpt_once=$4 __ckpt_name=$5
        shift 5
        builtin printf '%s\0' "$@" | "$CHECKPOINT_TOOL" begin "$CHECKPOINT_ID" "$__ckpt_name" --token "${CHECKPOINT_TOKEN:-}" \
            ${__ckpt_once:+"$__ckpt_once"} ${__ckpt_add:+"$__ckpt_add"} ${__ckpt_ask:+"$__ckpt_ask"} --command-stdin
    )
}

__ckpt_is_program() {
    case $1 in
    . | source | eval | command | builtin | exec | coproc | trap) return 1 ;;
    esac
    [ "${+functions[$1]}" -eq 0 ]
}

# Where set -e is ignored, so are ZERR traps.
__ckpt_see_errexit() {
    if [[ -o errexit ]] && ! __ckpt_is_program "$1"; then
        setopt local_options local_traps
        unsetopt err_exit
        __ckpt_ignored=1
        trap '__ckpt_ignored=""' ZERR
        false
    fi
    return 0
}
