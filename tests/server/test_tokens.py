"""Token files: made once, and only read from then on."""

from __future__ import annotations

from pathlib import Path

from daggyr.tokens import make_token, read_token


def test_a_token_is_made_once_with_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "state/client.token"
    token = make_token("client", path)
    assert (make_token("client", path), read_token(path)) == (token, token)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_written_beside_a_token_that_is_there(tmp_path: Path) -> None:
    """It may be a secret that was handed in, on a file system that cannot be written to."""
    path = tmp_path / "agent.token"
    path.touch(0o600)
    path.write_text("handed-in-from-outside\n")
    before = tmp_path.stat().st_mtime_ns
    assert make_token("agent", path) == "handed-in-from-outside"
    assert tmp_path.stat().st_mtime_ns == before
