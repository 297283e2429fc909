# What both programs do that carry out an attempt with a POSIX shell: remote.sh on an SSH target, job.sh on a node of Slurm.
#
# Each is sent this text in front of its own, so that a change here holds for both. It works in dash, busybox sh and bash. Names start
# with dg_, so that none of the account's or the task's is changed. Before it calls dg_carry_out, a program sets
#
#   dg_home        where tasks start
#   dg_in dg_out dg_err   the files that are the task's standard input, output and error
#   dg_mark        NAME=VALUE, a variable for the task by which dg_sweep finds what it leaves behind
#   dg_timeout     in seconds, empty if there is none; dg_grace, seconds from SIGTERM to SIGKILL
#   dg_cause       a file for the reason why the task is ended, `kill` or `timeout`; the first reason counts
#   dg_refused     a file for the reason why the task cannot be started: a word and its texts (startable.py), a NUL after each
#   dg_said dg_times      files for what this shell says of a signal that has ended the task, and for what times(1) says
#
# and defines dg_begun, which the task's process calls just before it becomes the program, in the task's environment.
# Nothing here ends a process that is no attempt's.

dg_mask=$(umask)
umask 077

# Find the programs that are needed here.
dg_find_tools() {
    dg_surely eval 'dg_setsid=$(command -v setsid)'
    dg_surely eval 'dg_env=$(command -v env)'
    dg_surely eval 'dg_grep=$(command -v grep)'
    # A shell has what it starts in the background ignore these two, and most cannot take that back. Nor can busybox's env.
    dg_reset=
    if dg_surely "$dg_env" --default-signal=INT,QUIT true; then dg_reset=--default-signal=INT,QUIT; fi 2>/dev/null
}

# dg_surely COMMAND...: execute it again for as long as a signal ends it, because whoever stops this shell may signal all that is in its
# process group, as Slurm does. A program that was ended so would be taken for one that has failed.
dg_surely() {
    dg_more=0
    while "$@"; dg_made=$?; [ "$dg_made" -gt 128 ] && [ "$dg_more" -lt 100 ]; do
        dg_more=$((dg_more + 1))
    done
    return "$dg_made"
}

# dg_once TEXT FILE: make a file, if nobody has made it yet.
dg_once() {
    set -C
    { echo "$1" >"$2"; } 2>/dev/null
    dg_made=$?
    set +C
    return "$dg_made"
}

# -- what is kept of output --------------------------------------------------------------------------------------------

# dg_keep SIZE LIMIT: how many bytes of a stream are kept at its head and its tail, and how many are cut. This is kept_of of kept.py.
dg_keep() {
    dg_most=$2
    if [ "$dg_most" -eq 0 ]; then dg_most=1048576; fi
    dg_head=$1
    dg_tail=0
    if [ "$1" -gt "$dg_most" ]; then
        if [ "$dg_most" -gt 1048576 ]; then dg_most=1048576; fi
        dg_head=$((dg_most / 2))
        dg_tail=$((dg_most - dg_head))
    fi
    dg_cut=$(($1 - dg_head - dg_tail))
}

# -- starting ----------------------------------------------------------------------------------------------------------

# dg_carry_out FOLDER NAMES ODD [NAME=VALUE]... [ODD NAME=VALUE]... COMMAND...: start the task, wait for its end, and end its group.
# FOLDER may be empty. NAMES and ODD say how many variables follow: those that a shell can export, and those that only env(1) can set.
# Sets dg_code, the exit code as a shell has it; dg_flags: s if a signal has ended the task, r if it was not started; dg_why, the
# reason in dg_cause; dg_cpu, the last line of times(1).
dg_carry_out() {
    eval "dg_program=\${$((4 + $2 + $3))}"
    exec </dev/null 2>"$dg_said"
    if [ -e "$dg_times" ]; then rm "$dg_times"; fi # of an execution before; to guards it says that the task has ended
    # A stop that comes before `dg_task` is set is only noted: the guard that it makes would take the place of the others in `$!`.
    dg_task= dg_guards=
    dg_become "$@" &
    dg_began=$!
    if [ -n "$dg_timeout" ]; then
        {
            dg_task=$dg_began
            dg_time
        } &
        dg_guards=$!
    fi
    dg_task=$dg_began
    [ -z "$dg_stopping" ] || dg_stop_task
    # A signal that is caught interrupts `wait`, which tells 143 then. To wait again for what has ended by it gives 127.
    dg_code=
    while :; do
        dg_caught=
        wait "$dg_task"
        dg_now=$?
        if [ "$dg_now" = 127 ] && [ "$dg_code" = 143 ]; then break; fi
        dg_code=$dg_now
        if [ -z "$dg_caught" ] || [ "$dg_code" != 143 ] || dg_lost_end; then break; fi
    done
    dg_flags=-
    # Shells say on standard error which signal has ended what they waited for; for these three not all do.
    case $dg_code in 130 | 141 | 143) dg_flags=s ;; esac
    if [ "$dg_code" -gt 128 ]; then
        # Of a task that has ended before they wait for it, dash and busybox say nothing. But they list it as a job that has ended.
        if [ -s "$dg_said" ]; then dg_flags=s; else jobs -l >"$dg_said"; fi
        if [ "$dg_flags" = - ]; then dg_hear_jobs; fi
    fi
    { times; } >"$dg_times" # in braces, because what is redirected in vain for a special built-in ends the shell
    [ -z "$dg_guards" ] || kill -USR1 $dg_guards
    kill -KILL "-$dg_task" # whoever is left of its group; dg_sweep waits for them
    case $dg_code in 126 | 127) dg_hear_setsid ;; esac
    if [ -s "$dg_refused" ]; then dg_flags=${dg_flags}r; fi
    dg_cpu= dg_why=
    { read -r dg_cpu && read -r dg_cpu; } <"$dg_times"
    if [ -e "$dg_cause" ]; then
        read -r dg_why <"$dg_cause"
        # On a full disk the file is there without its word.
        if [ -z "$dg_why" ] && [ -n "$dg_stopping" ]; then dg_why=kill; fi
        if [ -z "$dg_why" ]; then dg_why=timeout; fi
    fi
}

