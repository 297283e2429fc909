"""The core alone: processor time of the machine a no-op task, without tracker, agents or a socket.

    python tests/bench/machine.py [--tasks 100000]

one       a report a step, so that each task is placed when another has ended; hosts take nothing ahead
batches   64 reports a step, on hosts that take attempts ahead of free cores

Both are measured for tasks of one template and for distinct tasks with three edges each.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections import deque

from measured import Spec, expanded, layered

from daggyr_server.core.commands import StartAttempts
from daggyr_server.core.events import AttemptEnded, AttemptStarted, Event, HostChanged, RunSubmitted
from daggyr_server.core.machine import Machine
from daggyr_server.core.moment import Moment
from daggyr_server.core.states import Outcome
from daggyr_server.core.step import Step
from daggyr_server.spec import decode_json, expand

HOSTS, CORES = 4, 64
EPOCH = 1e9  # the wall clock when the steady clock was at 0, in seconds


def seconds(spec: Spec, batch: int, *, ahead: bool) -> float:
    """Processor time of a whole run, from submit to COMPLETED."""
    addition = expand(decode_json(json.dumps(spec).encode()), default_pool="main")
    machine = Machine(["main"])
    has = {"cores": CORES}
    machine.handle(
        Moment(0.0, EPOCH),
        [HostChanged(pool="main", host=f"h{index}", name="h", resources=has, open=True, ahead=ahead) for index in range(HOSTS)],
    )
    submitted = RunSubmitted(ticket=1, request_id="", tags={}, pool="main", parameters={}, addition=addition, document=b"")
    flying: deque[tuple[int, int, int]] = deque()

    def obey(step: Step) -> None:
        for command in step.commands:
            if isinstance(command, StartAttempts):
                flying.extend((command.run_id, *pair) for pair in zip(command.numbers, command.attempts, strict=True))

    gc.collect()
    gc.disable()
    started, now = time.process_time(), 1.0
    obey(machine.handle(Moment(now, EPOCH + now), [submitted]))
    while flying:
        now += 0.001
        told: list[Event] = []
        for _ in range(min(batch, len(flying))):
            key = flying.popleft()
            told += [AttemptStarted(*key, EPOCH + now), AttemptEnded(*key, Outcome.SUCCEEDED, 0.001, None)]
        obey(machine.handle(Moment(now, EPOCH + now), told))
    taken = time.process_time() - started
    gc.enable()
    assert all(run.has_ended for run in machine.runs.values())
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the core alone.")
    parser.add_argument("--tasks", type=int, default=100_000)
    tasks = parser.parse_args().tasks
    for name, spec in (("one template", expanded(tasks)), ("distinct tasks", layered(tasks))):
        for way, batch, ahead in (("one", 1, False), ("batches", 64, True)):
            print(f"machine, {name}, {way}: {1e6 * seconds(spec, batch, ahead=ahead) / tasks:.1f} us a task", flush=True)


if __name__ == "__main__":
    main()
