#!/bin/sh
# Writes the mean of a station's warmest hours. The task `mean` calls it, once for each $STATION, when
# all days of that station are done; other stations may still be at work.
set -eu

cat "out/$STATION"-*-warmest.txt | awk -v station="$STATION" '
    { sum += $1 }
    END { printf "%s: %.1f degrees in the warmest hour, mean of %d days\n", station, sum / NR, NR }
' > "out/mean-$STATION.txt"
