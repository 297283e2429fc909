"""The orders that come out of the machine. The driver gives them to executors once the step's records are durable, and never
before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Key = tuple[int, int, int]  # run_id, task number, attempt


@dataclass(frozen=True, slots=True)
class StartAttempts:
    """Send attempts of one run to a host. The lists are parallel, in the order in which the attempts should start."""

    pool: str
    host: str
    run_id: int
    numbers: Sequence[int]
    attempts: Sequence[int]


@dataclass(frozen=True, slots=True)
class StopAttempts:
    """End attempts, started or not."""

    pool: str
    host: str
    keys: Sequence[Key]


@dataclass(frozen=True, slots=True)
class RecallAttempts:
    """Take back those attempts that have not started; those that have started go on."""

    pool: str
    host: str
    keys: Sequence[Key]


Command = StartAttempts | StopAttempts | RecallAttempts
