"""How attempts are ended, and that no process outlives its attempt, whatever it did to hide."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from agent_program import MARK, AgentProcess, StartAgent, eventually
from scripted_coordinator import LIFE, Coordinator, key
from strays import LEAVE, SCRUB, left, runs
from support.task_specs import idents, python, spec

from daggyr.v1.task_pb2 import FAILED, KILLED, LOST, RETURNED, SUCCEEDED

pytestmark = pytest.mark.usefixtures("agent")


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_kill_asks_first(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    # Not print: a signal may come while it is in it.
    task = python(
        "import os, signal, sys\n"
        "def end(*_): os.write(1, b'cleaned up\\n'); sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, end); os.write(1, b'ready\\n'); signal.pause()"
    )
    await session.assign((key(), task))
    await session.follow(1, key())
    await coordinator.until(lambda: 1 in coordinator.followed)
    await session.cancel(key())  # without a grace, the agent's own counts
    result = await coordinator.result(key())
    assert (result.outcome, result.exit_code) == (KILLED, 7)
    assert coordinator.of(key()).output() == b"ready\ncleaned up\n"


async def test_what_does_not_listen_is_killed_after_the_grace_period(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done")))
    await session.follow(1, key())
    await coordinator.until(lambda: 1 in coordinator.followed)
    asked = time.monotonic()
    await session.cancel(key(), grace=0.4)
    result = await coordinator.result(key())
    assert (result.outcome, result.signal) == (KILLED, signal.SIGKILL)
    assert time.monotonic() - asked >= 0.4  # it may well be more


async def test_a_second_kill_can_be_sooner(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done")))
    await session.follow(1, key())
    await coordinator.until(lambda: 1 in coordinator.followed)
    await session.cancel(key(), grace=600)
    await session.cancel(key(), grace=0)
    assert (await coordinator.result(key())).outcome == KILLED


async def test_what_was_done_when_asked_to_end_has_succeeded(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    task = python(
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('ready', flush=True); signal.pause()"
    )
    await session.assign((key(), task))
    await session.follow(1, key())
    await coordinator.until(lambda: 1 in coordinator.followed)
    await session.cancel(key())
    assert (await coordinator.result(key())).outcome == SUCCEEDED


async def test_kill_before_the_start(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(0), spec("sleep", "600", resources={"cores": 2})), (key(1), spec("touch", "started")))
    await coordinator.start_of(key(0))
    await session.cancel(key(1), key(99))
    result = await coordinator.result(key(1))
    assert result.outcome == KILLED
    assert not result.HasField("start_time")
    await session.cancel(key(0))
    await coordinator.result(key(0))
    assert not coordinator.of(key(99)).results


async def test_recall_returns_what_waits_and_leaves_what_runs(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign(
        (key(0), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done", resources={"cores": 2})),
        (key(1), spec("touch", "started")),
        (key(2), spec("true")),
    )
    await coordinator.start_of(key(0))
    await session.recall(key(0), key(1), key(99))
    assert (await coordinator.result(key(1))).outcome == RETURNED
    (agent.home / "go").touch()
    running, waiting = await coordinator.results(key(0), key(2))
    assert (running.outcome, waiting.outcome) == (SUCCEEDED, SUCCEEDED)
    assert not (agent.home / "started").exists()


async def test_child_left_in_the_background_ends_with_its_attempt(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "trap '' TERM HUP; sleep 600 & echo $!")))
    assert (await coordinator.result(key())).outcome == SUCCEEDED
    assert not alive(int(coordinator.of(key()).output()))
    assert not agent.tasks()


@pytest.mark.parametrize("scrub", [False, True], ids=["with its environment", "without"])
async def test_process_that_left_group_and_session_ends_with_its_attempt(
    agent: AgentProcess, coordinator: Coordinator, scrub: bool
) -> None:
    session = await coordinator.session()
    await session.assign((key(), python(LEAVE % (SCRUB if scrub else "pass"))))
    assert (await coordinator.result(key())).outcome == SUCCEEDED
    assert not alive(await left(agent.home))


async def test_tree_of_processes_that_left_ends_with_its_attempt(agent: AgentProcess, coordinator: Coordinator) -> None:
    """Each has a session of its own and a child that is found only once its parent is gone."""
    source = """
import os, time
def leave(depth):
    if os.fork() == 0:
        os.setsid()
        if depth: leave(depth - 1)
        open(f"left{depth}", "w").close()
        time.sleep(600)
