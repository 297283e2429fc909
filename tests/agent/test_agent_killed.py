"""kill -9 of an agent, and its start with the same state folder: what it left running ends, nobody else does, and the results
that nobody had acknowledged are delivered.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from agent_program import MARK, PATIENT, AgentProcess, StartAgent, Turnstile, eventually
from scripted_coordinator import LIFE, Coordinator, Told, key
from strays import LEAVE, SCRUB, left, runs
from support.task_specs import idents, python, spec

from daggyr.v1.task_pb2 import FAILED, REJECTED, STDERR, STDOUT, SUCCEEDED
from daggyr_agent import journal
from daggyr_agent.journal import Journal
from daggyr_agent.outbox import GATHERED
from daggyr_agent.proc import everybody, look

MIB = 1 << 20
AGENT_ID = "DAGGYR_AGENT_ID"


def written_down(agent: AgentProcess) -> Journal:
    """What the agent's journal says now."""
    return Journal(agent.state / "journal")


async def number_in(file: Path) -> int:
    """What a task writes there with echo, once it has."""

    def written() -> str:
        return file.read_text() if file.exists() else ""

    await eventually(lambda: written().endswith("\n"), f"a number in {file}")
    return int(written())


def born(pid: int) -> int:
    seen = look(pid)
    assert seen is not None
    return seen.born


async def forgotten(coordinator: Coordinator) -> dict[tuple[int, int, int], Told]:
    """All that killed agents told, which nobody knows any more; with what was still on its way when they died."""
    await coordinator.until(lambda: all(session.ended.is_set() for session in coordinator.sessions))
    told, coordinator.told = coordinator.told, {}
    return told


# -- what it left running


