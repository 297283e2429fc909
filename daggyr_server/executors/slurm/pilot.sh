# The script of a pilot: a Slurm job that runs a daggyr-agent. pilots.py puts a few lines with settings in front of it.
# Where the coordinator is, and the token that it wants, stand in files that only the job's user can read.
set -u
state=$(mktemp -d "${TMPDIR:-/tmp}/daggyr-pilot.XXXXXX") || exit 71
"$@" --config "$folder/agent.toml" --name "pilot-$SLURM_JOB_ID" --state-dir "$state" &
agent=$!
trap 'kill -s TERM "$agent" 2>/dev/null' TERM

# A coordinator that is there touches a file. Without one, nobody will ever end this job.
(
    while sleep "$look"; do
        touched=$(stat -c %Y "$folder/alive" 2>/dev/null) || touched=0
        [ "$(($(date +%s) - touched))" -lt "$orphan" ] || kill -s TERM "$agent"
    done
) &
watch=$!

# A signal interrupts a wait.
while kill -0 "$agent" 2>/dev/null; do
    wait "$agent"
    code=$?
done
kill -s KILL "$watch" 2>/dev/null
rm -rf "$state"
exit "${code-0}"
