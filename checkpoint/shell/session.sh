
# For bash and zsh. A command of more words than a session takes in one question goes the other way.
__ckpt_begin() {
    \local __ckpt_words="$*"
    if ! __ckpt_is_open || [[ $# -gt 1000 || ${#__ckpt_words} -gt 100000 ]]; then
        __ckpt_begin_apart "$@"
        \return "$?"
    fi
    \local __ckpt_ask="$1" __ckpt_add="$2" __ckpt_once="$4" __ckpt_name="$5"
    \shift 5
    __ckpt_call begin "$CHECKPOINT_ID" "$__ckpt_name" --token "${CHECKPOINT_TOKEN:-}" ${__ckpt_once:+"$__ckpt_once"} \
        ${__ckpt_add:+"$__ckpt_add"} ${__ckpt_ask:+"$__ckpt_ask"} -- "$@"
}
