"""A network of a command's own: nothing but loopback, on which every port is free, for tests of what is written with a fixed one.

`own_network` gives the words that stand before a command. Where the system allows no such thing, the test is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# netdevice(7): the flags and the address of loopback. Taking 0.0.0.0 takes 127.0.0.1 away.
_INSIDE = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any:
    fcntl.ioctl(any, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING
    if sys.argv[1] == "6":
        nothing = struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, bytes(4))
        fcntl.ioctl(any, 0x8916, nothing)  # SIOCSIFADDR
os.execvp(sys.argv[2], sys.argv[2:])
"""


def own_network(*, ipv4: bool = True) -> list[str]:
    """What to put before a command. Without `ipv4`, loopback has ::1 only."""
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return allowed(["unshare", *users, "--net", sys.executable, "-c", _INSIDE, "4" if ipv4 else "6"])


def allowed(words: list[str]) -> list[str]:
    """Return the words if the system lets them stand before a command, and skip the test if it does not."""
    try:
        tried = subprocess.run([*words, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("unshare is not installed: apt-get install util-linux")
    if tried.returncode != 0:
        pytest.skip(f"this system does not allow {' '.join(words[:4])} ...: {tried.stderr}")
    return words
