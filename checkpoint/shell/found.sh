
if ! __ckpt_is_there "$CHECKPOINT_TOOL"; then
    __ckpt_say "checkpoint: there is no $CHECKPOINT_TOOL on PATH, so nothing can be recorded; install it, or name it in CHECKPOINT_TOOL"
    # Not only "return": a script without set -e would go on, and every step would be left out.
    case $- in
    *i*) \return 127 ;;
    *) \exit 127 ;;
    esac
fi
