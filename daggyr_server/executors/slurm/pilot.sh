# The script of a pilot: a Slurm job that runs a daggyr-agent. pilot_files.py puts a few lines with settings in front of it.
# Where the coordinator is, and the token that it wants, stand in files that only the job's user can read. The agent ends by itself
# when no coordinator answers, and when the job's time is nearly over, by its own clock and never by the node's date.
set -u
# A job may be ended at any moment, also before there is an agent. Then this ends in order, with nothing left on the node.
agent= stopped=
trap 'stopped=1; test -z "$agent" || kill -s TERM "$agent" 2>/dev/null' TERM
state=$(mktemp -d "${TMPDIR:-/tmp}/daggyr-pilot.XXXXXX") || exit 71

# seconds_of [DAYS-][[HOURS:]MINUTES:]SECONDS: set left, or empty it if there is no limit.
seconds_of() {
    left=
    case $1 in '' | *[!0-9:-]*) return ;; esac
    days=0 text=$1
    case $text in *-*) days=${text%%-*} text=${text#*-} ;; esac
    left=0
    while [ -n "$text" ]; do
        part=${text%%:*}
        left=$((left * 60 + ${part#"${part%%[!0]*}"} + 0))
        case $text in *:*) text=${text#*:} ;; *) text= ;; esac
    done
    left=$((left + days * 86400))
}

# How long the job is there, by the controller's clock: as the job's environment says it, or as squeue does.
if [ -n "${SLURM_JOB_END_TIME-}" ] && [ -n "${SLURM_JOB_START_TIME-}" ]; then
    left=$((SLURM_JOB_END_TIME - SLURM_JOB_START_TIME))
else
    seconds_of "$(timeout 20 squeue --noheader --format=%L --jobs="$SLURM_JOB_ID" 2>/dev/null)"
fi
# What runs in the end has the grace of the agent to end, and its results some seconds to be told.
if [ -n "$left" ]; then
    left=$((left - 15))
    set -- "$@" --ends-in "$((left > 1 ? left : 1))"
fi

if [ -z "$stopped" ]; then
    "$@" --config "$folder/agent.toml" --name "pilot-$SLURM_JOB_ID" --state-dir "$state" &
    agent=$!
fi
# One that came before the line above had no agent to be passed on to.
test -z "$stopped" || test -z "$agent" || kill -s TERM "$agent" 2>/dev/null

# A signal interrupts a wait.
while test -n "$agent" && kill -0 "$agent" 2>/dev/null; do
    wait "$agent"
    code=$?
done
rm -rf "$state"
exit "${code-0}"
