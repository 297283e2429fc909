#!/bin/sh
# Counts the words of the text $TEXT and writes their number and its name to $COUNT. The tasks that
# plan.py makes call it, one a text.
set -eu

number=$(wc -w < "$TEXT")
printf '%4d %s\n' "$number" "$(basename "$TEXT" .txt)" > "$COUNT"
