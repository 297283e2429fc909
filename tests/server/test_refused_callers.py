"""The log of refusals, by a clock that the test holds."""

from __future__ import annotations

import pytest

from daggyr_server.refused_callers import SECONDS, RefusedCallers, address_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_line_a_peer_a_minute_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    refused = RefusedCallers(clock=clock)
    for port in range(1000):
        refused.note(f"ipv4:192.0.2.7:{port}", "no token")
    refused.note("192.0.2.8:1", "no token")
    assert caplog.messages == ["refused a call from 192.0.2.7: no token", "refused a call from 192.0.2.8: no token"]
    clock.now += SECONDS
    refused.tell()
    assert caplog.messages[2:] == ["refused 999 more calls from 192.0.2.7 in the last minute; the last one: no token"]
    refused.note("ipv4:192.0.2.7:1", "a wrong one")
    refused.tell()
    assert len(caplog.messages) == 3
    clock.now += SECONDS
    refused.note("192.0.2.8:1", "no token")
    assert caplog.messages[3:] == [
        "refused 1 more calls from 192.0.2.7 in the last minute; the last one: a wrong one",
        "refused a call from 192.0.2.8: no token",
    ]
    refused.close()


async def test_what_is_remembered_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    refused = RefusedCallers(clock=clock, max_peers=3)
    for host in range(200):
        refused.note(f"ipv4:192.0.2.{host}:1", "no token")
    assert caplog.messages[3:] == ["refused a call from other addresses: no token"]
    refused.close()
    assert caplog.messages[4:] == ["refused 196 more calls from other addresses in the last minute; the last one: no token"]


def test_peers_without_their_ports() -> None:
    assert address_of("ipv4:192.0.2.7:51234") == "192.0.2.7"
    assert address_of("ipv6:%5B2001:db8::1%5D:51234") == "2001:db8::1"
    assert address_of("192.0.2.7") == "192.0.2.7"
    assert address_of("unix:") == "the socket"
