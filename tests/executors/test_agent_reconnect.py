"""Real agents whose connection or coordinator goes away and comes back: nothing is lost, and nothing counts twice."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from executor_harness import Harness, eventually, executor_context, pid_in, runs
from executor_kinds import CORES, AgentProcess, agent, opened, serving
from support.task_specs import shell, spec

from daggyr.v1.task_pb2 import HOST_AVAILABLE, HOST_GONE, HOST_PAUSED, AttemptKey, Placement
from daggyr_agent.journal import Journal
from daggyr_server.executors.agents.executor import AgentExecutor

GATED = 'echo $$ > "$1/pid-$DAGGYR_TASK_ID"; until [ -e "$1/gate" ]; do sleep 0.02; done; echo done'


class Place:
    """A socket, a state folder, and the coordinators and agents that come and go there."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.socket = folder / "wire/socket"
        self.home = folder / "home"
        self._stack = stack
        self._listening = AsyncExitStack()
        self.harnesses: list[Harness] = []
        self.socket.parent.mkdir(mode=0o700)
        self.home.mkdir()
        stack.push_async_callback(self.cut)

    async def coordinator(self, **context: Any) -> Harness:
        """Open another coordinator in the place of the one before, and let it listen."""
        harness = await self.deaf_coordinator(**context)
        await self.listen()
        return harness

    async def deaf_coordinator(self, **context: Any) -> Harness:
        """Open another coordinator in the place of the one before. It takes attempts up before the test calls `listen`."""
        await self.cut()
        harness = await self._stack.enter_async_context(opened(AgentExecutor, executor_context(**context)))
        self.harnesses.append(harness)
        return harness

    async def listen(self, coordinator: Harness | None = None) -> None:
        """Let agents reach the last coordinator, or another one."""
        executor = (coordinator or self.harnesses[-1]).executor
        assert isinstance(executor, AgentExecutor)
        await self._listening.enter_async_context(serving(self.socket, executor))

    async def cut(self) -> None:
        """Let agents reach no coordinator, and break their sessions."""
        await self._listening.aclose()

    async def agent(self, **given: Any) -> AgentProcess:
        return await self._stack.enter_async_context(agent(self.socket, self.folder / "state", self.home, **given))

    def gated(self) -> Any:
        """A task that writes its pid and ends once `open_gate` was called."""
        return shell(GATED, str(self.home))

    def open_gate(self) -> None:
        (self.home / "gate").touch()

    async def pid(self, key: AttemptKey) -> int:
        return await pid_in(self.home / f"pid-task-{key.task_number}")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        place = Place(tmp_path, stack)
        yield place
        place.open_gate()
    assert [harness.reports.faults for harness in place.harnesses] == [[]] * len(place.harnesses)


async def host_in(harness: Harness, host: str, state: int) -> None:
    await harness.reports.until(lambda: host in harness.reports.hosts and harness.reports.hosts[host].state == state)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # the agent has removed it meanwhile
        return 0


