"""A scrape as Prometheus does one, for tests: a request over a real connection, and the samples in the answer."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from support.waiting import DEADLINE, until


@dataclass(frozen=True)
class Scraped:
    """What came back."""

    status: int
    text: str
    headers: dict[str, str]

    @property
    def kinds(self) -> dict[str, str]:
        """The metrics by name, with their types."""
        return {family.name: family.type for family in text_string_to_metric_families(self.text)}

    def value(self, sample: str, **labels: str) -> float:
        """The value of the one sample that has this name and, among others, these labels."""
        (found,) = [
            each.value
            for family in text_string_to_metric_families(self.text)
            for each in family.samples
            if each.name == sample and labels.items() <= each.labels.items()
        ]
        return found

    def values(self, sample: str, label: str, **labels: str) -> dict[str, float]:
        """The values, not 0, of the samples of this name with these labels, by another label."""
        return {
            each.labels[label]: each.value
            for family in text_string_to_metric_families(self.text)
            for each in family.samples
            if each.name == sample and labels.items() <= each.labels.items() and each.value
        }


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(self.host)


def scrape(
    address: str,
    token: str | None = None,
    *,
    authorization: str | None = None,
    method: str = "GET",
    path: str = "/metrics",
    tls: ssl.SSLContext | None = None,
) -> Scraped:
    """Ask once. `address` is HOST:PORT or unix:PATH; `authorization` stands in for a token."""
    connection: http.client.HTTPConnection
    if address.startswith("unix:"):
        connection = _UnixConnection(address.removeprefix("unix:"))
    elif tls is not None:
        connection = http.client.HTTPSConnection(address, timeout=DEADLINE, context=tls)
    else:
        connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    value = f"Bearer {token}" if token is not None else authorization
    try:
        connection.request(method, path, headers={"Authorization": value} if value is not None else {})
        answer = connection.getresponse()
        headers = {name.lower(): text for name, text in answer.getheaders()}
        return Scraped(answer.status, answer.read().decode(), headers)
    finally:
        connection.close()


def address_said(said: str) -> str:
    """The address of the metrics, from what a server wrote to its log."""
    found = re.search(r"metrics at (?:https?://([^/\s]+)/metrics|(unix:\S+))$", said, re.MULTILINE)
    assert found, said
    return found[1] or found[2]


def eventually(address: str, token: str | None, sample: str, value: float, **labels: str) -> Scraped:
    """The first scrape in which a sample has this value."""

    def scraped() -> Scraped | None:
        found = scrape(address, token)
        return found if found.value(sample, **labels) == value else None

    return until(scraped, f"{sample} {labels} to be {value}")
