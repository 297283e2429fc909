"""When certificates end, by a clock that the test holds."""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path

import pytest
from certificates import Authority
from cryptography import x509

from daggyr.tokens import TokenError
from daggyr_server.api.listening import expiry
from daggyr_server.api.listening.authentication import Tokens
from daggyr_server.api.listening.renewal import Renewal
from daggyr_server.config import Tls

DAY = 86_400.0


@pytest.mark.parametrize("days", [1, 15, 20_000, 40_000])  # before and after 2050, where the form of the time changes
def test_the_end_is_what_the_certificate_says(tmp_path: Path, days: int) -> None:
    pair = Authority(tmp_path, "authority").sign("server", until=datetime.timedelta(days=days))
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    end = certificate.not_valid_after_utc.timestamp()
    assert expiry.ends(pair.certificate, "certificate") == end
    tls = Tls(certificate=pair.certificate, key=pair.key)
    assert expiry.warnings(tls, end - 14 * DAY - 1) == []
    (soon,) = expiry.warnings(tls, end - 14 * DAY + 1)
    assert f"{pair.certificate} expires at " in soon
    (over,) = expiry.warnings(tls, end)
    assert f"{pair.certificate} expired at " in over


def test_the_first_end_in_a_file_counts_and_all_files_are_looked_at(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    long, short = (authority.sign(name, until=datetime.timedelta(days=days)) for name, days in (("long", 300), ("short", 3)))
    chain = tmp_path / "chain.pem"
    chain.write_bytes(b"a comment\n" + long.certificate.read_bytes() + short.certificate.read_bytes())
    said = expiry.warnings(Tls(certificate=chain, key=long.key, client_ca=authority.certificate), time.time())
    assert ["`certificate`" in said[0], "`client_ca`" in said[1]] == [True, True]


@pytest.mark.parametrize("content", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_has_no_end(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rubbish.pem"
    path.write_bytes(content)
    assert expiry.ends(path, "certificate") is None
    assert expiry.ends(tmp_path / "missing.pem", "certificate") is None


async def test_it_is_told_at_the_start_and_when_files_are_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = Authority(tmp_path, "authority").sign("server")

    def no_tokens() -> Tokens:
        raise TokenError("cannot read the token file X: gone")

    renewal = Renewal([], no_tokens, Tls(certificate=pair.certificate, key=pair.key), lambda tokens: None, time.time)
    watching = asyncio.create_task(renewal.watch())
    while not caplog.messages:
        await asyncio.sleep(0)
    assert "expires at" in caplog.messages[0]
    await renewal.read_again()
    assert caplog.messages[1] == "the tokens stay as they were: cannot read the token file X: gone"
    assert "expires at" in caplog.messages[2]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