class TestConnection:
    """The session is cut. Coordinator and agent live on."""

    async def test_AttemptsGoOnAndTheirResultsArriveOnce(self, place: Place) -> None:
        driver = await place.coordinator()
        await place.agent()
        host = await driver.host()
        keys = await driver.give(place.gated(), place.gated(), spec("/bin/echo", "waits"))
        pids = [await place.pid(key) for key in keys[:CORES]]
        await place.cut()
        await host_in(driver, host, HOST_PAUSED)
        assert all(runs(pid) for pid in pids)
        await place.listen()
        await host_in(driver, host, HOST_AVAILABLE)
        assert all(runs(pid) for pid in pids)
        place.open_gate()
        told = await driver.ended(keys)
        assert [one.text for one in told] == ["done\n", "done\n", "waits\n"]

    async def test_WhatEndsMeanwhileIsTold(self, place: Place) -> None:
        driver = await place.coordinator()
        await place.agent()
        host = await driver.host()
        keys = await driver.give(place.gated(), place.gated(), shell('touch "$1/last"', str(place.home)))
        await place.pid(keys[1])
        await place.cut()
        await host_in(driver, host, HOST_PAUSED)
        place.open_gate()
        await eventually((place.home / "last").exists)
        assert [driver.reports.of(key).results for key in keys] == [[]] * 3
        await place.listen()
        assert [told.outcome for told in await driver.ended(keys)] == ["SUCCEEDED"] * 3

    async def test_WhatCameAndIsNotDurableYetIsNotForgotten(self, place: Place) -> None:
        """The agent keeps what is not durable and delivers it again. It counts once; then the agent forgets it."""
        driver = await place.coordinator()
        await place.agent()
        host = await driver.host()
        output = place.folder / "state/output"
        driver.reports.holding = True
        keys = await driver.give(*[spec("/bin/echo", "kept")] * 2)
        await driver.ended(keys)
        await place.cut()
        await host_in(driver, host, HOST_PAUSED)
        assert len(list(output.glob("*.stdout"))) >= 2
        await place.listen()
        await host_in(driver, host, HOST_AVAILABLE)
        driver.reports.release()
        assert (await driver.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
        await eventually(lambda: not any(map(size_of, output.glob("*.stdout"))))

    async def test_WhatIsAskedMeanwhileIsDoneAfterwards(self, place: Place) -> None:
        driver = await place.coordinator()
        await place.agent()
        host = await driver.host()
        stopped, goes_on, recalled = await driver.give(place.gated(), place.gated(), spec("/bin/true"))
        await place.pid(stopped)
        await place.pid(goes_on)
        await place.cut()
        await host_in(driver, host, HOST_PAUSED)
        driver.stop(stopped)
        driver.recall(goes_on, recalled)
        (sent_meanwhile,) = driver.start(host, driver.batch(spec("/bin/echo", "new")))
        await place.listen()
        assert [told.outcome for told in await driver.ended([stopped, recalled])] == ["KILLED", "RETURNED"]
        assert (await driver.ends(sent_meanwhile)).text == "new\n"
        place.open_gate()
        assert (await driver.ends(goes_on)).outcome == "SUCCEEDED"

    async def test_AnAgentAwayForLongerThanItsLeaseEndsWhatItHad(self, place: Place) -> None:
        driver = await place.coordinator(lease=0.2)
        await place.agent()
        host = await driver.host()
        running, waiting = await driver.give(shell(GATED, str(place.home), resources={"cores": CORES}), spec("/bin/true"))
        pid = await place.pid(running)
        await place.cut()
        await host_in(driver, host, HOST_GONE)
        assert runs(pid), "nobody has told the agent yet"
        await place.listen()
        await host_in(driver, host, HOST_AVAILABLE)
        await eventually(lambda: not runs(pid))
        assert (await driver.run_one(spec("/bin/echo", "again"))).text == "again\n"
        assert [driver.reports.of(key).results for key in (running, waiting)] == [[], []]


class TestCoordinator:
    """The coordinator is started again. The agent lives on."""

    async def test_WithItsTrackerItTakesUpWhatItPlaced(self, place: Place) -> None:
        first = await place.coordinator()
        await place.agent()
        host = await first.host()
        placed = await first.give(place.gated(), place.gated())
        forgotten = await first.give(shell('touch "$1/forgotten"', str(place.home)))
        for key in placed:
            await place.pid(key)
        second = await place.deaf_coordinator(epoch=2)
        for key in placed:
            second.reports.of(key).host = host
        lost = AttemptKey(run_id=10**6, task_number=0, attempt=1)
        second.reports.of(lost).host = host
        second.executor.recover([(key, Placement(host=host)) for key in (*placed, lost)])
        second.stop(placed[0])  # before the agent is back
        await place.listen()
        assert (await second.ends(placed[0])).outcome == "KILLED"
        assert (await second.ends(lost)).outcome == "LOST"
        place.open_gate()
        assert (await second.ends(placed[1])).outcome == "SUCCEEDED"
        assert (await second.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
        assert not (place.home / "forgotten").exists(), "what was never recovered is ended before it starts"
        assert first.reports.of(forgotten[0]).results == []

    async def test_WhatEndedWhileNobodyWasThereIsTakenUp(self, place: Place) -> None:
        first = await place.coordinator()
        await place.agent()
        host = await first.host()
        key = await first.give_one(shell(GATED + '; touch "$1/ended"', str(place.home)))
        await place.pid(key)
        await place.cut()
        place.open_gate()
        await eventually((place.home / "ended").exists)
        second = await place.deaf_coordinator(epoch=2)
        second.reports.of(key).host = host
        second.executor.recover([(key, Placement(host=host))])
        await place.listen()
        told = await second.ends(key)
        assert (told.outcome, told.text) == ("SUCCEEDED", "done\n")

    async def test_AnAgentThatDoesNotComeBackHasLostThem(self, place: Place) -> None:
        driver = await place.coordinator(lease=0.2, epoch=2)
        keys = [AttemptKey(run_id=10**6, task_number=number, attempt=1) for number in range(2)]
        for key in keys:
            driver.reports.of(key).host = "away"
        driver.executor.recover([(key, Placement(host="away")) for key in keys])
        assert {(told.outcome, told.notes) for told in await driver.ended(keys)} == {("LOST", "its agent did not come back")}
        assert driver.reports.hosts == {}, "a host that never came was never offered"

    async def test_WithAnotherTrackerTheOldAttemptsEndAndAreNotTold(self, place: Place) -> None:
        first = await place.coordinator()
        await place.agent()
        (running, ended) = await first.give(place.gated(), spec("/bin/true"))
        pid = await place.pid(running)
        await first.ends(ended)
        second = await place.coordinator(tracker_id="tracker-2")
        await second.host()
        await eventually(lambda: not runs(pid))
        assert [told.outcome for told in await second.run(*[spec("/bin/true")] * 20)] == ["SUCCEEDED"] * 20

    async def test_AnOlderOneIsLeftAlone(self, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
        """An older coordinator, such as one that was believed dead, is left alone, and the agent goes on with the newer one."""
        newer = await place.coordinator(epoch=2)
        await place.agent()
        key = await newer.give_one(place.gated())
        pid = await place.pid(key)
        older = await place.coordinator(epoch=1)
        said: list[str] = []
        await eventually(lambda: said.append(capfd.readouterr().err) or "an older copy of itself" in "".join(said))  # type: ignore[func-returns-value]
        assert older.reports.hosts == {}
        assert runs(pid)
        await place.cut()
        await place.listen(newer)
        place.open_gate()
        assert (await newer.ends(key)).outcome == "SUCCEEDED"


class TestAgent:
    """The agent goes away and is started again."""

    async def test_KilledAndStartedAgainItHasLostItsAttemptsAndEndedThem(self, place: Place) -> None:
        driver = await place.coordinator()
        process = await place.agent()
        host = await driver.host()
        keys = await driver.give(place.gated(), place.gated(), spec("/bin/true"))
        pids = [await place.pid(key) for key in keys[:CORES]]
        process.process.send_signal(signal.SIGKILL)
        await process.ended()
        await host_in(driver, host, HOST_PAUSED)
        assert all(runs(pid) for pid in pids)
        await place.agent()
        told = await driver.ended(keys)
        assert {(one.outcome, one.notes) for one in told} == {("LOST", "its agent was started again")}
        assert not any(runs(pid) for pid in pids), "they may run elsewhere now"
        assert await driver.host() == host, "the same agent, by its state folder"
        assert (await driver.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"

    async def test_KilledAndStartedAgainItTellsWhatWasNotDurable(self, place: Place) -> None:
        """A killed agent tells every result that was not durable. Attempts that had not ended are lost."""
        driver = await place.coordinator()
        process = await place.agent()
        host = await driver.host()
        driver.reports.holding = True
        (came,) = await driver.give(spec("/bin/echo", "came"))
        await driver.ends(came)
        ends, goes_on = await driver.give(place.gated(), shell(GATED + "; sleep 600", str(place.home)))
        for key in (ends, goes_on):
            await place.pid(key)
        await place.cut()
        await host_in(driver, host, HOST_PAUSED)
        place.open_gate()
        await eventually(lambda: len(Journal(place.folder / "state/journal").results()) == 2)
        process.process.send_signal(signal.SIGKILL)
        await process.ended()
        await place.agent()
        await place.listen()
        told = await driver.ended([ends, goes_on])
        assert [(one.outcome, one.text) for one in told] == [("SUCCEEDED", "done\n"), ("LOST", "")]
        driver.reports.release()
        assert (await driver.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
        assert driver.reports.of(came).outcome == "SUCCEEDED"

    async def test_KilledTogetherWithItsCoordinatorItTellsTheNextOne(self, place: Place) -> None:
        first = await place.coordinator()
        process = await place.agent()
        host = await first.host()
        first.reports.holding = True
        ended = await first.give_one(spec("/bin/echo", "kept"))
        running = await first.give_one(place.gated())
        await first.ends(ended)
        pid = await place.pid(running)
        process.process.send_signal(signal.SIGKILL)
        await process.ended()
        second = await place.coordinator(epoch=2)
        for key in (ended, running):
            second.reports.of(key).host = host
        second.executor.recover([(key, Placement(host=host)) for key in (ended, running)])
        await place.agent()
        kept, lost = await second.ended([ended, running])
        assert (kept.outcome, kept.text) == ("SUCCEEDED", "kept\n")
        assert (lost.outcome, lost.notes) == ("LOST", "its agent came back without it")
        assert not runs(pid)

    async def test_StoppedItHandsBackAndEnds(self, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
        driver = await place.coordinator()
        process = await place.agent()
        keys = await driver.give(place.gated(), place.gated(), spec("/bin/true"))
        pids = [await place.pid(key) for key in keys[:CORES]]
        process.process.terminate()
        assert await process.ended() == 0
        assert not any(runs(pid) for pid in pids)
        if "they are kept for the next start" in capfd.readouterr().err:  # this machine took longer than the agent waits
            await place.agent()
        assert [told.outcome for told in await driver.ended(keys)] == ["LOST", "LOST", "RETURNED"]

    async def test_DrainedItFinishesAndLeaves(self, place: Place) -> None:
        driver = await place.coordinator()
        process = await place.agent()
        host = await driver.host()
        keys = await driver.give(place.gated(), place.gated(), spec("/bin/true"))
        for key in keys[:CORES]:
            await place.pid(key)
        executor = driver.executor
        assert isinstance(executor, AgentExecutor)
        assert executor.drain("one")
        assert (await driver.ends(keys[2])).outcome == "RETURNED"
        place.open_gate()
        assert [told.outcome for told in await driver.ended(keys[:CORES])] == ["SUCCEEDED"] * 2
        assert await process.ended() == 0
        await host_in(driver, host, HOST_GONE)

    async def test_ClosingTheExecutorLeavesItsAttemptsAlone(self, place: Place) -> None:
        driver = await place.coordinator()
        process = await place.agent()
        pid = await place.pid(await driver.give_one(place.gated()))
        await driver.executor.close()
        await driver.executor.close()
        await place.cut()
        assert runs(pid)
        process.process.kill()  # otherwise the agent would wait for a coordinator to take its last results
        await process.ended()

    async def test_TwoOfOneNameTheSecondLeavesWithAWord(self, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
        driver = await place.coordinator()
        await place.agent()
        await driver.host()
        async with agent(place.socket, place.folder / "second", place.home) as second:
            assert await second.ended() == 2
        said = capfd.readouterr().err
        assert "another agent called 'one' is connected" in said and "--name" in said
        assert "Traceback" not in said
        assert (await driver.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
