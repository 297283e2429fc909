"""The key of an attempt in its four forms: a message, a tuple, the name of a folder or file, and back again.

The agent and the executors keep attempts by `Ident`, because a message cannot be a dictionary's key. Nothing here knows whether
an attempt of a key exists.
"""

from __future__ import annotations

import re

from daggyr.v1.task_pb2 import AttemptKey

Ident = tuple[int, int, int]  # an AttemptKey's run_id, task_number and attempt

_NAME = re.compile(r"(\d{1,20})-(\d{1,10})-(\d{1,10})", re.ASCII)


def ident_of(key: AttemptKey) -> Ident:
    return key.run_id, key.task_number, key.attempt


def key_of(ident: Ident) -> AttemptKey:
    return AttemptKey(run_id=ident[0], task_number=ident[1], attempt=ident[2])


def name_of(ident: Ident) -> str:
    """The name of an attempt's folder: RUN-TASK-ATTEMPT."""
    return "-".join(map(str, ident))


def ident_in(name: str) -> Ident | None:
    """The attempt whose folder has this name; None if no attempt's can."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None
