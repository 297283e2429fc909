"""A coordinator and an agent that are cut apart, with and without a word, for a while and for longer than the lease.

The proxy between them holds what is sent instead of dropping it: what TCP would send again after a partition comes late here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest
from farm import LEDGER, Farm
from support.deployment import PATIENT, SHORT_LEASE, Deployment, is_gone, own_address, shell, until
from support.proxy import Proxy

T = TypeVar("T")

# Silence is noticed after two seconds. An agent that was only slow is cut off too; it joins again and has lost nothing.
ATTENTIVE = "heartbeat = 0.5\nlease = 100"


async def aside(work: Callable[..., T], *arguments: object) -> T:
    """Do blocking work in a thread, so that the proxy goes on."""
    return await asyncio.to_thread(work, *arguments)


async def disconnected(deployment: Deployment) -> None:
    """Wait until the coordinator has noticed that an agent is out of reach."""
    await aside(until, lambda: "DISCONNECTED" in {each["state"] for each in deployment.agents()}, "the break")


async def connected(deployment: Deployment) -> None:
    await aside(until, lambda: {each["state"] for each in deployment.agents()} == {"CONNECTED"}, "the agent")


async def attempts(deployment: Deployment, run_id: int, name: str) -> list[tuple[str, str]]:
    """Return the outcome and the host of each attempt of a task."""
    task = await aside(deployment.task, run_id, name)
    return [(attempt["outcome"], attempt["host"]) for attempt in task["attempts"]]


@pytest.mark.parametrize("silent", [False, True], ids=["broken", "silent"])
async def test_cut_apart_for_less_than_the_lease(deployment: Deployment, sqlite_tracker: str, silent: bool) -> None:
    """The agent goes on and delivers later what ended meanwhile. Nothing is done twice."""
    farm = Farm(deployment, sqlite_tracker, ATTENTIVE if silent else PATIENT, listen=own_address())
    await aside(farm.start)
    gate = deployment.gate()
    async with Proxy(deployment.address) as proxy:
        agent = await aside(lambda: deployment.start_agent("one", "--resource", "cores=2", coordinator=proxy.address))
        run_id = await aside(
            deployment.submit,
            {"a": shell(f"{gate.hold}; {LEDGER}; echo done"), "b": shell(LEDGER, parents=["a"]), "c": shell(LEDGER)},
        )
        await aside(gate.reached)
        if silent:
            proxy.hold()
        else:
            await proxy.cut()
        await disconnected(deployment)
        await aside(gate.open)
        await aside(until, lambda: ("a", 1) in farm.performed(), "the task")
        assert (await aside(deployment.states, run_id))["a"] in ("QUEUED", "RUNNING")  # as far as the coordinator knows
        proxy.mend()
        assert (await aside(deployment.watch, run_id))["task_states"] == {"COMPLETED": 3}
        assert sorted(farm.performed()) == [("a", 1), ("b", 1), ("c", 1)]
        assert await attempts(deployment, run_id, "a") == [("SUCCEEDED", "one")]
        await aside(agent.end)


async def test_cut_apart_for_longer_than_the_lease(deployment: Deployment, tracker: str) -> None:
    """The agent's attempts run elsewhere. They may run twice, and what the agent tells of them late changes nothing."""
    farm = Farm(deployment, tracker, SHORT_LEASE, listen=own_address())
    await aside(farm.start)
    ended, runs = deployment.gate("ended"), deployment.gate("runs")
    first = '[ "$DAGGYR_ATTEMPT" = 1 ]'
    async with Proxy(deployment.address) as proxy:
        agent = await aside(lambda: deployment.start_agent("one", "--resource", "cores=2", coordinator=proxy.address))
        run_id = await aside(
            deployment.submit,
            {
                "ended": shell(f"if {first}; then {ended.hold}; fi; {LEDGER}; echo $DAGGYR_ATTEMPT"),
                "runs": shell(f"if {first}; then {runs.hold}; fi; {LEDGER}; echo $DAGGYR_ATTEMPT"),
                "last": shell(LEDGER, parents=["ended", "runs"]),
            },
        )
        await aside(ended.reached)
        pid = await aside(runs.reached)
        proxy.hold()
        await aside(ended.open)
        await aside(until, lambda: ("ended", 1) in farm.performed(), "the task that ends in vain")
        await aside(lambda: deployment.start_agent("two", "--resource", "cores=2"))
        run = await aside(deployment.watch, run_id)
        assert run["task_states"] == {"COMPLETED": 3}
        assert not is_gone(pid)
        before = [await aside(deployment.task, run_id, name) for name in ("ended", "runs", "last")]
        # The words on the old connection come late. Then the agent is back and ends attempts that are not its own any more.
        proxy.mend()
        await aside(until, lambda: is_gone(pid), "the end of the attempt that was given up")
        await connected(deployment)
        assert [await aside(deployment.task, run_id, name) for name in ("ended", "runs", "last")] == before
        for name in ("ended", "runs"):
            assert await attempts(deployment, run_id, name) == [("LOST", "one"), ("SUCCEEDED", "two")]
        assert before[0]["attempts"][1]["stdout"] == "2\n"
        # The same holds for the coordinator's durable state, not only for its memory.
        await aside(farm.kill_and_start)
        assert [await aside(deployment.task, run_id, name) for name in ("ended", "runs", "last")] == before
        assert sorted(farm.performed()) == [("ended", 1), ("ended", 2), ("last", 1), ("runs", 2)]
        await aside(deployment.goes_on)
        await aside(agent.end)


