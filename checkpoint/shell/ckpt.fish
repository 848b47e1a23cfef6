# Functions for fish around checkpoint-tool; each call is a process.
#
#   ckpt_start WORKFLOW [options of start]        start the run or continue it; the script itself is its owner
#   ckpt_step [--once] [--verify CMD] [--add] NAME COMMAND...   run a step, unless it is done already
#   ckpt_once ...                                 the same as ckpt_step --once
#   ckpt_complete [options of complete]           finish the run

set -q CHECKPOINT_TOOL; or set -g CHECKPOINT_TOOL @TOOL@

if not command -q $CHECKPOINT_TOOL
    builtin echo "checkpoint: there is no $CHECKPOINT_TOOL on PATH, so nothing can be recorded; install it, or name it in CHECKPOINT_TOOL" >&2
    status is-interactive; and return 127
    # exit would leave no more than this file, where it is sourced: the script would go on, and leave out every step.
    exec /bin/sh -c 'exit 127'
end

function ckpt_start
    if test (builtin count $argv) -eq 0
        builtin echo "ckpt_start: which workflow? ckpt_start WORKFLOW [options of checkpoint-tool start]" >&2
        return 2
    end
    set -e CHECKPOINT_ID CHECKPOINT_RUN_ID CHECKPOINT_RUN_STORE CHECKPOINT_TOKEN CHECKPOINT_STATUS CHECKPOINT_STEP CHECKPOINT_IDEMPOTENCY_KEY
    set -g __ckpt_refused
    set -l state ($CHECKPOINT_TOOL start $argv --owner-pid $fish_pid --format env); or return
    # In the single quotes of fish a backslash counts, in those of other shells it does not.
    string join \n -- $state | string collect | string replace -a "'\\''" \x01 | string replace -a \\ \\\\ \
        | string replace -a \x01 "\\'" | string replace -r '^export (\w+)=' 'set -gx $1 ' | string collect | read -z state
    eval $state
end

function ckpt_step
    argparse -s once add 'verify=' -- $argv; or begin
        __ckpt_refuse '' 2
        return 2
    end
    if set -q _flag_verify; and test -z "$_flag_verify"
        builtin echo "ckpt_step: --verify wants a command" >&2
        __ckpt_refuse "$argv[1]" 2
        return 2
    end
    if test (builtin count $argv) -lt 2
        builtin echo "ckpt_step: a step needs a name and a command: ckpt_step [--once] [--verify CMD] [--add] NAME COMMAND..." >&2
        __ckpt_refuse "$argv[1]" 2
        return 2
    end
    if not set -q CHECKPOINT_ID; or test -z "$CHECKPOINT_ID"
        builtin echo "ckpt_step: no run has begun here: ckpt_start WORKFLOW comes first" >&2
        return 2
    end
    if not builtin type -q -- $argv[2]
        if test -e $argv[2]
            builtin echo "ckpt_step: step $argv[1]: $argv[2] cannot be executed" >&2
            __ckpt_refuse $argv[1] 126
            return 126
        end
        builtin echo "ckpt_step: step $argv[1]: there is no command $argv[2]" >&2
        __ckpt_refuse $argv[1] 127
        return 127
    end
    set -l name $argv[1]
    set -l place $CHECKPOINT_ID $name --token "$CHECKPOINT_TOKEN"
    set -l ask
    set -q _flag_verify; and set ask --ask
    set -l caller --caller-pid $fish_pid
    # The command goes through a pipe: as arguments of a program anyone could read it in ps.
    set -l answer (builtin printf '%s\0' $argv[2..] \
        | $CHECKPOINT_TOOL begin $place $caller $_flag_once $_flag_add $ask --command-stdin); or begin
        set -l code $status
        __ckpt_refuse $name $code
        return $code
    end
    if test "$answer" = in_doubt
        __ckpt_look $_flag_verify
        switch $status
            case 0
                $CHECKPOINT_TOOL end $place $caller --in-place </dev/null >/dev/null; or return
                builtin echo "$CHECKPOINT_ID: step $name: its effect is in place, not run again" >&2
                return 0
            case 1
                builtin printf '%s\0' $argv[2..] \
                    | $CHECKPOINT_TOOL begin $place $caller --absent $_flag_once $_flag_add --command-stdin >/dev/null; or begin
                    set -l code $status
                    __ckpt_refuse $name $code
                    return $code
                end
            case '*'
                builtin echo "ckpt_step: step $name of $CHECKPOINT_ID is in doubt, and --verify could not tell whether its effect is in place" >&2
                __ckpt_refuse $name 20
                return 20
        end
    else if test "$answer" = done
        __ckpt_allow $name
        builtin echo "$CHECKPOINT_ID: step $name: already done, not run again" >&2
        return 0
    end
    __ckpt_allow $name
    # By these it is also known should it outlive this script.
    set -lx CHECKPOINT_STEP $name
    set -lx CHECKPOINT_IDEMPOTENCY_KEY $CHECKPOINT_RUN_ID/$name
    $argv[2..]
    set -l code $status
    set -l seen
    if set -q _flag_verify; and begin
            test $code -eq 0; or set -q _flag_once
        end
        __ckpt_look $_flag_verify
        switch $status
            case 0
                set seen --in-place
            case 1
                set seen --absent
            case '*'
                set seen --unseen
        end
    end
    set answer ($CHECKPOINT_TOOL end $place $caller --exit-code $code $seen </dev/null); or return
    switch $answer
        case completed
            return 0
        case in_doubt
            builtin echo "$CHECKPOINT_ID: step $name is in doubt: it may have taken effect before it ended with exit status $code, and it must not be repeated blindly (check, then: checkpoint-tool update $CHECKPOINT_ID --complete $name, or --retry $name)" >&2
        case '*'
            test "$seen" = --absent; and builtin echo "$CHECKPOINT_ID: step $name: its effect is not in place (--verify)" >&2
            test "$seen" = --unseen; and builtin echo "$CHECKPOINT_ID: step $name: its effect could not be looked at (--verify)" >&2
    end
    test $code -eq 0; and return 1
    return $code
