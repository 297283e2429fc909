#!/bin/sh
# Does one piece of work, and writes a line about it to the folder `out`: what, and at which desk. All
# tasks of the example but `clear` call it: sh desk.sh WORK OBJECT. $DESK is the agent's environment,
# which its tasks inherit. It never scans, reads or prints.
set -eu

echo "$1 $2 at the $DESK" | tee "out/$1 $2.txt"
