"""What cannot be started, as far as no executor can be given it, and what shells tell of their own."""

from __future__ import annotations

import pytest

from daggyr.attempts.startable import MAX_WORDS_BYTES, NotStartable, check, check_sizes, refusal, shown, words_of


@pytest.mark.parametrize(
    ("command", "environment", "folder"),
    [(["echo", "\ud800"], {}, ""), (["echo"], {"\udc80": ""}, ""), (["echo"], {"A": "\udfff"}, ""), (["echo"], {}, "\ud800")],
)
def test_half_a_character_has_no_bytes(command: list[str], environment: dict[str, str], folder: str) -> None:
    """The contract's messages hold none (protobuf refuses them), so no executor is ever given one."""
    with pytest.raises(NotStartable, match=r"half of a character, '.ud"):
        check(command, environment, folder)


def test_what_is_long_together_counts_pointers_too() -> None:
    many = MAX_WORDS_BYTES // 10
    check_sizes(words_of(["x"] * (many - 10), {}))
    with pytest.raises(NotStartable, match=f"too long for this host: {2 * (many + 10)} bytes"):
        check_sizes(words_of(["x"] * (many + 10), {}))


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (b"execute\0./x\0Exec format error\0", "'./x' is neither a binary for this host nor a script with a first line"),
        (b"execute\0./x\0Permission denied\0", "cannot start './x': Permission denied"),
        (b"home\0/gone\0", "the folder where tasks start cannot be entered: '/gone'"),
        (b"tool\0setsid\0node1\0", "there is no setsid on node1"),
        (b"path\0a\nb\0/x:\xff\0", "'a\\nb' is in none of the folders of PATH='/x:\ufffd'"),
        (b"no such program: x\n", "no such program: x"),  # a job's that an earlier version submitted
        (b"", ""),
    ],
)
def test_a_shells_words_become_a_sentence(told: bytes, sentence: str) -> None:
    assert sentence in refusal(told)


def test_what_is_shown_is_bounded() -> None:
    assert len(shown("x" * 10_000)) < 310
    assert shown(b"\x1b[1m") == repr("\x1b[1m")
