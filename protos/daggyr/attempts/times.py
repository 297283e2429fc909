"""Times between messages and numbers: points of time in nanoseconds since the epoch, durations in seconds.

The agent, the executors and the CLI call these. Nothing here looks at a clock.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_SECOND = 1_000_000_000


def timestamp(nanoseconds: int) -> Timestamp:
    """The message of a point of time, given in nanoseconds since the epoch."""
    seconds, nanos = divmod(nanoseconds, _SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def duration(seconds: float) -> Duration:
    """The message of a duration, to the nearest nanosecond."""
    whole, nanos = divmod(round(seconds * _SECOND), _SECOND)
    return Duration(seconds=whole, nanos=nanos)


def seconds_of(time: Duration | Timestamp) -> float:
    """A duration in seconds, or a point of time in seconds since the epoch; 0 for a message that is not set."""
    return time.seconds + time.nanos / _SECOND
