"""Reads a specification from a file or from standard input, and gives it as the JSON document that the server takes.

`run`, `submit`, `edit`, `validate` and `expand` call this. JSON is passed on unchanged and piece by piece, so that its size does
not matter. YAML is converted here, and must fit into memory for that. A pipe or a device is copied to a temporary file first,
because a submission may have to be repeated; the copy has a bound, because a pipe may never end. What --param says is put into
the document, which must fit into memory for that, too. Nothing here checks what else the document says.
"""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, BinaryIO, cast

import click

from daggyr_server.cli.errors import CommandError, SpecRefused
from daggyr_server.cli.parameters import Given, values_of
from daggyr_server.cli.stdout import notice, warn
from daggyr_server.cli.words import printable, size

MAX_YAML_BYTES = 1024**3
MAX_CHANGED_BYTES = 1024**3
_SLOW_YAML_BYTES = 50_000_000
_MEMORY_BYTES = 16 * 1024**2
_MAX_SPOOLED_BYTES = 1024**3
_CHUNK_BYTES = 1024**2

spec_argument = click.argument("spec", metavar="SPEC")


def name_of(spec: str) -> str:
    """The name of the specification in messages."""
    return "the specification on standard input" if spec == "-" else printable(spec)


@contextmanager
def json_document(spec: str, params: Given = ()) -> Iterator[BinaryIO]:
    """Open the specification `spec`, a path or `-`, as a seekable JSON document that is at its start.

    `params` are other values for its parameters. Raises CommandError if it cannot be read, or is YAML that cannot be converted,
    or has no such parameters.
    """
    given = values_of(params)
    with ExitStack() as stack:
        try:
            source = stack.enter_context(_source(spec))
            document = stack.enter_context(_seekable(source, spec))
            if _is_yaml(spec, document):
                document = io.BytesIO(_from_yaml(_read_yaml(document, spec), spec))
            if given:
                document = io.BytesIO(_with_values(document, given, spec))
        except OSError as error:
            raise CommandError(f"cannot read {name_of(spec)}: {error.strerror}") from None
        yield document


def _source(spec: str) -> AbstractContextManager[BinaryIO]:
    if not spec:
        raise CommandError("the name of the specification is empty: name a file, or `-` for standard input")
    if spec != "-":
        return Path(spec).open("rb")
    if sys.stdin is None:  # the descriptor was closed before the program began
        raise CommandError("standard input is closed: name a file instead of `-`")
    return nullcontext(sys.stdin.buffer)


def _with_values(document: BinaryIO, given: dict[str, list[str]], spec: str) -> bytes:
    from daggyr_server.spec import SpecificationError
    from daggyr_server.spec.given import with_values

    length = document.seek(0, io.SEEK_END)
    document.seek(0)
    if length > MAX_CHANGED_BYTES:
        raise CommandError(f"{name_of(spec)} has {size(length)}, too much for --param: write the values into it")
    warnings: list[str] = []
    try:
        changed = with_values(document.read(), given, warnings)
    except SpecificationError as error:
        raise SpecRefused(name_of(spec), str(error)) from None
    for warning in warnings:
        warn(warning)
    return changed


def _read_yaml(document: BinaryIO, spec: str) -> bytes:
    length = document.seek(0, io.SEEK_END)
    document.seek(0)
    if length > MAX_YAML_BYTES:
        raise CommandError(f"{name_of(spec)} is YAML of {size(length)}, more than {size(MAX_YAML_BYTES)}: write it as JSON")
    if length > _SLOW_YAML_BYTES:
        notice(f"daggyr: {name_of(spec)} is YAML of {size(length)}; as JSON it would load far faster")
    return document.read()


def _from_yaml(data: bytes, spec: str) -> bytes:
    from daggyr_server.spec import SpecificationError
    from daggyr_server.spec.yaml_text import yaml_to_json

    try:
        return yaml_to_json(data)
    except SpecificationError as error:
        raise SpecRefused(name_of(spec), str(error)) from None


@contextmanager
def _seekable(source: BinaryIO, spec: str) -> Iterator[BinaryIO]:
    if stat.S_ISREG(os.fstat(source.fileno()).st_mode):  # a device says that it can seek, but gives other bytes each time
        yield source
        return
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES) as spool:
        _copy(source, spool, spec)
        yield cast(BinaryIO, spool)


def _copy(source: BinaryIO, spool: IO[bytes], spec: str) -> None:
    length = 0
    while data := source.read(_CHUNK_BYTES):
        length += len(data)
        if length > _MAX_SPOOLED_BYTES:
            raise CommandError(
                f"{name_of(spec)} goes on after {size(_MAX_SPOOLED_BYTES)} and is no file: write it to one, and name that"
            )
        try:
            spool.write(data)
        except OSError as error:
            raise CommandError(
                f"cannot keep {name_of(spec)} in {tempfile.gettempdir()} while it is read: {error.strerror}; "
                "name a file, or another folder in TMPDIR"
            ) from None
    spool.seek(0)


def _is_yaml(spec: str, document: BinaryIO) -> bool:
    """Whether the document is YAML. The name's suffix says so; if it does not, whatever does not begin with `{` is YAML."""
    suffix = Path(spec).suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        return suffix != ".json"
    beginning = document.read(4096)
    document.seek(0)
    return re.match(rb"(?:\xef\xbb\xbf)?\s*\{", beginning) is None
