# The script of a Slurm job that carries out one attempt, or of one task of an array of them. script.py puts a few lines with settings
# and attempt.sh in front of it. It needs /bin/sh (POSIX), coreutils, grep and setsid(1) on the node, and the pool's directory.
#
# In the submission's folder, by the task's index N:
#   N.run/       made by whoever comes first: this script, which then starts the task, or the coordinator, which then never
#                wants it started. mkdir(2) is atomic, on NFS too: no attempt is started twice or after it was taken back
#   N.start      when the task's process was started, by the node's date, and by /proc/uptime, which nobody sets
#   N.out N.err  what it writes; N.in, its standard input if it has one
#   N.rejected   why it cannot be started (dg_refused in attempt.sh); N.cause, N.said, N.times are as there
#   N.result     how it ended: written as N.part and renamed, so that it is there whole or not at all. N.part alone: there was no room
#   N.full       N.run under another name: there was no room for what the task writes, so that it was not started
set -f
# What is no array has an index of its own, because the variable could be another job's, out of the environment of who submitted it.
[ -n "$dg_index" ] || dg_index=$SLURM_ARRAY_TASK_ID
dg_own=$dg_folder/$dg_index
# Where Slurm tracks processes by control groups, its own signals (a cancelled job, a time limit) come to this script alone; elsewhere
# they come to all processes of the job, and dg_surely is for what is executed here.
dg_take_stops

dg_surely mkdir "$dg_own.run" 2>/dev/null || exit 0
dg_find_tools
dg_surely eval 'dg_date=$(command -v date)'
dg_out=$dg_own.out dg_err=$dg_own.err dg_mark=SLURM_DAGGYR_OUTPUT=$dg_own.out
dg_cause=$dg_own.cause dg_refused=$dg_own.rejected dg_said=$dg_own.said dg_times=$dg_own.times dg_in=$dg_own.in
[ -e "$dg_in" ] || dg_in=/dev/null

# Whether the directory takes what is written. Many file systems know that, and quotas, only by trying, and NFS only at the end.
dg_has_room() {
    dg_surely dg_fill
    dg_room=$?
    dg_surely rm -f "$dg_own.room"
    return "$dg_room"
} 2>/dev/null

dg_fill() { head -c 65536 /dev/zero >"$dg_own.room"; }

if ! { : >"$dg_out" && : >"$dg_err" && dg_has_room; } 2>/dev/null; then
    dg_surely mv "$dg_own.run" "$dg_own.full" # which needs no room
    exit 1
fi

dg_uptime() { read -r dg_up dg_line </proc/uptime; } 2>/dev/null
dg_begun() { { "$dg_date" +%s.%N && dg_uptime && echo "$dg_up"; } >"$dg_own.start"; }

# A guard that gives the middle of long output, which is not kept, back to the disk where the file system can.
dg_trim() {
    command -v fallocate >/dev/null || exit
    dg_guard
    while dg_rest 5; do
        for dg_file in "$dg_out" "$dg_err"; do
            dg_size=$(wc -c <"$dg_file") || continue
            if [ "$dg_file" = "$dg_out" ]; then dg_keep "$dg_size" "$dg_whole"; else dg_keep "$dg_size" 0; fi
            [ "$dg_cut" -gt 8388608 ] || continue
            fallocate --punch-hole --offset "$dg_head" --length "$dg_cut" "$dg_file" || exit
        done
    done
}
dg_trim &
dg_trimmer=$!

. "$dg_folder/tasks"
dg_carry_out "$@"
# What Slurm ends can exit with 0 before this script hears of it. Until the result is written, it may still come.
trap 'dg_stopping=1' TERM
dg_surely eval 'dg_end=$("$dg_date" +%s.%N)'
dg_uptime || dg_up=
kill -USR1 "$dg_trimmer"
# Descendants that left the group.
dg_sweep "${dg_mark#*=}" "$dg_own.err" "$dg_own.in"
dg_full=
dg_has_room || dg_full=1

# It is one write: of several, the first could fail and the last one find room again.
dg_result() {
    dg_text="status $dg_code
stop $dg_end
up $dg_up
node ${SLURMD_NODENAME:-$(uname -n)}"
    dg_more() {
        dg_text="$dg_text
$1"
    }
    case $dg_flags in *s*) ;; *) dg_more "exited 1" ;; esac
    if [ "$dg_why" = timeout ]; then dg_more "timeout 1"; elif [ -n "$dg_stopping" ]; then dg_more "stopped 1"; fi
    if [ -n "$dg_full" ]; then dg_more "full 1"; fi
    dg_more "children $dg_cpu"
    printf '%s\n' "$dg_text" >"$dg_own.part" && dg_surely dg_put
}

dg_put() {
    if [ -e "$dg_own.part" ]; then mv "$dg_own.part" "$dg_own.result"; fi
}

dg_try=0
until dg_result 2>/dev/null; do
    dg_full=1
    dg_try=$((dg_try + 1))
    [ "$dg_try" -lt 5 ] || break
    sleep 1
done
exit "$dg_code"
