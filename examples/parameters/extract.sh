#!/bin/sh
# Takes the readings of one day out of a station's readings. The task `extract` calls it, once for each
# $STATION and $DAY. It fails if there are none, and never changes the readings.
set -eu

awk -F, -v day="$DAY" '$1 == day { print $3; found = 1 } END { exit !found }' \
    "readings/$STATION.csv" > "out/$STATION-$DAY.txt" || {
    echo "extract.sh: $STATION has no readings of $DAY" >&2
    exit 1
}
