"""Token files: the server makes a file once, and only reads it from then on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daggyr.address import AddressError, Tls, check_exposure
from daggyr.tokens import TokenError, make_token, read_token


def test_a_token_is_made_once_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "state/client.token"
    token = make_token("client", path)
    assert (make_token("client", path), read_token(path)) == (token, token)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_written_beside_a_token_that_is_there(tmp_path: Path) -> None:
    """A token that was handed in may be on a file system that cannot be written to."""
    path = tmp_path / "agent.token"
    path.touch(0o600)
    path.write_text("handed-in-from-outside\n")
    before = tmp_path.stat().st_mtime_ns
    assert make_token("agent", path) == "handed-in-from-outside"
    assert tmp_path.stat().st_mtime_ns == before


GOOD = "daggyr-client-" + "x" * 20
ME, ROOT, OTHER = os.geteuid(), 0, 4711
root_only = pytest.mark.skipif(ME != 0, reason="only root gives files away")


@pytest.mark.parametrize(
    ("owner", "mode", "reason"),
    [
        (ME, 0o600, None),
        (ME, 0o400, None),
        (ME, 0o640, "be read by others"),
        (ME, 0o644, "be read by others"),
        (ME, 0o620, "be written by others"),
        (ME, 0o666, "be written by others"),
        pytest.param(ROOT, 0o440, None, marks=root_only),  # a secret of Kubernetes, a credential of systemd
        pytest.param(ROOT, 0o444, None, marks=root_only),
        pytest.param(OTHER, 0o600, "belongs to another user", marks=root_only),
        pytest.param(OTHER, 0o444, "belongs to another user", marks=root_only),
    ],
)
def test_whose_a_token_may_be(tmp_path: Path, owner: int, mode: int, reason: str | None) -> None:
    path = tmp_path / "client.token"
    path.write_text(GOOD)
    path.chmod(mode)
    if owner != ME:
        os.chown(path, owner, -1)
    for read in (read_token, lambda path: make_token("client", path)):
        if reason is None:
            assert read(path) == GOOD
        else:
            with pytest.raises(TokenError, match=reason) as refused:
                read(path)
            assert str(path) in str(refused.value)
            assert GOOD not in str(refused.value)


@pytest.mark.parametrize("token", ["x", "y" * 15])
def test_a_token_that_can_be_guessed_is_refused(tmp_path: Path, token: str) -> None:
    path = tmp_path / "client.token"
    path.touch(0o600)
    path.write_text(token)
    with pytest.raises(TokenError, match=f"has {len(token)} bytes, which can be guessed"):
        read_token(path)


@pytest.mark.parametrize(
    ("address", "stays"),
    [
        ("127.0.0.1:1", True),
        ("127.9.8.7:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("localhost:1", True),
        ("unix:/run/x", True),
        ("0.0.0.0:1", False),
        ("192.0.2.7:1", False),
        ("[2001:db8::1]:1", False),
        ("localhost.example:1", False),
        ("build1:1", False),
    ],
)
def test_a_token_leaves_the_host_over_tls_only(address: str, stays: bool) -> None:
    for token, tls, insecure in ((None, None, False), (GOOD, Tls(), False), (GOOD, None, True)):
        check_exposure(address, token, tls, insecure=insecure)
    if stays:
        check_exposure(address, GOOD, None, insecure=False)
    else:
        with pytest.raises(AddressError, match="without TLS") as refused:
            check_exposure(address, GOOD, None, insecure=False)
        assert GOOD not in str(refused.value)
        assert "--insecure" in str(refused.value)
