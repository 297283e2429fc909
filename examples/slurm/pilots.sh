#!/bin/sh
# Starts a coordinator with a pool of pilots, has them carry out slurm.yaml, waits for the pilots to leave by themselves, and ends
# what it started. README.md calls it.
#
# Its state, with the token by which agents and `daggyr` know it, is in a temporary folder, and the port is any free one.
set -eu

cd "$(dirname "$0")"
XDG_STATE_HOME=$(mktemp -d)
export XDG_STATE_HOME

server=''
finish() {
    status=$?
    trap - EXIT
    trap '' HUP INT TERM
    for pid in $server; do
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

ready=$XDG_STATE_HOME/address
daggyr-server --config pilots.toml --listen 127.0.0.1:0 --ready-file "$ready" &
server=$!
until [ -s "$ready" ]; do
    kill -0 "$server" 2> /dev/null || {
        echo "pilots.sh: the coordinator did not start" >&2
        exit 1
    }
    sleep 0.1
done
DAGGYR_SERVER=$(cat "$ready")
export DAGGYR_SERVER

daggyr submit slurm.yaml --watch
daggyr agents
# Pilots with nothing to do are ended after `idle_seconds`. A coordinator that goes away first leaves them to wait for it, for
# `orphan_seconds`.
until [ -z "$(squeue --noheader --me --states=pending,running --format=%j | grep '^daggyr-.*-pilots-')" ]; do
    sleep 0.5
done
