"""Large documents are decoded piece by piece, with the same meaning and the same faults as when they are decoded at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daggyr_server.spec import SpecificationError, decode_json, encode_json, pieces
from daggyr_server.spec.decode import decode_tasks


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    """Make the pieces so small that each document of a test is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE_BYTES", 100)
        yield


def task(*words: str, **keys: Any) -> dict[str, Any]:
    return {"details": {"command": ["echo", *words], **keys}}


# Texts that look like the end of a task and are not.
TRAPS = [
    '}, "b": {"details": {"command": ["x"]}',
    '"tasks": {',
    '\\"tasks\\": {',
    "}}",
    '"}, {"',
]
WORDS = st.sampled_from([*TRAPS, "é", "x" * 50, ""])
NAMES = st.text('abé:,{}"\\ ', min_size=1, max_size=5)


@st.composite
def runs(draw: st.DrawFn) -> bytes:
    words = st.lists(WORDS, max_size=3)
    tasks = {
        name: task(*draw(words), environment=dict.fromkeys(draw(st.lists(st.sampled_from(["details", "A"]), unique=True)), "v"))
        for name in draw(st.lists(NAMES, min_size=1, max_size=12, unique=True))
    }
    parts: list[tuple[str, Any]] = [("tasks", tasks)]
    if draw(st.booleans()):
        parts.append(("tags", {draw(WORDS): draw(WORDS), "tasks": "x"}))
    if draw(st.booleans()):
        parts.append(("parameters", {"tasks": [draw(WORDS)]}))
    made = json.dumps(dict(draw(st.permutations(parts))), indent=draw(st.sampled_from([None, 1])))
    if draw(st.booleans()):  # some documents are broken
        cut = draw(st.integers(0, len(made)))
        made = made[:cut] + draw(st.sampled_from(["", ",", "{", "}", '"'])) + made[cut + draw(st.integers(0, 1)) :]
    return made.encode()


def read(data: bytes | bytearray) -> object:
    """Return what a document says, or its faults."""
    try:
        return encode_json(decode_json(data))
    except SpecificationError as error:
        return str(error)


@given(runs())
def test_a_document_in_pieces_says_what_it_says_at_once(data: bytes) -> None:
    given = bytearray(data)
    assert read(given) == read(data)
    assert given == data


@given(runs())
def test_so_does_what_a_generator_printed(data: bytes) -> None:
    def tasks(data: bytes | bytearray) -> object:
        try:
            return [(name, bytes(raw)) for name, raw in decode_tasks(data).items()]
        except SpecificationError as error:
            return str(error)

    with suppress(ValueError, KeyError, TypeError):  # a document that was broken stays as it is
        data = json.dumps(json.loads(data)["tasks"]).encode()
    assert tasks(bytearray(data)) == tasks(data)


def test_no_piece_of_a_large_document_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decoder = pieces._objects

    class Seen:
        def decode(self, data: bytes) -> Any:
            sizes.append(len(data))
            return decoder.decode(data)

    monkeypatch.setattr(pieces, "_objects", Seen())
    document = {"tags": {"a": "b"}, "tasks": {f"task {number}": task("x", str(number)) for number in range(1_000)}}
    data = bytearray(json.dumps(document).encode())
    assert len(decode_json(data).tasks) == 1_000
    assert len(sizes) > 200
    assert max(sizes) < 300


def test_a_name_that_stands_in_two_pieces() -> None:
    one = ",".join(f'"t{number}": {json.dumps(task("x"))}' for number in [*range(50), 3])
    faults = read(bytearray(f'{{"tasks": {{{one}}}}}'.encode()))
    assert faults == "tasks.t3: a task of this name stands more than once; all but one would be lost"


@pytest.mark.parametrize(
    "data", [b'"' + b"x" * 100_000_000 + b'"', b'{"tasks": {"a": {"details": {"command": ["' + b"x" * 100_000_000 + b'"]}}}}']
)
def test_a_document_of_one_endless_text(data: bytes) -> None:
    told = read(data)
    assert isinstance(told, str)
    assert ": a text of 100,000,000 bytes begins here; a task takes at most 3,145,728; put the text into a file" in told


def test_a_byte_order_mark_is_passed_over() -> None:
    data = json.dumps({"tasks": {"a": task("x")}}).encode("utf-8-sig")
    assert list(decode_json(data).tasks) == ["a"]
