"""Runs on agents that come and go by drain, SIGTERM, SIGKILL and broken connections, and servers that end."""

from __future__ import annotations

import asyncio
import signal

import psutil
import pytest
from support.deployment import PATIENT, SHORT_LEASE, Deployment, follows, own_address, shell, task
from support.proxy import Proxy
from support.waiting import is_gone, until

LEDGER = 'echo "$DAGGYR_TASK_ID $DAGGYR_ATTEMPT" >> ledger'


def host_of(deployment: Deployment, run_id: int, name: str) -> list[tuple[str, str]]:
    """Return the outcome and the host of each attempt of a task."""
    return [(attempt["outcome"], attempt["host"]) for attempt in deployment.task(run_id, name)["attempts"]]


def states(deployment: Deployment) -> dict[str, str]:
    """Return the states of the agents, by name."""
    return {agent["name"]: agent["state"] for agent in deployment.agents()}


async def test_an_agent_that_loses_its_connection_goes_on_and_delivers(farm: Deployment) -> None:
    """Running attempts go on, attempts that were sent ahead are started, and each result comes once."""
    gate = farm.gate()
    async with Proxy(farm.address) as proxy:
        agent = await asyncio.to_thread(farm.start_agent, "one", coordinator=proxy.address)
        run_id = await asyncio.to_thread(
            farm.submit,
            {
                "held": shell(f"echo before; {gate.hold}; echo after; {LEDGER}"),
                "ahead": shell(LEDGER, priority=-1),
                "last": shell(LEDGER, parents=["held", "ahead"]),
            },
        )
        await asyncio.to_thread(farm.running, run_id, "held")
        await proxy.cut()
        await asyncio.to_thread(until, lambda: states(farm) == {"one": "DISCONNECTED"}, "the break")
        assert (await asyncio.to_thread(farm.states, run_id))["held"] == "RUNNING"
        assert "out of reach" in await asyncio.to_thread(farm.why, run_id, "held")
        await asyncio.to_thread(gate.open)
        await asyncio.to_thread(until, lambda: "held 1" in farm.read("ledger"), "the end of the task")
        assert (await asyncio.to_thread(farm.states, run_id))["held"] == "RUNNING"  # as far as the server knows
        proxy.mend()
        run = await asyncio.to_thread(farm.watch, run_id)
        assert run["task_states"] == {"COMPLETED": 3}
        assert agent.process.poll() is None
        assert sorted(farm.read("ledger").splitlines()) == ["ahead 1", "held 1", "last 1"]
        assert (await asyncio.to_thread(farm.attempts, run_id)) == {"held": 1, "ahead": 1, "last": 1}
        held = await asyncio.to_thread(farm.task, run_id, "held")
        assert held["attempts"][0]["stdout"] == "before\nafter\n"
        await asyncio.to_thread(agent.end)


async def test_a_connection_that_breaks_again_and_again(farm: Deployment) -> None:
    """Nothing is done twice, and nothing is left out.

    Every sixth task waits for two breaks, and goes on while there is no connection or once there is one again, in turn.
    """
    gates = {number: farm.gate(f"held-{number}") for number in range(0, 60, 6)}
    tasks = {
        f"t{number}": shell(f"{gates[number].hold if number in gates else ':'}; {LEDGER}; echo {number}") for number in range(60)
    }
    left = list(gates.values())
    async with Proxy(farm.address) as proxy:
        agent = await asyncio.to_thread(farm.start_agent, "one", coordinator=proxy.address)
        run_id = await asyncio.to_thread(farm.submit, tasks)
        while left:
            there = await asyncio.to_thread(
                until, lambda: [gate for gate in left if (gate.folder / f"{gate.name}.pid").exists()], "a task that is held"
            )
            left.remove(there[0])
            for _ in range(2):
                await proxy.cut()
                if len(left) % 2 == 0:
                    proxy.mend()
            await asyncio.to_thread(there[0].open)
            proxy.mend()
        await asyncio.to_thread(farm.watch, run_id)
        assert sorted(farm.read("ledger").splitlines()) == sorted(f"{name} 1" for name in tasks)
        await asyncio.to_thread(agent.end)


async def test_an_agent_away_for_longer_than_its_lease_is_given_up(deployment: Deployment) -> None:
    """The agent's attempts run elsewhere. What it reports when it is back changes nothing."""
    deployment.start_server(config=f'[server]\n{SHORT_LEASE}\n[pools.farm]\nexecutor = "agent"\n')
    gate = deployment.gate()
    async with Proxy(deployment.address) as proxy:
        first = await asyncio.to_thread(deployment.start_agent, "one", coordinator=proxy.address)
        run_id = await asyncio.to_thread(
            deployment.submit, {"a": shell(f'if [ "$DAGGYR_ATTEMPT" = 1 ]; then {gate.hold}; fi; {LEDGER}; echo done')}
        )
        pid = await asyncio.to_thread(gate.reached)
        await proxy.cut()
        await asyncio.to_thread(deployment.start_agent, "two")
        run = await asyncio.to_thread(deployment.watch, run_id)
        assert run["state"] == "COMPLETED"
        assert await asyncio.to_thread(host_of, deployment, run_id, "a") == [("LOST", "one"), ("SUCCEEDED", "two")]
        assert not is_gone(pid)
        proxy.mend()
        # The agent is told on its return that this attempt is no longer its own, and ends it.
        await asyncio.to_thread(until, lambda: is_gone(pid), "the end of the attempt that was given up")
        both = {"one": "CONNECTED", "two": "CONNECTED"}
        await asyncio.to_thread(until, lambda: states(deployment) == both, "both agents")
        assert deployment.read("ledger") == "a 2\n"
        assert len((await asyncio.to_thread(deployment.task, run_id, "a"))["attempts"]) == 2
        await asyncio.to_thread(first.end)