end

function ckpt_once
    ckpt_step --once $argv
end

function ckpt_complete
    if not set -q CHECKPOINT_ID; or test -z "$CHECKPOINT_ID"
        builtin echo "ckpt_complete: no run has begun here: ckpt_start WORKFLOW comes first" >&2
        return 2
    end
    if set -q __ckpt_refused[1]; and not contains -- --force $argv
        set -l refused (string split = -- $__ckpt_refused[1])
        builtin echo "ckpt_complete: step '$refused[1]' was refused (exit $refused[2]) and did not run; run it, or leave it out: ckpt_complete --force --reason TEXT" >&2
        return 15
    end
    $CHECKPOINT_TOOL complete $CHECKPOINT_ID --token "$CHECKPOINT_TOKEN" $argv </dev/null >/dev/null
end

# NAME STATUS: the step did not run; until it does, ckpt_complete is refused.
function __ckpt_refuse
    __ckpt_allow "$argv[1]"
    set -ga __ckpt_refused "$argv[1]=$argv[2]"
end

# NAME: it runs after all.
function __ckpt_allow
    set -l kept
    for refused in $__ckpt_refused
        test (string split -r -m 1 = -- $refused)[1] = "$argv[1]"; or set -a kept $refused
    end
    set -g __ckpt_refused $kept
end

# Look at an effect: 0 it is in place, 1 it is not, else that could not be told (as of test, grep and cmp). Its output goes
# through a pipe: an "echo" into a full or closed stream must not fail the look. What fish says of a command that does not
# exist is kept back: where it cannot be written, fish 3.6 stops for ever.
function __ckpt_look
    # Without a path, or fish would load its own here, and that one calls "type", perhaps an alias of the script.
    set -l __ckpt_path $fish_function_path
    set -g fish_function_path
    functions -q fish_command_not_found; and functions -c fish_command_not_found __ckpt_not_found
    set -g fish_function_path $__ckpt_path
    function fish_command_not_found
    end
    set -g __ckpt_seen 2
    begin
        eval $argv
        set -g __ckpt_seen $status
    end 2>&1 </dev/null | begin
        builtin read -z -l said
        builtin printf %s $said >&2
    end
    functions -e fish_command_not_found
    functions -q __ckpt_not_found; and functions -c __ckpt_not_found fish_command_not_found
    functions -e __ckpt_not_found
    test "$__ckpt_seen" -le 1; and return $__ckpt_seen
    test "$__ckpt_seen" -eq 127; and builtin echo "--verify: there is no such command: $argv" >&2
    return 2
end