# Whether the shell has lost the end of its task. If a signal interrupts its `wait` just as that ends, bash takes the end from the kernel
# and forgets it: the task is gone, and stands in its list as one that runs. To wait for it then is to wait for the end of all guards.
dg_lost_end() {
    if kill -0 "$dg_task"; then return 1; fi 2>/dev/null
    dg_surely eval 'dg_line=$(jobs -r -p 2>/dev/null)' # which the other shells do not have
    for dg_line in $dg_line; do
        if [ "$dg_line" = "$dg_task" ]; then return 0; fi
    done
    return 1
}

# dg_refuse WORD TEXT...: the task cannot be started.
dg_refuse() {
    printf '%s\0' "$@" >"$dg_refused"
    exit 126
}

# Note that a signal has ended the task, if the list of jobs says so: a job that has exited is Done(CODE) or Exit CODE there.
dg_hear_jobs() {
    while read -r dg_line; do
        case $dg_line in
            *" $dg_task "*Done* | *" $dg_task "*Exit*) ;;
            *" $dg_task "*) dg_flags=s ;;
        esac
    done <"$dg_said"
}

# Note why the program could not be executed, if all that stands on standard error is setsid's word on that, or the shell's on env(1).
dg_hear_setsid() {
    if [ -s "$dg_refused" ]; then return; fi
    { read -r dg_line && ! read -r dg_more; } <"$dg_err" || return
    case $dg_line in
        *setsid:*"$dg_program"*': '* | *"$dg_env: Argument list too long") (dg_refuse execute "$dg_program" "${dg_line##*: }") ;;
    esac
}

# Become the task; as dg_carry_out. The words of the command, and before them those of odd names, are what is left after the shifts.
dg_become() {
    cd -- "$dg_home" || dg_refuse home "$dg_home"
    if [ -n "$1" ]; then
        case $1 in
            /*) dg_folder=$1 ;;
            *) dg_folder=./$1 ;; # `cd -` is no folder
        esac
        if [ ! -e "$dg_folder" ]; then dg_refuse folder "$1" "$dg_home"; fi
        if [ ! -d "$dg_folder" ]; then dg_refuse enter "$1" "Not a directory"; fi
        cd -- "$dg_folder" || dg_refuse enter "$1" "Permission denied"
    fi
    unset OLDPWD
    if [ -z "$dg_setsid" ]; then dg_refuse tool setsid "$(uname -n)"; fi
    dg_below=$1 dg_names=$2 dg_odd=$3
    shift 3
    while [ "$dg_names" -gt 0 ]; do
        export "$1"
        shift
        dg_names=$((dg_names - 1))
    done
    PATH=${PATH-/usr/local/bin:/usr/bin:/bin}
    case $dg_program in
        */*)
            if [ -d "$dg_program" ]; then dg_refuse directory "$dg_program"; fi
            if [ ! -e "$dg_program" ]; then dg_refuse program "$dg_program" "$dg_home" "$dg_below"; fi
            if [ ! -x "$dg_program" ]; then dg_refuse executable "$dg_program"; fi
            ;;
        *) dg_look_up ;;
    esac
    export "$dg_mark"
    dg_begun
    trap - HUP INT PIPE QUIT TERM
    exec <"$dg_in" >>"$dg_out" 2>>"$dg_err"
    umask "$dg_mask"
    if [ "$dg_odd" -gt 0 ]; then
        dg_shuffle "$@"
    elif [ -n "$dg_reset" ]; then
        exec "$dg_env" "$dg_reset" "$dg_setsid" -- "$@"
    fi
    exec "$dg_setsid" -- "$@"
}

