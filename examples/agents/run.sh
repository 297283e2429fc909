#!/bin/sh
# Starts a coordinator and two agents on this host, has them carry out agents.yaml, shows the outcome
# and the agents, and ends what it started. README.md calls it.
set -eu

cd "$(dirname "$0")"
. ../coordinator.sh
start_coordinator coordinator.toml

DESK="desk with the scanner" daggyr-agent --coordinator "$DAGGYR_SERVER" \
    --name scanner-desk --pool desks --resource cores=1 --resource scanner=1 --pass-environment DESK &
daemons="$! $daemons"
DESK="desk with the printer" daggyr-agent --coordinator "$DAGGYR_SERVER" \
    --name printer-desk --pool desks --resource cores=1 --resource printer=1 --pass-environment DESK &
daemons="$! $daemons"

# Nothing waits for the agents to join: a task stays queued until one that can carry it out is there.
daggyr submit agents.yaml --watch
daggyr agents
cat out/scan*.txt out/read*.txt out/print*.txt
