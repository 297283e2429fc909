# Read by the examples that have a coordinator of their own: `start_coordinator CONFIG` starts one, `daggyr` and agents find it
# by the environment, and whatever is in `daemons` is ended with the script that read this, the newest first.
#
# The state of all, with the token by which they and `daggyr` know each other, is in a temporary folder, and the port is any free
# one: it never touches, or meets, a server that you run.
XDG_STATE_HOME=$(mktemp -d)
export XDG_STATE_HOME

daemons='' # pids, newest first: an agent whose coordinator has gone would wait for it to come back
finish() {
    status=$?
    trap - EXIT
    trap '' HUP INT TERM
    for pid in $daemons; do
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
start_coordinator() {
    daggyr-server --config "$1" --listen 127.0.0.1:0 --ready-file "$XDG_STATE_HOME/address" &
    daemons=$!
    until [ -s "$XDG_STATE_HOME/address" ]; do
        kill -0 "$daemons" 2> /dev/null || {
            echo "$0: the coordinator did not start" >&2
            exit 1
        }
        sleep 0.1
    done
    DAGGYR_SERVER=$(cat "$XDG_STATE_HOME/address")
    export DAGGYR_SERVER
}
