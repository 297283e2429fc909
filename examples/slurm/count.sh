#!/bin/sh
# Counts the primes among the thousand numbers from $1 on, and writes the count to a file: sh count.sh FROM. Tasks of
# the example call it, in the folder where the file shall be.
set -eu

number=$1 end=$(($1 + 1000)) count=0
[ "$number" -ge 2 ] || number=2
while [ "$number" -lt "$end" ]; do
    divisor=2
    while [ $((divisor * divisor)) -le "$number" ] && [ $((number % divisor)) -ne 0 ]; do
        divisor=$((divisor + 1))
    done
    [ $((divisor * divisor)) -le "$number" ] || count=$((count + 1))
    number=$((number + 1))
done
echo "$count primes from $1 on" | tee "count-$1.txt"