def test_an_agent_that_is_stopped_hands_back_and_another_finishes(farm: Deployment) -> None:
    """A running attempt is ended and runs again elsewhere without using a retry. An attempt that waited there never started."""
    gate = farm.gate()
    one = farm.start_agent("one")
    run_id = farm.submit(
        {
            "a": shell(f'if [ "$DAGGYR_ATTEMPT" = 1 ]; then {gate.hold}; fi; {LEDGER}'),
            "b": shell(LEDGER, priority=-1),
        }
    )
    pid = gate.reached()
    farm.start_agent("two")
    assert one.end() == 0
    assert is_gone(pid)
    assert farm.watch(run_id)["task_states"] == {"COMPLETED": 2}
    assert host_of(farm, run_id, "a") == [("LOST", "one"), ("SUCCEEDED", "two")]
    assert [host for outcome, host in host_of(farm, run_id, "b") if outcome == "SUCCEEDED"] == ["two"]
    assert "a 2" in farm.read("ledger")
    assert len(farm.read("ledger").splitlines()) == 2


def test_an_agent_that_is_killed_is_back_with_nothing(farm: Deployment) -> None:
    """The agent has lost its attempts when it is started again under the same name. They run again."""
    gate = farm.gate()
    farm.killed = True
    one = farm.start_agent("one")
    run_id = farm.submit({"a": shell(f'if [ "$DAGGYR_ATTEMPT" = 1 ]; then {gate.hold}; exit; fi; {LEDGER}')})
    pid = gate.reached()
    one.end(signal.SIGKILL)
    farm.start_agent("one")
    assert farm.watch(run_id)["state"] == "COMPLETED"
    assert [outcome for outcome, _ in host_of(farm, run_id, "a")] == ["LOST", "SUCCEEDED"]
    assert is_gone(pid), "the agent ends what it had left running before it takes anything new"


def test_a_drained_agent_finishes_and_leaves(farm: Deployment) -> None:
    gate = farm.gate()
    one = farm.start_agent("one")
    first = farm.submit({"a": shell(f"{gate.hold}; {LEDGER}")})
    farm.running(first, "a")
    drained = farm.json("agent", "drain", "one")
    assert drained == {"name": "one", "running": 1}
    second = farm.submit({"b": shell(LEDGER)})
    assert states(farm) == {"one": "DRAINING"}
    farm.start_agent("two")
    assert farm.watch(second)["state"] == "COMPLETED"
    assert host_of(farm, second, "b") == [("SUCCEEDED", "two")]
    gate.open()
    assert one.wait() == 0
    assert farm.watch(first)["state"] == "COMPLETED"
    assert host_of(farm, first, "a") == [("SUCCEEDED", "one")]
    until(lambda: list(states(farm)) == ["two"], "the end of its session")


def test_a_server_that_is_stopped_leaves_nothing_behind(deployment: Deployment) -> None:
    """The server waits neither for tasks that ignore SIGTERM, which would have an hour, nor for clients that watch."""
    local = deployment
    local.start_server(config='[server]\nkill_grace = 3600\n[pools.default]\nexecutor = "local"\nworkers = 2\n')
    local.submit(
        {
            "stubborn": shell("trap '' TERM HUP INT; echo > ready-1; while :; do sleep 0.01; done"),
            "leaver": shell("setsid sh -c 'exec sleep 1000' & echo > ready-2; wait"),
        }
    )
    until(lambda: local.read("ready-1") and local.read("ready-2"), "both tasks")
    watchers = [local.command("watch", "1"), local.command("logs", "1", "-f")]
    follows(watchers[0])
    below = psutil.Process(local.programs[0].pid).children(recursive=True)
    assert len(below) > 3
    assert local.programs[0].end() == 0
    for watcher in watchers:
        watcher.kill()
        watcher.wait()
    # None of these processes ends by itself, and there is no program left that would end them.
    until(lambda: not list(local.processes()), "the end of all processes")
    assert not list(local.temporary.iterdir())


def test_agents_wait_for_a_server_that_was_ended(deployment: Deployment) -> None:
    """The agents join the next server at its address. It knows nothing of what they ran, so they end that."""
    farm = deployment
    config = f'[server]\n{PATIENT}\n[pools.farm]\nexecutor = "agent"\n'
    farm.start_server(config=config, listen=own_address())
    gate = farm.gate()
    agent = farm.start_agent("one")
    farm.submit({"a": shell(gate.hold)})
    pid = gate.reached()
    address = farm.address
    assert farm.programs[0].end() == 0
    assert not is_gone(pid)
    farm.start_server(config=config, listen=address)
    until(lambda: is_gone(pid), "the end of what the other server had started")
    farm.goes_on()
    assert agent.process.poll() is None
    assert [run["run_id"] for run in farm.runs()] == [1]


def test_an_agent_may_be_there_before_its_server(deployment: Deployment) -> None:
    """The agent finds the token that the server makes only then."""
    agent = deployment.start_agent("early", coordinator=f"unix:{deployment.folder}/s/daggyr.sock", wait=False)
    until(lambda: "waiting for a coordinator" in agent.said(), "an agent that waits")
    deployment.start_server(config='[pools.farm]\nexecutor = "agent"\n', listen=f"unix:{deployment.folder}/s/daggyr.sock")
    deployment.goes_on()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_without_work_ends_at_once(local: Deployment, number: signal.Signals) -> None:
    local.complete({"a": task("true")})
    assert local.programs[0].end(number) == 0
    ended = local.daggyr("runs")
    assert ended.code == 3