async def test_a_result_whose_acknowledgement_is_lost(deployment: Deployment, sqlite_tracker: str) -> None:
    """The result is durable and is told again to another coordinator. What follows from it is not repeated."""
    farm = Farm(deployment, sqlite_tracker, PATIENT, listen=own_address())
    await aside(farm.start)
    gate = deployment.gate()
    async with Proxy(deployment.address) as proxy:
        agent = await aside(lambda: deployment.start_agent("one", "--resource", "cores=2", coordinator=proxy.address))
        await aside(lambda: deployment.start_agent("two", "--resource", "cores=1", "--resource", "other=1"))
        run_id = await aside(
            deployment.submit,
            {
                "a": shell(f"{gate.hold}; {LEDGER}; echo done", resources={"cores": 2}, children=["b"]),
                "b": shell(LEDGER, resources={"other": 1}),
            },
        )
        await aside(gate.reached)
        proxy.hold(to_server=False)
        await aside(gate.open)
        # The result is enough for the coordinator, which lets the tasks behind it go on.
        assert (await aside(deployment.watch, run_id))["task_states"] == {"COMPLETED": 2}
        await aside(farm.kill)
        await proxy.cut()
        await aside(farm.start)
        proxy.mend()
        await connected(deployment)
        await aside(deployment.goes_on)
        assert await attempts(deployment, run_id, "a") == [("SUCCEEDED", "one")]
        assert await attempts(deployment, run_id, "b") == [("SUCCEEDED", "two")]
        assert farm.performed() == [("a", 1), ("b", 1)]
        await aside(agent.end)


async def test_a_kill_that_does_not_get_through(deployment: Deployment, sqlite_tracker: str) -> None:
    """The run is KILLED once the agent is back and has ended its processes. Attempts that waited there never start."""
    farm = Farm(deployment, sqlite_tracker, PATIENT, listen=own_address())
    await aside(farm.start)
    gate = deployment.gate()
    async with Proxy(deployment.address) as proxy:
        agent = await aside(lambda: deployment.start_agent("one", coordinator=proxy.address))
        run_id = await aside(deployment.submit, {"a": shell(gate.hold), "b": shell(LEDGER, parents=["a"])})
        pid = await aside(gate.reached)
        await proxy.cut()
        await disconnected(deployment)
        killed = await aside(deployment.json, "kill", str(run_id))
        assert killed["state"] in ("QUEUED", "RUNNING")
        assert not is_gone(pid)
        proxy.mend()
        assert (await aside(lambda: deployment.watch(run_id, code=1)))["state"] == "KILLED"
        assert is_gone(pid)
        assert farm.performed() == []
        await aside(agent.end)
