"""The log of refused callers: one line an address a minute, with a count, however often it calls.

`authentication`, `scrapes` and the agents' sessions tell it of each refusal. What it remembers is bounded: beyond `MAX_PEERS`
addresses in one minute, the others are counted together. It never sees a token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

log = logging.getLogger(__name__)

SECONDS = 60.0  # between two lines about one address
MAX_PEERS = 1_000  # addresses that are counted one by one
_OTHERS = "other addresses"


@dataclass(slots=True)
class _Peer:
    """The refusals of one address."""

    told: float  # when its last line was written
    untold: int = 0  # refusals since then
    reason: str = ""  # of the last one


class RefusedCallers:
    """The refused callers of one listener. Used from one event loop; `close` writes the lines that are left."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, max_peers: int = MAX_PEERS) -> None:
        self._clock = clock
        self._max_peers = max_peers
        self._peers: dict[str, _Peer] = {}  # by address, in the order of `told`
        self._timer: asyncio.TimerHandle | None = None

    def note(self, peer: str, reason: str) -> None:
        """A caller was refused. `peer` is its address, with or without a port, in gRPC's form or the usual one."""
        self.tell()
        address = address_of(peer)
        known = self._peers.get(address)
        if known is None and len(self._peers) >= self._max_peers:
            address = _OTHERS
            known = self._peers.get(address)
        if known is not None:
            known.untold += 1
            known.reason = reason
            return
        self._peers[address] = _Peer(self._clock())
        log.warning("refused a call from %s: %s", address, reason)
        self._wait()

    def tell(self) -> None:
        """Write the lines that are due, and forget addresses that have not called for a minute."""
        now = self._clock()
        while self._peers:
            address, peer = next(iter(self._peers.items()))
            if now < peer.told + SECONDS:
                return
            del self._peers[address]
            if peer.untold:
                self._say(address, peer)
                self._peers[address] = _Peer(now)

    def close(self) -> None:
        """Write the lines of the addresses whose minute is not over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for address, peer in self._peers.items():
            if peer.untold:
                self._say(address, peer)
        self._peers.clear()

    def _say(self, address: str, peer: _Peer) -> None:
        log.warning("refused %d more calls from %s in the last minute; the last one: %s", peer.untold, address, peer.reason)

    def _wait(self) -> None:
        """Have `tell` called when the next line is due, because an address may have stopped calling."""
        if self._timer is None and self._peers:
            oldest = next(iter(self._peers.values()))
            delay = max(0.0, oldest.told + SECONDS - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        self.tell()
        self._wait()


def address_of(peer: str) -> str:
    """The address of a peer: `192.0.2.7` of `ipv4:192.0.2.7:51234` and `192.0.2.7:51234`, `::1` of `ipv6:%5B::1%5D:51234`."""
    if peer.startswith("unix:") or not peer:
        return "the socket"
    host, colon, port = unquote(peer).removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")
    return (host if colon and port.isdecimal() else peer).strip("[]")
