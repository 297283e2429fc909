#!/bin/sh
# Asks a shop for its prices, in cents, and writes them to $PRICES. The task `prices` calls it.
#
# There is no shop: the first time it leaves the file $REFUSED and fails, as a busy service would, so
# that there is something to try again. It never fails a second time.
set -eu

if [ ! -e "$REFUSED" ]; then
    : > "$REFUSED"
    echo "ask_shop.sh: the shop does not answer" >&2
    exit 1
fi
cat > "$PRICES" << 'EOF'
apples 35
figs 80
pears 45
EOF
