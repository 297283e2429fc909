"""A server keeps nothing of runs that have ended, however many there were: its objects are counted over some hundred runs.

The coordinator is in the test's own process, so that every dict, list, set and deque of it can be counted with what is in them.
What is kept on purpose (the last ended runs, the last changes) is bounded here to a few.
"""

from __future__ import annotations

import asyncio
import gc
import io
from collections import OrderedDict, defaultdict, deque
from contextvars import Context
from pathlib import Path
from typing import Any
from weakref import ref

import msgspec
import pytest

from daggyr.client import Client
from daggyr.v1.run_pb2 import State
from daggyr_server.config import load
from daggyr_server.coordinator import coordinator
from daggyr_server.driver import changes, ended

KEPT = 5  # of what is kept on purpose
RUNS = 100  # in one round
# A loop lets go of the timers that were cancelled when they are due, or when there are many.
PASSING = (asyncio.TimerHandle, Context, ref)
LEAK = RUNS // 2  # more than that, and something is kept of each run of a round
AT_ONCE = 10
CONFIG = """
[server]
listen = "unix:{folder}/server.sock"
tracker = "sqlite:{folder}/state.db"
[pools.default]
executor = "noop"
"""


class Sizes:
    """How many objects of each kind there are, and how many are in each container."""

    def __init__(self) -> None:
        gc.collect()
        self.objects: dict[str, int] = {}
        self.containers: dict[int, tuple[str, int]] = {}
        tracked = gc.get_objects()
        # The collector does not list dicts of numbers and texts only, and sees what refers to them.
        for each in [*tracked, *(inner for outer in tracked for inner in gc.get_referents(outer) if not gc.is_tracked(inner))]:
            name = f"{type(each).__module__}.{type(each).__qualname__}"
            if gc.is_tracked(each) and type(each) not in PASSING:
                self.objects[name] = self.objects.get(name, 0) + 1
            if type(each) in (dict, list, set, deque, OrderedDict, defaultdict) and len(each) > LEAK:
                self.containers[id(each)] = f"{name} with {str(next(iter(each)))[:60]}", len(each)

    def grown(self, since: Sizes) -> list[str]:
        """What has grown by more than LEAK."""
        found = [
            f"{count - since.objects.get(name, 0)} more of {name}"
            for name, count in self.objects.items()
            if count - since.objects.get(name, 0) > LEAK
        ]
        for key, (name, count) in self.containers.items():
            if key in since.containers and count - since.containers[key][1] > LEAK:
                found.append(f"{count - since.containers[key][1]} more entries in a {name}")
        return found


async def one(client: Client, number: int) -> None:
    """A run of a few kinds of tasks, which is looked at, edited and watched as runs are."""
    tasks: dict[str, Any] = {
        "a": {"details": {"command": ["x"]}, "children": ["b"]},
        "b": {"details": {"command": ["x", "{{V}}"]}, "parameters": {"{{V}}": ["1", "2"]}},
    }
    run_id = await client.submit_document(io.BytesIO(msgspec.json.encode({"tags": {"n": str(number)}, "tasks": tasks})))
    assert (await client.wait(run_id)).state == State.STATE_COMPLETED
    await client.task(run_id, "a")
    await client.explain(run_id, "a")
    if number % 3 == 0:
        await client.retry(run_id, ["a"], downstream=True)
        await client.wait(run_id)
    if number % 5 == 0:
        await client.delete(run_id)
    if number >= 2 * AT_ONCE:
        async for page in client.runs(tags={"n": str(number - 2 * AT_ONCE)}):  # one that has left memory
            for run in page:
                await client.first_tasks(run.run_id, 10)


async def test_nothing_is_kept_of_runs_that_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "KEPT_ENDED_RUNS", KEPT)
    monkeypatch.setattr(changes, "KEPT_ENDED", KEPT)
    folder = tmp_path
    await asyncio.to_thread(folder.chmod, 0o700)
    await asyncio.to_thread((folder / "server.toml").write_text, CONFIG.format(folder=folder))
    async with coordinator(load(folder / "server.toml")) as running, Client(running.address) as client:
        rounds: list[Sizes] = []
        for first in range(0, 3 * RUNS, RUNS):
            for start in range(first, first + RUNS, AT_ONCE):
                await asyncio.gather(*(one(client, number) for number in range(start, start + AT_ONCE)))
            rounds.append(Sizes())
        # What the first round leaves behind may be first uses; what a later one adds is kept of each run.
        assert not rounds[2].grown(rounds[1])
