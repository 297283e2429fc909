# The script of a Slurm job that carries out one attempt, or of one task of an array of them. script.py puts a few lines
# with settings in front of it. It needs /bin/sh (POSIX), coreutils, grep and setsid(1) on the node, and the pool's directory.
#
# In the submission's folder, by the task's index N:
#   N.run/       made by whoever comes first: this script, which then starts the task, or the coordinator, which then never
#                wants it started. mkdir(2) is atomic, on NFS too: no attempt is started twice or after it was taken back
#   N.start      when the task's process was started
#   N.out N.err  what it writes; N.in, its standard input if it has one
#   N.rejected   why it cannot be started
#   N.result     how it ended: written under another name and renamed, so that it is there whole or not at all
#
# Whatever a task exports may hide this script's own names, so those begin with _d_ and hold what is needed after that.
set -f
_d_index=${SLURM_ARRAY_TASK_ID:-0}
_d_own=$_d_folder/$_d_index
_d_mask=$(umask)
umask 077

# Called as a guard: beside the task, in a session of its own, until this script ends it with that.
case ${1-} in
    end) # end TASK SECONDS: SIGKILL for the task's group after that time
        sleep "$3"
        kill -s KILL -- "-$2"
        exit
        ;;
    timeout) # timeout TASK
        sleep "$_d_timeout"
        : >"$_d_own.timeout"
        # What has not come to a session of its own yet has no group.
        kill -s TERM -- "-$2" || kill -s TERM "$2"
        sleep "$_d_grace"
        kill -s KILL -- "-$2"
        exit
        ;;
    trim) # trim: gives the middle of long output, which will not be kept, back to the disk where the file system can
        while sleep 5; do
            for _d_each in "out $_d_keep_out" "err $_d_keep_err"; do
                _d_file=$_d_own.${_d_each%% *}
                _d_keep=${_d_each#* }
                _d_size=$(wc -c <"$_d_file") || continue
                [ "$_d_size" -gt "$((_d_keep + 8388608))" ] || continue
                fallocate --punch-hole --offset "$_d_edge" --length "$((_d_size - 2 * _d_edge))" "$_d_file" || exit
            done
        done 2>/dev/null
        exit
        ;;
esac

_d_task='' _d_guards='' _d_stopped='' _d_first='' _d_caught=''
_d_guard() {
    setsid -- /bin/sh "$_d_script" "$@" </dev/null >/dev/null 2>&1 &
    _d_guards="$_d_guards $!"
}
_d_stop() {
    [ -n "$_d_task" ] || return 0
    # Where Slurm tracks processes by control groups, its own signals (a cancelled job, a time limit) come to this script alone too.
    kill -s TERM -- "-$_d_task" 2>/dev/null || kill -s TERM "$_d_task" 2>/dev/null
    _d_guard end "$_d_task" "$_d_grace"
}
_d_script=$0
trap '_d_caught=1; [ -n "$_d_stopped" ] || { _d_stopped=1; [ -e "$_d_own.timeout" ] || _d_first=1; _d_stop; }' TERM

mkdir "$_d_own.run" 2>/dev/null || exit 0
command -v setsid >/dev/null || {
    echo "there is no setsid(1) on $(uname -n)" >"$_d_own.rejected"
}
# A shell's background process ignores SIGINT and SIGQUIT; env(1) of coreutils 8.31 can undo that.
_d_env=$(command -v env)
_d_date=$(command -v date)
_d_setsid=$(command -v setsid)
_d_reset=--
"$_d_env" --default-signal=INT,QUIT true 2>/dev/null && _d_reset=--default-signal=INT,QUIT

_d_reject() {
    printf '%s\n' "$1" >"$_d_own.rejected"
    exit 126
}
_d_enter() {
    unset CDPATH
    [ -d "$1" ] || [ ! -e "$1" ] || _d_reject "no such folder: working_directory $1 is a file"
    [ -d "$1" ] || _d_reject "no such folder: working_directory $1 is not there on $(uname -n)"
    cd -- "$1" || _d_reject "cannot enter working_directory $1"
}
_d_look_up() {
    case $1 in
        '') _d_reject "the command is empty" ;;
        */*)
            [ -e "$1" ] || _d_reject "no such program: $1"
            [ ! -d "$1" ] || _d_reject "$1 is a folder, not a program"
            [ -x "$1" ] || _d_reject "$1 is not executable: chmod +x it"
            return 0
            ;;
    esac
    _d_found=''
    IFS=:
    for _d_each in ${PATH-/usr/local/bin:/usr/bin:/bin}; do
        _d_each=${_d_each:-.}/$1
        [ -f "$_d_each" ] || continue
        [ ! -x "$_d_each" ] || return 0
        _d_found=$_d_each
    done
    [ -z "$_d_found" ] || _d_reject "$_d_found is not executable: chmod +x it"
    _d_reject "no such program: $1 is in none of the folders of PATH=${PATH-}"
}

_d_input=$_d_own.in
[ -e "$_d_input" ] || _d_input=/dev/null
: >"$_d_own.out"
: >"$_d_own.err"
(
    [ ! -e "$_d_own.rejected" ] || exit 126
    . "$_d_folder/tasks"
    # After this, what the task exports is in force: PATH, IFS, anything.
    (
        shift "$_d_variables"
        _d_look_up "${1-}"
    ) || exit 126
    "$_d_date" +%s.%N >"$_d_own.start"
    umask "$_d_mask"
    # setsid first and env after it only for the few variables that no shell can export.
    [ "$_d_variables" = 0 ] && exec "$_d_env" "$_d_reset" "$_d_setsid" -- "$@"
    exec "$_d_env" "$_d_reset" "$_d_setsid" -- "$_d_env" -- "$@"
) <"$_d_input" >>"$_d_own.out" 2>>"$_d_own.err" &
_d_task=$!
[ -z "$_d_stopped" ] || _d_stop
[ "$_d_timeout" = 0 ] || _d_guard timeout "$_d_task"
! command -v fallocate >/dev/null || _d_guard trim

# A signal interrupts the wait, which then tells 143; if it is that the task has ended with it, nobody is there to wait for again.
while :; do
    _d_caught=''
    wait "$_d_task"
    _d_now=$?
    if [ "$_d_now" = 127 ] && [ "${_d_status-}" = 143 ]; then
        break
    fi
    _d_status=$_d_now
    [ -n "$_d_caught" ] && [ "$_d_status" = 143 ] || break
done
times >"$_d_own.times"
_d_end=$(date +%s.%N)
# A guard may not have come to its own session yet.
for _d_each in $_d_guards; do
    kill -s KILL -- "-$_d_each" || kill -s KILL "$_d_each"
done 2>/dev/null
kill -s KILL -- "-$_d_task" 2>/dev/null

# Descendants that left the group: of this job, and with the task's variables, which neither this script nor a guard has.
_d_left() {
    set +f
    set -- /proc/[0-9]*/environ
    set -f
    grep -lsFxz -e "SLURM_JOB_ID=$SLURM_JOB_ID" -- $(grep -lsz -e '^DAGGYR_RUN_ID=' -- "$@") /dev/null
}
_d_round=0
while [ "$_d_round" -lt 20 ]; do
    _d_found=''
    for _d_each in $(_d_left); do
        _d_each=${_d_each#/proc/}
        kill -s KILL "${_d_each%/environ}" 2>/dev/null && _d_found=1
    done
    [ -n "$_d_found" ] || break
    _d_round=$((_d_round + 1))
done

{
    echo "status $_d_status"
    echo "stop $_d_end"
    echo "node $(uname -n)"
    [ -z "$_d_first" ] || echo "stopped 1" # before its timeout had passed
    [ ! -e "$_d_own.timeout" ] || echo "timeout 1"
    tail -n 1 "$_d_own.times" | sed 's/^/children /'
} >"$_d_own.part" && mv "$_d_own.part" "$_d_own.result"
exit "$_d_status"
