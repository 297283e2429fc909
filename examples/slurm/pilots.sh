#!/bin/sh
# Starts a coordinator with a pool of pilots, has them carry out slurm.yaml, waits for the pilots to leave by themselves, and ends
# what it started. README.md calls it.
set -eu

cd "$(dirname "$0")"
. ../coordinator.sh
start_coordinator pilots.toml

daggyr submit slurm.yaml --watch
daggyr agents
# Pilots with nothing to do are ended after `idle_seconds`. A coordinator that goes away first leaves them to wait for it, for
# `orphan_seconds`.
until [ -z "$(squeue --noheader --me --states=pending,running --format=%j | grep '^daggyr-.*-pilots-')" ]; do
    sleep 0.5
done
