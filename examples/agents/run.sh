#!/bin/sh
# Starts a coordinator and two agents on this host, has them carry out agents.yaml, shows the outcome
# and the agents, and ends what it started. README.md calls it.
#
# The state of all three, with the token by which they and `daggyr` know each other, is in a temporary
# folder, and the port is any free one: it never touches, or meets, a server that you run.
set -eu

cd "$(dirname "$0")"
XDG_STATE_HOME=$(mktemp -d)
export XDG_STATE_HOME

server='' scanner='' printer=''
finish() {
    status=$?
    trap - EXIT
    trap '' HUP INT TERM
    # The agents first: an agent whose coordinator has gone waits for it to come back.
    for pid in $scanner $printer $server; do
        kill "$pid" 2> /dev/null || continue
        wait "$pid" || :
    done
    rm -rf "$XDG_STATE_HOME"
    exit "$status"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Port 0 is any free one. The server writes its address into the ready file once it accepts connections.
ready=$XDG_STATE_HOME/address
daggyr-server --config coordinator.toml --listen 127.0.0.1:0 --ready-file "$ready" &
server=$!
until [ -s "$ready" ]; do
    kill -0 "$server" 2> /dev/null || {
        echo "run.sh: the coordinator did not start" >&2
        exit 1
    }
    sleep 0.1
done
DAGGYR_SERVER=$(cat "$ready")
export DAGGYR_SERVER

DESK="desk with the scanner" daggyr-agent --coordinator "$DAGGYR_SERVER" \
    --name scanner-desk --pool desks --resource cores=1 --resource scanner=1 &
scanner=$!
DESK="desk with the printer" daggyr-agent --coordinator "$DAGGYR_SERVER" \
    --name printer-desk --pool desks --resource cores=1 --resource printer=1 &
printer=$!

# Nothing waits for the agents to join: a task stays queued until one that can carry it out is there.
daggyr submit agents.yaml --watch
daggyr agents
cat out/scan*.txt out/read*.txt out/print*.txt
