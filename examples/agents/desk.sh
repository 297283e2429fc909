#!/bin/sh
# Does one piece of work, and writes a line about it to the folder `out`: what, and at which desk. All
# tasks of the example but `clear` call it: sh desk.sh WORK OBJECT. $DESK is a variable of the agent's,
# which passes it to its tasks because it was told to. It never scans, reads or prints.
set -eu

echo "$1 $2 at the $DESK" | tee "out/$1 $2.txt"
