# The script of a Slurm job that carries out one attempt, or of one task of an array of them. script.py puts a few lines with settings
# and attempt.sh in front of it. It needs /bin/sh (POSIX), coreutils, grep and setsid(1) on the node, and the pool's directory.
#
# In the submission's folder, by the task's index N:
#   N.run/       made by whoever comes first: this script, which then starts the task, or the coordinator, which then never
#                wants it started. mkdir(2) is atomic, on NFS too: no attempt is started twice or after it was taken back
#   N.start      when the task's process was started
#   N.out N.err  what it writes; N.in, its standard input if it has one
#   N.rejected   why it cannot be started (dg_refused in attempt.sh); N.cause, N.said, N.times are as there
#   N.result     how it ended: written under another name and renamed, so that it is there whole or not at all
set -f
dg_index=${SLURM_ARRAY_TASK_ID:-0}
dg_own=$dg_folder/$dg_index
# Where Slurm tracks processes by control groups, its own signals (a cancelled job, a time limit) come to this script alone too.
dg_take_stops

mkdir "$dg_own.run" 2>/dev/null || exit 0
dg_find_tools
dg_date=$(command -v date)
dg_out=$dg_own.out dg_err=$dg_own.err dg_mark=SLURM_DAGGYR_OUTPUT=$dg_own.out
dg_cause=$dg_own.cause dg_refused=$dg_own.rejected dg_said=$dg_own.said dg_times=$dg_own.times dg_in=$dg_own.in
[ -e "$dg_in" ] || dg_in=/dev/null
: >"$dg_out"
: >"$dg_err"

dg_begun() { "$dg_date" +%s.%N >"$dg_own.start"; }

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
dg_end=$("$dg_date" +%s.%N)
kill "$dg_trimmer"
# Descendants that left the group.
dg_sweep "${dg_mark#*=}" "$dg_own.err" "$dg_own.in"

{
    echo "status $dg_code"
    echo "stop $dg_end"
    echo "node $(uname -n)"
    case $dg_flags in *s*) ;; *) echo "exited 1" ;; esac
    case $dg_why in kill) echo "stopped 1" ;; timeout) echo "timeout 1" ;; esac
    echo "children $dg_cpu"
} >"$dg_own.part" && mv "$dg_own.part" "$dg_own.result"
exit "$dg_code"