async def test_what_ran_has_ended_before_the_coordinator_hears_of_the_next_process(
    start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    agent = start_agent(address, cores=8)
    session = await coordinator.session()
    for name in ("left", "scrubbed"):
        (agent.home / name).mkdir()
    stays = "\ntime.sleep(600)"
    await session.assign(
        (key(0), spec("sh", "-c", "trap '' TERM HUP; sleep 600 & echo $! > child; sleep 600; sleep 600")),
        (key(1), python(LEAVE % "pass" + stays, working_directory="left")),
        (key(2), python(LEAVE % SCRUB + stays, working_directory="scrubbed")),
        (key(3), spec("env", "-i", "sh", "-c", "echo $$ > pid; sleep 600 & sleep 600")),
        (key(4), spec("sh", "-c", "kill -STOP $$; sleep 600")),
        (key(5), spec("sh", "-c", "sleep 600 & echo $! > orphan; until [ -e go ]; do sleep 0.01; done")),
        (key(6), spec("echo", "ends")),
        (key(7), spec("sleep", "600", resources={"cores": 8})),
    )
    strays = [await left(agent.home / name) for name in ("left", "scrubbed")]
    strays += [await number_in(agent.home / name) for name in ("child", "pid", "orphan")]
    for number in range(6):
        await coordinator.start_of(key(number))
    await coordinator.result(key(6))
    await eventually(lambda: strays[1] in written_down(agent).running, "who left its attempt was written down")
    below = [seen.pid for seen in everybody().values() if seen.session in strays]
    agent.kill()
    assert all(runs(pid) for pid in strays)
    leader = look(strays[-1])
    (agent.home / "go").touch()
    await eventually(lambda: leader and not runs(leader.session), "the leader of a session has ended meanwhile")
    await forgotten(coordinator)
    start_agent(address, cores=8)
    second = await coordinator.session(2)
    assert not any(runs(pid) for pid in (*strays, *below, *agent.tasks()))
    assert second.hello.agent_id == session.hello.agent_id
    assert second.hello.incarnation != session.hello.incarnation
    assert not second.hello.held
    await second.assign((key(0, attempt=2), spec("echo", "again")))
    assert (await coordinator.result(key(0, attempt=2))).outcome == SUCCEEDED
    assert {ident for ident, told in coordinator.told.items() if told.results} - idents(second.hello.ended) == {(1, 0, 2, LIFE)}


async def test_process_that_starts_others_all_the_time_is_ended_with_all_of_them(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    session = await coordinator.session()
    # With some hundred at a time: nobody knows how long it is until the next agent ends them.
    source = """
import os, signal, time
children = []
while True:
    children.append(os.fork())
    if children[-1] == 0:
        os.setsid()
        open("forked", "w").close()
        time.sleep(600)
    if len(children) > 200:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children.pop(0), 0)
    time.sleep(0.001)
"""
    await session.assign((key(0), python(source)))
    await eventually((agent.home / "forked").exists, "it starts others")
    agent.kill()
    start_agent(address)
    await coordinator.session(2)
    assert not agent.tasks()


Start = Callable[[dict[str, str]], int]


@pytest.fixture
def stranger() -> Iterator[Start]:
    """Starts processes that are no agent's, with these variables in their environment; returns their pids."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(environment: dict[str, str]) -> int:
        processes.append(subprocess.Popen(["sleep", "600"], env={**os.environ, **environment}, start_new_session=True))
        return processes[-1].pid

    yield start
    for process in processes:
        process.kill()
        process.wait()


async def test_nobody_else_is_ended(
    agent: AgentProcess,
    start_agent: StartAgent,
    address: str,
    coordinator: Coordinator,
    stranger: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await coordinator.session()
    await first.assign((key(), spec("sleep", "600")))
    await coordinator.start_of(key())
    (task,) = agent.tasks()
    agent.kill()
    attempt = {"DAGGYR_RUN_ID": "1", "DAGGYR_TASK_ID": "task", "DAGGYR_ATTEMPT": "1"}
    strangers = [
        stranger({}),
        stranger(attempt),  # of another agent, or another tracker, from before agents had this variable
        stranger({**attempt, AGENT_ID: "0" * 32}),
        stranger({"OTHER_" + AGENT_ID: first.hello.agent_id}),
        recycled := stranger({}),
    ]
    own = stranger({**attempt, AGENT_ID: first.hello.agent_id})
    kept = written_down(agent)
    assert kept.running == {task: born(task)}
    kept.begin()
    kept.runs(recycled, born(recycled) - 1)
    kept.runs(2**31, 1)  # nobody's
    kept.close()
    second = start_agent(address)
    await coordinator.session(2)
    assert not runs(own) and not runs(task)
    assert all(runs(pid) for pid in strangers)
    second.kill()
    # Before a boot, or in another container, a number and a tick were somebody else's.
    with monkeypatch.context() as patch:
        patch.setattr(journal, "numbering", lambda: "another boot's")
        kept = written_down(agent)
        kept.begin()
        kept.runs(recycled, born(recycled))
        kept.close()
    start_agent(address)
    await coordinator.session(3)
    assert runs(recycled)


async def test_task_may_start_its_agent_anew(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    """It becomes the agent that ends all else that the killed one had left."""
    session = await coordinator.session()
    script = 'sleep 600 & echo $! > child; echo $$ > pid; until [ -e go ]; do sleep 0.01; done; exec "$@"'
    mark = f"--pass-environment={MARK}"
    again = [*PATIENT, "--coordinator", address, "--name", "agent", "--state-dir", str(agent.state), mark]
    await session.assign((key(0), spec("sh", "-c", script, "sh", *again)), (key(1), spec("sleep", "600")))
    await coordinator.start_of(key(0))
    await coordinator.start_of(key(1))
    child, pid = [await number_in(agent.home / name) for name in ("child", "pid")]
    agent.kill()
    (agent.home / "go").touch()
    try:
        second = await coordinator.session(2)
        assert not runs(child)
        assert agent.tasks() == [pid]
        await second.assign((key(2), spec("true")))
        assert (await coordinator.result(key(2))).outcome == SUCCEEDED
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    await eventually(lambda: not agent.tasks(), "the agent that the task had started has ended")


def files(pid: int) -> Iterator[Path]:
    """Names of the files that a process has open now."""
    return Path(f"/proc/{pid}/fd").iterdir()


async def test_lock_that_is_about_to_be_released_is_waited_for(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    """A process that a killed agent was starting holds it until its program is executed."""
    await coordinator.session()
    agent.kill()
    lock = agent.state / "lock"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = start_agent(address)

        def has_opened_it() -> bool:
            with suppress(OSError):  # its files come and go
                return any(os.path.samestat(entry.stat(), os.fstat(held.fileno())) for entry in files(second.pid))
            return False

        await eventually(has_opened_it, "it has opened the lock")
    await coordinator.session(2)


# -- the results that it kept


def same(told: Told, before: Told) -> bool:
    """Whether two tell the same result and output."""
    return told.result == before.result and all(told.output(stream) == before.output(stream) for stream in (STDOUT, STDERR))


async def test_results_that_were_not_acknowledged_are_delivered_once_with_their_output(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator, tmp_path: Path
) -> None:
    whole, cut = random.Random(1).randbytes(MIB), random.Random(2).randbytes(3 * MIB + 77)
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "cut").write_bytes(cut)
    first = await coordinator.session()
    await first.assign((key(0), spec("echo", "acknowledged")))
    await coordinator.result(key(0))
    await eventually(lambda: not written_down(agent).results(), "the acknowledgement was written down")
    coordinator.acknowledging = False
    await first.assign(
        (key(1), spec("echo", "kept")),
        (key(2), spec("sh", "-c", "cat whole; cat cut >&2; exit 3", working_directory=tmp_path)),
        (key(3), spec("cat", "cut", working_directory=tmp_path, whole_stdout_bytes=8 * MIB)),
        (key(4), spec("no-such-program")),
        (key(5), spec("true")),
        task_id="größe",
    )
    keys = [key(number) for number in range(1, 6)]
    results = await coordinator.results(*keys)
    assert [result.outcome for result in results] == [SUCCEEDED, FAILED, SUCCEEDED, REJECTED, SUCCEEDED]
    agent.kill()
    before = await forgotten(coordinator)
    again = start_agent(address)
    second = await coordinator.session(2)
    assert idents(second.hello.ended) == idents(keys)
    assert (second.hello.tracker_id, second.hello.epoch, second.hello.first_unacknowledged) == ("tracker-1", 1, 1)
    await coordinator.results(*keys)
    assert set(coordinator.told) == idents(keys)
    assert all(same(coordinator.told[ident], before[ident]) for ident in idents(keys))
    assert coordinator.of(key(2)).output() == whole
    assert coordinator.of(key(2)).output(STDERR) == cut[: MIB // 2] + cut[-MIB // 2 :]
    assert coordinator.of(key(3)).output() == cut

    # And once more, for it was not acknowledged; new results come after the old ones, in files of their own.
    coordinator.told = {}
    await second.assign((key(6), spec("echo", "new")))
    await coordinator.result(key(6))
    again.kill()
    await forgotten(coordinator)
    coordinator.acknowledging = True
    third_agent = start_agent(address)
    third = await coordinator.session(3)
    assert [key.task_number for key in third.hello.ended] == [*(key.task_number for key in second.hello.ended), 6]
    await coordinator.results(*keys, key(6))
    assert all(same(coordinator.told[ident], before[ident]) for ident in idents(keys))
    assert coordinator.of(key(6)).output() == b"new\n"
    await eventually(lambda: not written_down(third_agent).results(), "the acknowledgement was written down")
    await eventually(lambda: not list((agent.state / "output").iterdir()), "the output was removed")
    third_agent.kill()
    start_agent(address)
    assert not (await coordinator.session(4)).hello.ended


async def test_what_ended_while_the_coordinator_was_away_is_delivered(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    session = await coordinator.session()
    await session.assign(
        (key(0), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo done")),
        (key(1), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done; echo goes on; sleep 600")),
        (key(2), spec("sleep", "600", resources={"cores": 2})),
    )
    await coordinator.start_of(key(0))
    await coordinator.start_of(key(1))
    await coordinator.stop()
    (agent.home / "go").touch()
    await eventually(lambda: written_down(agent).results(), "the result was written down")
    agent.kill()
    start_agent(address)
    await eventually(lambda: not agent.tasks(), "what ran was ended without a coordinator")
    await coordinator.start(address)
    second = await coordinator.session(2)
    assert idents(second.hello.ended) == {(1, 0, 1, LIFE)}
    assert not second.hello.held
    assert (await coordinator.result(key(0))).outcome == SUCCEEDED
    assert coordinator.of(key(0)).output() == b"done\n"
    assert not coordinator.of(key(1)).results and not coordinator.of(key(2)).results


@pytest.mark.parametrize(("told", "acknowledging"), [(1, True), (40, True), (150, True), (290, True), (1, False), (20, False)])
async def test_killed_among_many_short_attempts(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator, told: int, acknowledging: bool
) -> None:
    """Nothing runs twice, and whatever the agent had heard the end of is told."""
    count = 300
    first = await coordinator.session()
    coordinator.acknowledging = acknowledging
    task = spec("sh", "-c", "echo $DAGGYR_RUN_ID; echo $DAGGYR_RUN_ID >> ledger")
    keys = [key(0, run_id=number) for number in range(1, count + 1)]
    await first.assign(*((key, task) for key in keys))
    await coordinator.until(lambda: sum(bool(one.results) for one in coordinator.told.values()) >= told)
    agent.kill()
    before = await forgotten(coordinator)
    start_agent(address)
    second = await coordinator.session(2)
    ended = idents(second.hello.ended)
    await coordinator.results(*second.hello.ended)
    assert set(coordinator.told) == ended <= idents(keys)
    for ident in ended:
        assert coordinator.told[ident].output() == b"%d\n" % ident[0]
        assert ident not in before or not before[ident].results or same(coordinator.told[ident], before[ident])
    ran = [int(line) for line in (agent.home / "ledger").read_text().split()]
    assert len(ran) == len(set(ran))
    heard = {ident for ident, one in before.items() if one.results}
    assert acknowledging or heard <= ended, "it was written down before it was told"
    assert {ident[0] for ident in ended | heard} <= set(ran)


async def test_of_many_short_attempts_only_a_few_are_not_yet_written_down(agent: AgentProcess, coordinator: Coordinator) -> None:
    """As many as are gathered for a message, at the most; here nothing else happens that would write them down."""
    turnstile, count, through = Turnstile(agent.home), 300, 200
    session = await coordinator.session()
    coordinator.acknowledging = False
    await session.assign(*((key(number), spec("sh", "-c", turnstile.wait)) for number in range(count)))
    turnstile.let(through)
    gathered = (count - through) // GATHERED
    await eventually(lambda: len(written_down(agent).results()) >= through - gathered, "the others were written down")
    turnstile.close()


async def test_results_of_another_tracker_are_never_delivered(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    first = await coordinator.session()
    coordinator.acknowledging = False
    await first.assign((key(0), spec("echo", "the first's")), (key(1), spec("sleep", "600")))
    await coordinator.result(key(0))
    await coordinator.start_of(key(1))
    agent.kill()
    await forgotten(coordinator)
    coordinator.acknowledging = True
    coordinator.tracker_id, coordinator.epoch = "tracker-2", 1
    second_agent = start_agent(address)
    second = await coordinator.session(2)
    assert second.hello.tracker_id == "tracker-1", "so that this coordinator knows whose results these are"
    await second.assign((key(7, run_id=7), spec("echo", "the second's")))
    await coordinator.result(key(7, run_id=7))
    assert set(coordinator.told) == {(7, 7, 1, LIFE)}
    assert second.batches[0].sequence == 1
    assert "1 results of the other one are dropped" in second_agent.log
    second_agent.kill()
    # The first is back, and what was its own is forgotten.
    await forgotten(coordinator)
    coordinator.tracker_id = "tracker-1"
    start_agent(address)
    third = await coordinator.session(3)
    assert third.hello.tracker_id == "tracker-2"
    await third.assign((key(2), spec("true")))
    await coordinator.result(key(2))
    assert set(coordinator.told) == {(1, 2, 1, LIFE)}
    assert not agent.tasks()


async def test_older_coordinator_is_left_alone_after_a_start_too(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    coordinator.epoch = 5
    await coordinator.session()
    await eventually(lambda: written_down(agent).epoch == 5, "the welcome was written down")
    agent.kill()
    coordinator.epoch = 4
    again = start_agent(address)
    assert (await coordinator.session(2)).hello.epoch == 5
    await eventually(lambda: "older (epoch 4)" in again.log, "the agent said why it left")


async def test_damaged_journal_is_set_aside_and_what_comes_before_is_used(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    first = await coordinator.session()
    coordinator.acknowledging = False
    for number in (0, 1):
        await first.assign((key(number), spec("echo", str(number))))
        await coordinator.result(key(number))
    agent.kill()
    path = agent.state / "journal"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)
    await forgotten(coordinator)
    coordinator.acknowledging = True
    again = start_agent(address)
    second = await coordinator.session(2)
    assert idents(second.hello.ended) == {(1, 0, 1, LIFE)}
    await coordinator.result(key(0))
    assert coordinator.of(key(0)).output() == b"0\n"
    (line,) = (line for line in again.log.splitlines() if " ERROR " in line)
    assert str(path) in line and "is damaged" in line and "journal.damaged" in line
    assert (agent.state / "journal.damaged").read_bytes() == content
    again.kill()
    path.write_bytes(b"")
    third_agent = start_agent(address)
    third = await coordinator.session(3)
    assert (third.hello.tracker_id, len(third.hello.ended)) == ("", 0)
    assert " ERROR " not in third_agent.log


async def test_agent_that_answers_without_running_keeps_what_a_real_one_left(
    agent: AgentProcess, start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    first = await coordinator.session()
    coordinator.acknowledging = False
    await first.assign((key(0), spec("echo", "kept")), (key(1), spec("sleep", "600")))
    await coordinator.result(key(0))
    await coordinator.start_of(key(1))
    agent.kill()
    await forgotten(coordinator)
    coordinator.acknowledging = True
    start_agent(address, "--noop")
    second = await coordinator.session(2)
    assert not agent.tasks()
    await second.assign((key(2), python("not run")))
    await coordinator.results(key(0), key(2))
    assert coordinator.of(key(0)).output() == b"kept\n"
