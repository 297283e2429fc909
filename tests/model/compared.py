"""Compares what a server tells of one task, and what it tells of an edit's plan, with the model. `played.py` calls it."""

from __future__ import annotations

import json
import time
from typing import Any

import grpc
from support.deployment import Deployment

from model.cases import Step
from model.documented import Run
from model.edits import Plan
from model.resting import QUEUED

PATIENCE = 30.0  # seconds for a server to come to rest; only a difference takes that long
REFUSALS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)


class Differs(AssertionError):
    """What a server told is not what the documents say."""


def compare_task(model: Run, deployment: Deployment, run_id: int, turn: int) -> None:
    """The attempts of one task, whose turn it is, and why it waits; also of one that an edit took away. Raises Differs."""
    there = {*model.tasks, *model.layout.templates}
    names = [*model.tasks, *(name for name, task in model.gone.items() if not task.renamed and name not in there)]
    name = names[turn % len(names)]
    attempts = (model.tasks if name in model.tasks else model.gone)[name].attempts
    expected = [(attempt.number, attempt.outcome) for attempt in attempts]
    deadline = time.monotonic() + PATIENCE
    # What ended last may belong to a task that was taken away, which nothing that was compared before tells of.
    while (told := _attempts(deployment, run_id, name)) != expected:
        if time.monotonic() > deadline:
            raise Differs(f"`task {name}` has the attempts {told}, not {expected}")
        time.sleep(0.005)
    numbers = [number for number, _ in told]
    if numbers != sorted(set(numbers)):
        raise Differs(f"`task {name}` has the attempts {numbers}, which do not rise")
    why = deployment.why(run_id, name)
    if name not in model.tasks:
        if "took it away" not in why:
            raise Differs(f"`why {name}`, which an edit took away: {why}")
        return
    waits = model.tasks[name].state == QUEUED and not model.is_free(name) and not (model.ended or model.killing)
    if waits and ("will not run unless" in why) is not bool(model.blockers(name)):
        raise Differs(f"`why {name}`, which waits for {sorted(model.blockers(name))}: {why}")


def _attempts(deployment: Deployment, run_id: int, name: str) -> list[tuple[int, str | None]]:
    return [(attempt["attempt"], attempt["outcome"]) for attempt in deployment.task(run_id, name)["attempts"]]


def compare_plan(model: Run, deployment: Deployment, run_id: int, step: Step) -> None:
    """What `edit --plan` tells. Raises Differs."""
    plan = model.plan(step.document, downstream=step.downstream)
    written = json.dumps(step.document).encode()
    try:
        totals, tasks = deployment.ask(lambda server: server.edit(run_id, written, plan=True, downstream=step.downstream))
    except grpc.RpcError as error:
        if plan is None and error.code() in REFUSALS:  # type: ignore[attr-defined]
            return
        raise Differs(f"a plan: {error}") from error
    if plan is None:
        raise Differs("a plan of a specification that is refused")
    _same_plan(plan, totals, tasks)


def _same_plan(plan: Plan, totals: dict[str, int], tasks: list[dict[str, Any]]) -> None:
    expected = {
        "CHANGED": plan.changed,
        "ADDED": plan.added,
        "REMOVED": plan.removed,
        "QUEUED_AGAIN": plan.again,
        "ADJUSTED": plan.adjusted - plan.again,
    }
    told: dict[str, list[str]] = {kind: [] for kind in expected}
    for task in tasks:
        told[task["change"].upper().replace(" ", "_")].append(task["task_id"])
    if {kind: sorted(names) for kind, names in expected.items()} != {kind: sorted(names) for kind, names in told.items()}:
        raise Differs(f"a plan tells {told}, not {expected}")
    counts = {
        "unchanged": plan.unchanged,
        "adjusted": len(plan.adjusted),
        "changed": len(plan.changed),
        "added": len(plan.added),
        "removed": len(plan.removed),
    }
    if totals != counts:
        raise Differs(f"a plan's totals are {totals}, not {counts}")
