"""What Slurm's own words for an error mean for a pool: whose fault it is, and whether it passes.

`strerror.txt` has every text of slurm_strerror(3) of the versions 20.11 to 26.05, with its verdict in front. Both clients
(commands.py, rest.py) ask `error_of` for the kind of an error. Texts that are not known count as trouble of now, because a task
must not end for a reason that nobody here understands; the text itself is always shown. Nothing here asks Slurm.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from pathlib import Path

from daggyr_server.executors.slurm.client import SlurmError, SlurmGone, SlurmLimited, SlurmRefused, SlurmUnavailable


class Verdict(Enum):
    """What becomes of a request that was answered with an error."""

    NOW = "now"  # trouble of the cluster, or of the way there: nothing of the pool is taken until it is over
    LIMIT = "limit"  # this request is more than the cluster takes just now: a smaller or a later one may be taken
    NEVER = "never"  # this request is not granted, however often it is made
    GONE = "gone"  # the job that it was about is not there any more, or not any more in a state for it


# What the commands themselves say of options that they do not take, and of requests that no node can fulfil.
_OF_COMMANDS = (
    "can not be satisfied",
    "Invalid numeric value",
    "invalid option",
    "Unrecognized option",
    "unrecognized option",
    "unrecognised option",
)
_NO_ROOM = "temporarily unable to accept job"  # sbatch, where the controller has as many jobs as it takes (MaxJobCount)
_KINDS: dict[Verdict, type[SlurmError]] = {
    Verdict.NOW: SlurmUnavailable,
    Verdict.LIMIT: SlurmLimited,
    Verdict.NEVER: SlurmRefused,
    Verdict.GONE: SlurmGone,
}


@cache
def known_texts() -> dict[str, Verdict]:
    """Every text of slurm_strerror(3) that is known, with its verdict."""
    found = {}
    for line in Path(__file__).with_name("strerror.txt").read_text(encoding="utf-8").splitlines():
        verdict, _, text = line.partition(" ")
        found[text.strip()] = Verdict(verdict)
    return found


def verdict_of(words: str) -> Verdict:
    """The verdict on an error, by the longest known text in what Slurm says of it."""
    texts = known_texts()
    longest = max((text for text in texts if text in words), key=len, default=None)
    if longest is not None and texts[longest] is not Verdict.NOW:
        return texts[longest]
    if _NO_ROOM in words:
        return Verdict.LIMIT
    # The commands print such words beside, or in the place of, a text of slurm_strerror.
    if any(phrase in words for phrase in _OF_COMMANDS):
        return Verdict.NEVER
    return Verdict.NOW


def error_of(words: str) -> SlurmError:
    """The error to raise where Slurm answered with these words."""
    return _KINDS[verdict_of(words)](words)
