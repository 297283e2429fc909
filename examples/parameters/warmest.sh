#!/bin/sh
# Finds the highest of a day's readings. The task `warmest` calls it, once for each $STATION and $DAY,
# on what `extract` wrote for the same two.
set -eu

sort -n "out/$STATION-$DAY.txt" | tail -n 1 > "out/$STATION-$DAY-warmest.txt"
