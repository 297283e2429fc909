"""The key of an attempt in its four forms: a message, a tuple, the name of a folder or file, and back again.

The agent and the executors keep attempts by `Ident`, because a message cannot be a dictionary's key. The life is a part of each
form, so that attempts of two copies of a tracker never have one name. Nothing here knows whether an attempt of a key exists.
"""

from __future__ import annotations

import re

from daggyr.v1.task_pb2 import AttemptKey

Ident = tuple[int, int, int, int]  # an AttemptKey's run_id, task_number, attempt and life

_NAME = re.compile(r"(\d{1,20})-(\d{1,10})-(\d{1,10})(?:-([1-9a-f][0-9a-f]{0,15}))?", re.ASCII)


def ident_of(key: AttemptKey) -> Ident:
    return key.run_id, key.task_number, key.attempt, key.life


def key_of(ident: Ident) -> AttemptKey:
    run_id, task_number, attempt, life = ident
    return AttemptKey(run_id=run_id, task_number=task_number, attempt=attempt, life=life)


def name_of(ident: Ident) -> str:
    """The name of an attempt's folder: RUN-TASK-ATTEMPT-LIFE, the life in hexadecimal digits.

    Without a life it is RUN-TASK-ATTEMPT, as versions that had no lives called it, so that their folders are found.
    """
    run_id, task_number, attempt, life = ident
    return f"{run_id}-{task_number}-{attempt}-{life:x}" if life else f"{run_id}-{task_number}-{attempt}"


def ident_in(name: str) -> Ident | None:
    """The attempt whose folder has this name; None if no attempt's can."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2]), int(match[3]), int(match[4] or "0", 16)) if match else None
