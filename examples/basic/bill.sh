#!/bin/sh
# Prints the bill for a list of goods, given a list of prices; both are sorted by name. The task `bill`
# calls it: sh bill.sh LIST PRICES. It never changes either.
set -eu

join "$1" "$2" | awk '
    { cost = $2 * $3; total += cost; printf "%-8s %2d x %3d = %4d\n", $1, $2, $3, cost }
    END { printf "%-8s %15d\n", "total", total }
'