leave(5)
while not all(os.path.exists(f"left{n}") for n in range(6)): time.sleep(0.001)
"""
    session = await coordinator.session()
    await session.assign((key(), python(source)))
    assert (await coordinator.result(key())).outcome == SUCCEEDED
    assert not agent.tasks()


async def test_who_left_another_attempt_that_still_runs_is_left_alone(agent: AgentProcess, coordinator: Coordinator) -> None:
    """Also if it cannot be told whose it is: then it goes with the last that it could belong to."""
    session = await coordinator.session()
    await session.assign((key(0), python(LEAVE % SCRUB + "\nwhile not os.path.exists('go'): time.sleep(0.01)")))
    stray = await left(agent.home)
    await session.assign((key(1), spec("true")), task_id="other")
    await session.assign((key(2), spec("sh", "-c", "sleep 600 & exit 3")), task_id="third")
    other, third = await coordinator.results(key(1), key(2))
    assert (other.outcome, third.outcome) == (SUCCEEDED, FAILED)
    assert alive(stray)
    (agent.home / "go").touch()
    await coordinator.result(key(0))
    assert not alive(stray)


async def test_killed_attempt_takes_who_left_with_it(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), python(LEAVE % "pass" + "\ntime.sleep(600)")))
    stray = await left(agent.home)
    await session.cancel(key())
    assert (await coordinator.result(key())).outcome == KILLED
    assert not alive(stray)


async def test_orphans_of_a_running_attempt_do_not_stay_as_zombies(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "(true & true & true &); (sleep 0.1 &); touch done; sleep 600")))
    await eventually((agent.home / "done").exists, "the orphans were made")

    def only_the_task() -> bool:
        children = psutil.Process(agent.pid).children()
        return len(children) == 1 and runs(children[0].pid)

    await eventually(only_the_task, "the orphans were reaped")


async def test_drain_returns_what_waits_finishes_what_runs_and_leaves(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign(
        (key(0), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo done", resources={"cores": 2})),
        (key(1), spec("true")),
    )
    await coordinator.start_of(key(0))
    await session.drain()
    assert (await coordinator.result(key(1))).outcome == RETURNED
    await session.assign((key(2), spec("true")))
    assert (await coordinator.result(key(2))).outcome == RETURNED
    session.drop()
    again = await coordinator.session(2)
    assert again.hello.draining
    (agent.home / "go").touch()
    assert (await coordinator.result(key(0))).outcome == SUCCEEDED
    assert await agent.exit_code() == 0
    assert coordinator.of(key(0)).output() == b"done\n"


async def test_sigusr1_drains(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign(
        (key(0), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo done", resources={"cores": 2})),
        (key(1), spec("true")),
    )
    await coordinator.start_of(key(0))
    agent.signal(signal.SIGUSR1)
    assert (await coordinator.result(key(1))).outcome == RETURNED
    assert (
        session.heartbeat is not None and session.heartbeat.draining
    )  # told before what came back, which would else be sent again at once
    (agent.home / "go").touch()
    assert (await coordinator.result(key(0))).outcome == SUCCEEDED
    assert await agent.exit_code() == 0
    assert coordinator.of(key(0)).output() == b"done\n"


async def test_sigterm_ends_what_runs_returns_what_waits_and_delivers(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    succeeds = python(
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('ready', flush=True); signal.pause()"
    )
    await session.assign((key(0), spec("sleep", "600")), (key(1), succeeds), (key(2), spec("true")))
    await session.follow(1, key(1))
    await coordinator.until(lambda: 1 in coordinator.followed)
    agent.signal(signal.SIGTERM)
    lost, succeeded, returned = await coordinator.results(*(key(n) for n in range(3)))
    assert (lost.outcome, lost.signal, list(lost.notes)) == (LOST, signal.SIGTERM, ["the agent was stopped"])
    assert succeeded.outcome == SUCCEEDED
    assert returned.outcome == RETURNED
    assert await agent.exit_code() == 0
    assert not agent.tasks()
    await coordinator.until(session.ended.is_set)


async def test_sigterm_without_a_coordinator_does_not_wait_for_ever(
    start_agent: StartAgent, coordinator: Coordinator, address: str
) -> None:
    """What it could not deliver, its next process does."""
    agent = start_agent(address, name="impatient", patient=False)
    session = await coordinator.session(name="impatient")
    await session.assign((key(), spec("sleep", "600")))
    await coordinator.start_of(key())
    await coordinator.stop()
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code() == 0
    assert "took the last results" in agent.log
    await coordinator.start(address)
    start_agent(address, name="impatient")
    assert idents((await coordinator.session(2, name="impatient")).hello.ended) == {(1, 0, 1, LIFE)}
    result = await coordinator.result(key())
    assert (result.outcome, list(result.notes)) == (LOST, ["the agent was stopped"])


async def test_second_signal_ends_everything_at_once(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done")))
    await session.follow(1, key())
    await coordinator.until(lambda: 1 in coordinator.followed)
    agent.signal(signal.SIGTERM)
    await eventually(lambda: "stopping" in agent.log, "the first signal was heard")
    agent.signal(signal.SIGINT)
    assert await agent.exit_code() == 0
    assert not agent.tasks()


async def test_cut_lifeline_ends_everything_at_once(start_agent: StartAgent, address: str, coordinator: Coordinator) -> None:
    inherited, ours = os.pipe()
    agent = start_agent(address, "--lifeline", str(inherited), name="child", pass_fds=(inherited,))
    os.close(inherited)
    session = await coordinator.session(name="child")
    await session.assign(
        (key(0), spec("sh", "-c", "trap '' TERM; sleep 600; sleep 600")),
        (key(1), python(LEAVE % SCRUB + "\ntime.sleep(600)")),
    )
    stray = await left(agent.home)
    await coordinator.start_of(key(0))
    os.close(ours)
    assert await agent.exit_code() == 0
    assert not alive(stray)
    assert not agent.tasks()


async def test_these_tests_find_who_is_left(agent: AgentProcess) -> None:
    process = await asyncio.create_subprocess_exec("cat", env={MARK: agent.mark}, stdin=asyncio.subprocess.PIPE)
    await eventually(lambda: process.pid in agent.tasks(), "the process was found")
    await process.communicate(b"")
