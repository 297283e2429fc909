"""Limits for what people choose and what later goes into one message of the contract, and the faults for what is larger.

A message holds 4 MiB. An accepted run stays valid, so a tracker's documents are expanded again without these limits. Every other
expansion applies them, and tells the size and what to do instead. This package calls them, and so does the API where it joins
tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from daggyr_server.spec.document import Details
from daggyr_server.spec.faults import Faults, quoted

MAX_DETAILS_BYTES = 3 * 1024 * 1024  # a message has room for a task's name and its key beside them
MAX_TAGS_BYTES = 64 * 1024
MAX_DEFAULTS_BYTES = 1024**3  # of what defaults add to all tasks of a document together
MAX_NAME_BYTES = 256  # of a pool or a resource
MAX_RESOURCES = 100
MAX_PARAMETER_NAMES_BYTES = 64 * 1024
SURELY_SMALL = MAX_DETAILS_BYTES // 4  # characters, which fit whatever they are, because UTF-8 takes four bytes at most for one

INTO_A_FILE = "put the text into a file, and give the task the file's name"


def utf8_size(text: str) -> int:
    """How many bytes a text takes in a message."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def check_tags(tags: Mapping[str, str], faults: Faults) -> None:
    """Add a fault if a run's tags are too large."""
    size = sum(utf8_size(key) + utf8_size(value) for key, value in tags.items())
    if size > MAX_TAGS_BYTES:
        message = f"the tags take {size:,} bytes; a run's take at most {MAX_TAGS_BYTES:,}"
        faults.add("tags", message, "put the text into a file, and its name into the tag")


def check_parameter_names(names: Iterable[str], place: str, faults: Faults, *, task: str | None = None) -> bool:
    """Whether the names of parameters are few and short enough to be searched for. If not, this adds a fault."""
    size = sum(map(utf8_size, names))
    if size <= MAX_PARAMETER_NAMES_BYTES:
        return True
    message = f"the names of the parameters take {size:,} bytes; they take at most {MAX_PARAMETER_NAMES_BYTES:,}"
    faults.add(place, message, "use shorter names, or fewer parameters with more values", task=task)
    return False


def refuse_details(faults: Faults, details: Details, size: int, place: str, *, task: str, filled: bool) -> None:
    """Add the fault for a task of `size` bytes. `filled` says that values have taken the places of parameters in it."""
    parts = {"script" if details.script else "command": sum(map(utf8_size, details.command))}
    if details.environment:
        parts["environment"] = sum(utf8_size(name) + utf8_size(value) for name, value in details.environment.items())
    if isinstance(details.working_directory, str):
        parts["working_directory"] = utf8_size(details.working_directory)
    if isinstance(details.stdin, str):
        parts["stdin"] = utf8_size(details.stdin)
    largest = max(parts, key=lambda name: parts[name])
    what = "with the values of its parameters, the task takes" if filled else "the task takes"
    message = f"{what} {size:,} bytes, most of them for {quoted(largest)}; a task takes at most {MAX_DETAILS_BYTES:,}"
    faults.add(f"{place}.details", message, INTO_A_FILE, task=task)


def name_too_long(what: str, name: str) -> str | None:
    """The fault of a pool's or resource's name that is too long, or None."""
    size = len(name) if len(name) <= MAX_NAME_BYTES // 4 else utf8_size(name)
    return f"the name of a {what} takes {size:,} bytes; it takes at most {MAX_NAME_BYTES}" if size > MAX_NAME_BYTES else None
