#!/bin/sh
# Makes two SSH hosts of this one, starts a coordinator that uses them, has it carry out ssh.yaml, shows what the
# tasks printed, and ends what it started. README.md calls it.
#
# Each connection starts an sshd of its own (sshd -i), so there is no port and no daemon. All keys are made here.
set -eu

cd "$(dirname "$0")"
sshd=/usr/sbin/sshd
[ -x "$sshd" ] || {
    echo "run.sh: there is no $sshd: apt-get install openssh-server" >&2
    exit 1
}
. ../coordinator.sh

rm -rf out
mkdir out
out=$PWD/out
ssh-keygen -q -t ed25519 -N '' -f out/host_key
ssh-keygen -q -t ed25519 -N '' -f out/user_key
for host in near far; do
    echo "$host $(cat out/host_key.pub)"
done > out/known_hosts
cat > out/sshd_config << EOF
HostKey $out/host_key
AuthorizedKeysFile $out/user_key.pub
StrictModes no
UsePAM no
LogLevel QUIET
SetEnv XDG_STATE_HOME=$XDG_STATE_HOME
EOF
cat > out/ssh_config << EOF
Host near far
    IdentityFile $out/user_key
    ProxyCommand $sshd -i -e -f $out/sshd_config
EOF
[ "$(id -u)" -ne 0 ] || mkdir -p /run/sshd # where an sshd of root's locks itself in before a login

start_coordinator hosts.toml
daggyr submit ssh.yaml --watch
daggyr logs last
daggyr pools
