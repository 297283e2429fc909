"""What ready tasks wait for, if it is not only their turn: a host that could hold them, or the end of a host's pause.

`views` puts it into a run's notes, `explanation` into what `daggyr why` says, `hosts` tells pauses of pools and agents. Pure:
pools go in, words for people come out. Nothing here decides what a host is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice

from daggyr_server.core.graph.ready import TaskKind
from daggyr_server.core.graph.run import Run
from daggyr_server.core.moment import Moment
from daggyr_server.core.placing.host import Host, Pause
from daggyr_server.core.placing.pool import Pool

_FOUND = ("cores", "memory_mb")  # what hosts find by themselves
_MOST_NAMED = 3  # hosts in a sentence


def awaited(run: Run, pools: Mapping[str, Pool], now: Moment) -> Iterator[str]:
    """What the ready tasks of a run wait for, if no host could run them now whoever's turn it was."""
    counts: Counter[str] = Counter()
    for queue in run.all_queues:
        if not len(queue) or queue.head() is None:
            continue
        missing = missing_host(queue.policy.pool, queue.wants.kind, pools, now)
        if missing:
            counts[missing] += len(queue)
    for missing, count in counts.items():
        yield f"{count:,} {'task waits' if count == 1 else 'tasks wait'} for {missing}"


def missing_host(pool: str, kind: TaskKind, pools: Mapping[str, Pool], now: Moment) -> str | None:
    """What has to change in `pool` before tasks of a kind run there; None if one of its open hosts could hold and takes them."""
    needs = kind.needs
    hosts = pools[pool].hosts.values()
    if any(host.open and host.could_hold(needs) and host.takes(kind) for host in hosts):
        return None
    limiting = [host for host in hosts if host.open and host.could_hold(needs)]
    if limiting:
        told = (f"{host.name} to take more tasks of this kind: {host.limits[kind].reason}" for host in limiting)
        return "; or for ".join(islice(told, _MOST_NAMED))
    paused = list(pauses((host for host in hosts if _might_hold(host, needs)), now))
    if paused:
        more = f"; {len(paused) - _MOST_NAMED} more are paused" if len(paused) > _MOST_NAMED else ""
        return f"the end of a pause: {'; '.join(paused[:_MOST_NAMED])}{more}"
    if not any(host.open or host.pause is not None for host in hosts):
        return f"a host to join the pool {pool!r}"
    short = [
        f"{host.name} {host.shortage}" for host in islice((host for host in hosts if host.open and host.shortage), _MOST_NAMED)
    ]
    why = f" ({'; '.join(short)})" if short else ""
    return f"a host with {', '.join(f'{name}={units}' for name, units in needs)} to join the pool {pool!r}{why}"


def _might_hold(host: Host, needs: Iterable[tuple[str, int]]) -> bool:
    """Whether a host that is paused may be able to hold a task: one that was never reached has not told yet what it has."""
    return all(host.resources.get(name, units if name in _FOUND else 0) >= units for name, units in needs)


def pauses(hosts: Iterable[Host], now: Moment) -> Iterator[str]:
    """What is said of each of these hosts that is paused: a part of a sentence."""
    for host in hosts:
        if host.pause is not None:
            yield f"host {host.name} is paused{until(host.pause, now)}, because {host.pause.reason}"


def until(pause: Pause, now: Moment) -> str:
    """When a pause ends, as part of a sentence; empty if nobody knows."""
    if pause.until is None:
        return ""
    return f" until {utc(now.wall_at(pause.until))}"


def utc(seconds: float) -> str:
    """A time, given in seconds since the epoch, in a sentence. The command line shows it as local time, as it does all times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