# With variables that no shell can have: env(1) sets them. The words go once round, with setsid's between the two kinds.
dg_shuffle() {
    dg_left=$#
    while [ "$dg_left" -gt 0 ]; do
        if [ "$dg_odd" -eq 0 ]; then set -- "$@" "$dg_setsid" --; fi
        dg_odd=$((dg_odd - 1))
        set -- "$@" "$1"
        shift
        dg_left=$((dg_left - 1))
    done
    exec "$dg_env" ${dg_reset:+"$dg_reset"} -- "$@"
}

# Look for the program in PATH, as execvp(3) does.
dg_look_up() {
    set -f
    IFS=:
    dg_found=
    for dg_folder in $PATH; do
        dg_file=${dg_folder:-.}/$dg_program
        [ -f "$dg_file" ] || continue
        if [ -x "$dg_file" ]; then
            unset IFS
            set +f
            return
        fi
        dg_found=${dg_found:-$dg_file}
    done
    if [ -n "$dg_found" ]; then dg_refuse executable "$dg_found"; fi
    dg_refuse path "$dg_program" "$PATH"
}

# -- ending ------------------------------------------------------------------------------------------------------------

# From now on, SIGTERM to this shell ends its task.
dg_take_stops() {
    dg_task= dg_stopping= dg_caught=
    dg_hear_stops
}

dg_hear_stops() {
    trap 'dg_caught=1; if [ -z "$dg_stopping" ]; then dg_stopping=1; [ -z "$dg_task" ] || dg_stop_task; fi' TERM
}

# In the background: end the task when its time is over.
dg_time() {
    dg_guard
    dg_rest "$dg_timeout"
    dg_once timeout "$dg_cause"
    dg_end
}

# End the task, because somebody has asked for that.
dg_stop_task() {
    dg_once kill "$dg_cause"
    trap '' TERM # which the guard inherits, so that the next one does not end it before it has begun
    {
        dg_guard
        dg_end
    } &
    dg_guards="$dg_guards $!"
    dg_hear_stops
}

# Be a guard, which ends with SIGUSR1, and what it waits for with it. SIGTERM may come to all processes of a job, and a guard that it ended
# would leave a task that nobody ends.
dg_guard() {
    trap '' TERM
    dg_before=$!
    trap '[ "$!" = "$dg_before" ] || kill -KILL "$!"; exit' USR1
    exec >/dev/null 2>&1
}

# dg_rest SECONDS: as sleep(1), but a guard's. A guard ends here if its attempt is over, because it may not have heard of that, and what
# has the number of the task's group by then may be somebody else's.
dg_rest() {
    dg_leave
    sleep "$1" &
    wait "$!"
    dg_leave
}

dg_leave() {
    if [ -e "$dg_times" ]; then exit; fi
}

dg_end() {
    dg_leave
    # What has not come to a session of its own yet has no group, and it loses a signal if it still has the traps of this shell.
    dg_turn=0
    until kill -TERM "-$dg_task" || [ "$dg_turn" -ge 100 ]; do
        kill -TERM "$dg_task" || break
        dg_rest 0.05
        dg_turn=$((dg_turn + 1))
    done
    dg_rest "$dg_grace"
    kill -KILL "-$dg_task"
    exit
}

# dg_sweep TEXT...: end what attempts that have ended left behind: who has one of these texts in its environment, or in the name of the
# file that is its standard input, output or error.
dg_sweep() {
    [ -n "$dg_grep" ] || return 0
    dg_left=$#
    for dg_text; do set -- "$@" -e "$dg_text"; done
    shift "$dg_left"
    dg_turn=0
    while [ "$dg_turn" -lt 20 ]; do
        dg_found=$(dg_find "$@")
        if [ "$?" -le 128 ]; then # otherwise a signal has ended the search
            [ -n "$dg_found" ] || return 0
            kill -KILL $dg_found
        fi
        if [ "$dg_turn" -gt 0 ]; then sleep 0.05; fi
        dg_turn=$((dg_turn + 1))
    done
}

# The numbers of such processes; the words are grep's.
dg_find() {
    set +f
    "$dg_grep" -l -F "$@" /proc/[0-9]*/environ | while IFS=/ read -r dg_line dg_line dg_found dg_line; do echo "$dg_found"; done
    ls -l /proc/[0-9]*/fd/[012] | "$dg_grep" -F "$@" | while read -r dg_line; do
        dg_line=${dg_line##* /proc/}
        echo "${dg_line%%/*}"
    done
}
