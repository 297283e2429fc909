"""How the agent starts a process, and what it tells of its end."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from agent_program import AgentProcess, StartAgent, eventually
from scripted_coordinator import LIFE, Coordinator, key
from support.task_specs import python, spec

from daggyr.v1.task_pb2 import FAILED, REJECTED, RETURNED, STDERR, SUCCEEDED, TIMED_OUT, Assignment, AssignmentBatch, TaskTemplate

pytestmark = pytest.mark.usefixtures("agent")


async def test_success_tells_output_times_and_use(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "echo out; echo err >&2")))
    result = await coordinator.result(key())
    assert result.outcome == SUCCEEDED
    assert result.exit_code == 0
    assert not result.HasField("signal")
    assert not result.notes
    assert 0 < result.start_time.ToNanoseconds() <= result.stop_time.ToNanoseconds()
    assert result.HasField("cpu_seconds") and result.cpu_seconds >= 0
    told = coordinator.of(key())
    assert told.output() == b"out\n"
    assert told.output(STDERR) == b"err\n"
    assert (result.stdout.size_bytes, result.stdout.cut_bytes) == (4, 0)
    assert (result.stderr.size_bytes, result.stderr.cut_bytes) == (4, 0)


async def test_exit_code(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "exit 3")))
    result = await coordinator.result(key())
    assert (result.outcome, result.exit_code, result.HasField("signal")) == (FAILED, 3, False)


async def test_signal_that_nobody_here_sent(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(0), spec("sh", "-c", "kill -USR1 $$")), (key(1), spec("sh", "-c", "kill -KILL $$")))
    usr1, kill = await coordinator.results(key(0), key(1))
    assert (usr1.outcome, usr1.signal, usr1.HasField("exit_code")) == (FAILED, signal.SIGUSR1, False)
    assert "SIGUSR1" in usr1.notes[0]
    assert (kill.outcome, kill.signal) == (FAILED, signal.SIGKILL)
    assert "SIGKILL" in kill.notes[0]


async def test_a_long_attempt_is_told_of_when_it_starts_and_a_short_one_once(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(0), spec("true")), (key(1), spec("sleep", "600")))
    await coordinator.start_of(key(1))
    assert not coordinator.of(key(1)).results
    assert (await coordinator.result(key(0))).HasField("start_time")
    await session.cancel(key(1))
    result = await coordinator.result(key(1))
    assert coordinator.of(key(1)).started == 1
    assert result.HasField("start_time")


AWKWARD = "quote ' \" back\\slash $HOME `id` new\nline \t tab ; && | * ? zwölf 十二 🙂"


async def test_arguments_and_environment_arrive_as_they_are(
    start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    """Of the agent's environment, what every program needs and what was named; nothing else, and nothing of the agent's own."""
    inherited = {"LC_ALL": "C", "INHERITED": "yes", "REPLACED": "no", "SOME_A": "a", "SOME_B": "b", "TZ": "UTC"}
    agent = start_agent(
        address,
        *("--pass-environment=INHERITED", "--pass-environment=SOME_*", "--pass-environment", "DAGGYR_SECRET"),
        name="other",
        environment={**inherited, "DAGGYR_SECRET": "no", "PGPASSWORD": "secret", "INHERITED_TOO": "no"},
    )
    session = await coordinator.session(name="other")
    task = python(
        "import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], sys.stdout)",
        AWKWARD,
        "",
        environment={"AWKWARD": AWKWARD, "EMPTY": "", "REPLACED": "yes", "PYTHONUTF8": "1"},
    )
    await session.assign((key(7, run_id=12, attempt=3), task), task_id="load.{{DAY}}:" + "é")
    assert (await coordinator.result(key(7, run_id=12, attempt=3))).outcome == SUCCEEDED
    arguments, environment = json.loads(coordinator.of(key(7, run_id=12, attempt=3)).output())
    assert arguments == [AWKWARD, ""]
    assert environment["AWKWARD"] == AWKWARD
    assert environment["EMPTY"] == ""
    assert environment["INHERITED"] == environment["REPLACED"] == "yes"
    assert [environment[name] for name in ("SOME_A", "SOME_B", "TZ", "LC_ALL")] == ["a", "b", "UTC", "C"]
    assert environment["PATH"]
    assert environment.keys().isdisjoint({"PGPASSWORD", "INHERITED_TOO", "DAGGYR_SECRET"})
    ours = {name.removeprefix("DAGGYR_"): value for name, value in environment.items() if name.startswith("DAGGYR_")}
    agent_id = (agent.state / "agent-id").read_text().strip()
    assert ours == {"RUN_ID": "12", "TASK_ID": "load.{{DAY}}:é", "ATTEMPT": "3", "LIFE": f"{LIFE:x}", "AGENT_ID": agent_id}


async def test_template_is_filled_with_each_assignments_values(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    template = TaskTemplate(
        spec=spec("sh", "-c", 'echo "X: $DAY"; cat', environment={"DAY": "day X"}, stdin="in X"), parameters=["X"]
    )
    assignments = [Assignment(key=key(n), task_id=f"t{n}", values=[str(n)]) for n in range(3)]
    await session.send(assign=AssignmentBatch(templates=[template], assignments=assignments))
    await coordinator.results(*(key(n) for n in range(3)))
    assert [coordinator.of(key(n)).output() for n in range(3)] == [f"{n}: day {n}\nin {n}".encode() for n in range(3)]


async def test_values_that_do_not_fit_the_template_are_rejected(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    template = TaskTemplate(spec=spec("true"), parameters=["X"])
    await session.send(assign=AssignmentBatch(templates=[template], assignments=[Assignment(key=key(), task_id="t")]))
    result = await coordinator.result(key())
    assert result.outcome == REJECTED
    assert "1 parameters" in result.notes[0]


async def test_working_directory_counts_from_where_the_agent_was_started(
    agent: AgentProcess, coordinator: Coordinator, tmp_path: Path
) -> None:
    (agent.home / "work").mkdir()
    session = await coordinator.session()
    await session.assign(
        (key(0), spec("pwd", "-P")),
        (key(1), spec("pwd", "-P", working_directory="work")),
        (key(2), spec("pwd", "-P", working_directory=tmp_path)),
        (key(3), spec("pwd", "-P")),
    )
    await coordinator.results(*(key(n) for n in range(4)))
    printed = [coordinator.of(key(n)).output().decode().strip() for n in range(4)]
    assert printed == [str(agent.home), str(agent.home / "work"), str(tmp_path), str(agent.home)]


async def test_standard_input(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    large = "0123456789abcde\n" * 180_000  # more than a pipe holds, less than a message
    await session.assign(
        (key(0), spec("cat", stdin="zwölf\n")),
        (key(1), spec("cat")),
        (key(2), spec("cat", stdin="")),
        (key(3), spec("readlink", "/proc/self/fd/0")),
    )
    await session.assign((key(4), spec("sh", "-c", "sleep 0.1; wc -c", stdin=large)))
    results = await coordinator.results(*(key(n) for n in range(5)))
    assert {result.outcome for result in results} == {SUCCEEDED}
    outputs = [coordinator.of(key(n)).output() for n in range(5)]
    assert outputs == ["zwölf\n".encode(), b"", b"", b"/dev/null\n", b"%d\n" % len(large)]


async def test_process_begins_with_default_signals_and_three_descriptors_in_a_session_of_its_own(
    start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    start_agent(address, name="other", prefix=("env", "--ignore-signal=HUP,CHLD,USR1"))
    session = await coordinator.session(name="other")
    await session.assign(
        (key(0), spec("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")),
        (key(1), spec("ls", "/proc/self/fd")),
        (key(2), python("import os; print(os.getpid(), os.getpgid(0), os.getsid(0))")),
    )
    await coordinator.results(*(key(n) for n in range(3)))
    blocked, ignored = (int(line.split()[1], 16) for line in coordinator.of(key(0)).output().splitlines())
    of_the_c_library = 1 << 31 | 1 << 32  # signals 32 and 33 belong to it, and posix_spawn(3) leaves them ignored
    assert blocked == 0
    assert ignored & ~of_the_c_library == 0
    assert coordinator.of(key(1)).output().split() == [b"0", b"1", b"2", b"3"]  # the last is ls's own
    pid, group, session_id = coordinator.of(key(2)).output().split()
    assert pid == group == session_id


async def test_program_is_looked_up_in_the_tasks_own_path(coordinator: Coordinator, tmp_path: Path) -> None:
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / name).mkdir()
        program = tmp_path / name / "greet"
        program.write_text(f"#!/bin/sh\necho {name}\n")
        program.chmod(mode)
    path = f"{tmp_path}/missing:{tmp_path}/first:second"
    session = await coordinator.session()
    await session.assign((key(), spec("greet", environment={"PATH": path}, working_directory=tmp_path)))
    await coordinator.result(key())
    assert coordinator.of(key()).output() == b"second\n"


def files(folder: Path) -> None:
    """Programs that cannot be started, each in another way."""
    for name, text, mode in (
        ("data", "#!/bin/sh\n", 0o644),
        ("script", "echo no first line\n", 0o755),
        ("lost", "#!/no/such/interpreter\n", 0o755),
        ("windows", "#!/bin/sh\r\n", 0o755),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    (folder / "folder").mkdir()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (spec(), "command is empty"),
        (spec(""), "command is empty"),
        (spec("no-such-program"), "no such program: 'no-such-program' is in none of the folders of PATH="),
        (spec("/no/such/program"), "no such program: '/no/such/program'"),
        (spec("./data"), "'./data' is not executable"),
        (spec("data", environment={"PATH": "."}), "'./data' is not executable: chmod +x it"),
        (spec("./script"), "a script with a first line like #!/bin/sh"),
        (spec("./lost"), "names an interpreter in its first line that is not there: '/no/such/interpreter'"),
        (spec("./windows"), "'./windows' has Windows line ends, so that its first line names no program"),
        (spec("./x.sh"), "no such program: './x.sh' in '/"),
        (spec("./x.sh", working_directory="folder"), ", working_directory 'folder'"),
        (spec("./folder"), "'./folder' is a folder, not a program"),
        (spec("./data/program"), "Not a directory"),
        (spec("true", working_directory="missing"), "no such folder: working_directory 'missing' (relative ones count from '/"),
        (spec("true", working_directory="data"), "cannot enter working_directory 'data': Not a directory"),
        (spec("true", "x" * 200_000), "too long for this host"),
        (spec("true", environment={"A=B": "c"}), "no variable of the environment can be called 'A=B'"),
        (spec("true", "nul\0byte"), "cannot be passed on"),
        (spec("true", resources={"cores": 3}), "the task needs 3 of cores where this agent has 2"),
        (spec("true", resources={"cores": 1, "gpus": 1}), "the task needs 1 of gpus where this agent has 0"),
    ],
)
async def test_what_cannot_be_started_is_rejected_with_the_reason(
    agent: AgentProcess, coordinator: Coordinator, task: object, words: str
) -> None:
    files(agent.home)
    session = await coordinator.session()
    await session.assign((key(0), task), (key(1), spec("true")))  # type: ignore[arg-type]
    rejected, after = await coordinator.results(key(0), key(1))
    assert rejected.outcome == REJECTED
    assert words in rejected.notes[0]
    assert len(rejected.notes[0]) < 1000
    assert not rejected.HasField("start_time") and not rejected.HasField("exit_code")
    assert after.outcome == SUCCEEDED


async def test_timeout_ends_what_ignores_it_and_its_children(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    await session.assign((key(), spec("sh", "-c", "sleep 600 & sleep 600", timeout=0.2)))
    result = await coordinator.result(key())
    assert (result.outcome, result.signal) == (TIMED_OUT, signal.SIGTERM)
    assert "timeout of 0.2 s" in result.notes[0]


async def test_exit_code_0_after_the_timeout_is_success_with_a_note(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    source = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('ready', flush=True); signal.pause()"
    )
    # Should the timeout pass before the task knows what to do then: again, with twice the time.
    for attempt in range(1, 10):
        this, timeout = key(attempt=attempt), 2 ** (attempt - 1)
        await session.assign((this, python(source, timeout=timeout)))
        result = await coordinator.result(this)
        if coordinator.of(this).output():
            break
    assert (result.outcome, result.exit_code) == (SUCCEEDED, 0)
    assert f"timeout of {timeout} s had passed" in result.notes[0]


async def test_the_grace_after_a_timeout_is_the_coordinators(coordinator: Coordinator) -> None:
    """Without any, there is no SIGTERM that a task could hear."""
    session = await coordinator.session()
    coordinator.kill_grace = 0
    session.drop()
    session = await coordinator.session(2)
    source = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    # Should the timeout pass before the task knows what to do then: again, with twice the time.
    for attempt in range(1, 10):
        this = key(attempt=attempt)
        await session.assign((this, spec("sh", "-c", source, timeout=2 ** (attempt - 2))))
        result = await coordinator.result(this)
        if coordinator.of(this).output():
            break
    assert (result.outcome, result.signal) == (TIMED_OUT, signal.SIGKILL)


async def test_resources_are_never_oversubscribed_and_all_used(agent: AgentProcess, coordinator: Coordinator) -> None:
    """Each task notes how many run beside it, by folders that they make and remove."""
    session = await coordinator.session()
    source = (
        "import os, sys, time, pathlib; cores = sys.argv[1]; here = pathlib.Path('running');"
        "mine = here / f'{os.getpid()}.{cores}'; mine.mkdir(parents=True);"
        "until = time.monotonic() + 0.05\n"
        "most = 0\n"
        "while not most or time.monotonic() < until:\n"
        "    most = max(most, sum(int(name.rpartition('.')[2]) for name in os.listdir(here)))\n"
        "mine.rmdir(); print(most)"
    )
    keys = [key(n) for n in range(16)]
    tasks = [python(source, str(1 + n % 2), resources={"cores": 1 + n % 2, "tokens": n % 3 and 1}) for n in range(16)]
    (agent.home / "running").mkdir()
    await session.assign(*zip(keys, tasks, strict=True))
    # Nobody offers tokens here: those that ask for one are refused, the others run.
    results = await coordinator.results(*keys)
    used = [int(coordinator.of(k).output()) for k, result in zip(keys, results, strict=True) if result.outcome == SUCCEEDED]
    assert len(used) == 6
    assert max(used) == 2


async def test_attempts_start_in_the_order_in_which_they_came(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    demands = [2, 1, 1, 2, 2, 1, 1, 2]
    keys = [key(n) for n in range(len(demands))]
    tasks = [spec("sh", "-c", f"echo {n} >> ledger", resources={"cores": cores}) for n, cores in enumerate(demands)]
    await session.assign(*zip(keys, tasks, strict=True))
    await coordinator.results(*keys)
    ran = [int(line) for line in (agent.home / "ledger").read_text().split()]
    # Those that run at the same time may overtake each other by a hair; those that need everything stay in their place.
    assert sorted(ran) == list(range(len(demands)))
    assert [place for place, number in enumerate(ran) if demands[number] == 2 and place == number] == [0, 3, 4, 7]


async def test_memory_of_a_process_is_its_own_and_not_the_agents(agent: AgentProcess, coordinator: Coordinator) -> None:
    """wait4(2) alone would say of a small process what the agent has."""
    session = await coordinator.session()
    await session.assign(
        (key(0), python("data = bytearray(150 << 20); data[::4096] = b'x' * len(data[::4096])")),
        (key(1), spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done")),
        (key(2), spec("true")),
    )
    await coordinator.start_of(key(1))  # it was looked at
    (agent.home / "go").touch()
    large, small, shortest = await coordinator.results(*(key(n) for n in range(3)))
    assert 150 << 20 <= large.max_rss_bytes < 200 << 20
    assert 0 < small.max_rss_bytes < 8 << 20
    assert shortest.max_rss_bytes < 8 << 20  # usually absent


async def test_cpu_seconds_count_children_that_were_waited_for(coordinator: Coordinator) -> None:
    session = await coordinator.session()
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    await session.assign(
        (key(0), spec("sh", "-c", f"'{sys.executable}' -I -S -c '{burn}'; true")), (key(1), spec("sleep", "0.3"))
    )
    busy, idle = await coordinator.results(key(0), key(1))
    assert busy.cpu_seconds >= 0.4  # a clock of a hundredth of a second may tell a little less
    assert idle.cpu_seconds < busy.cpu_seconds


async def test_many_attempts_at_once(coordinator: Coordinator, start_agent: StartAgent, address: str) -> None:
    """More than are started in one turn of the event loop, all at the same time."""
    agent = start_agent(address, name="large", cores=200)
    session = await coordinator.session(name="large")
    keys = [key(n) for n in range(200)]
    await session.assign(*((k, spec("sh", "-c", "echo $DAGGYR_RUN_ID; echo >> ledger; sleep 600")) for k in keys))
    await coordinator.until(lambda: all(coordinator.of(k).started for k in keys))
    ledger = agent.home / "ledger"
    await eventually(lambda: ledger.exists() and ledger.stat().st_size == len(keys), "all have written")
    await session.cancel(*keys)
    await coordinator.results(*keys)
    assert {coordinator.of(k).output() for k in keys} == {b"1\n"}


async def test_agent_that_cannot_write_output_hands_attempts_to_others(agent: AgentProcess, coordinator: Coordinator) -> None:
    session = await coordinator.session()
    output = agent.state / "output"
    output.rmdir()
    await session.assign((key(0), spec("true")))
    result = await coordinator.result(key(0))
    assert result.outcome == RETURNED
    assert "output" in result.notes[0]  # The look at the folder, or the start that failed, was first.
    assert "nothing is started for" in agent.log
    assert "output" in session.heartbeat.fault.reason
    output.mkdir()
    await coordinator.until(lambda: not session.heartbeat.HasField("fault"))
    await session.assign((key(1), spec("true")))
    assert (await coordinator.result(key(1))).outcome == SUCCEEDED
    assert os.getpgid(agent.pid)


async def test_attempts_beyond_the_agents_descriptors_wait(
    start_agent: StartAgent, address: str, coordinator: Coordinator
) -> None:
    """Rather than fail; these tasks need no resources at all."""
    start_agent(address, name="narrow", prefix=("sh", "-c", 'ulimit -n 150; exec "$0" "$@"'))
    session = await coordinator.session(name="narrow")
    keys = [key(n) for n in range(60)]
    await session.assign(*((k, spec("sleep", "0.05", resources={})) for k in keys))
    results = await coordinator.results(*keys)
    assert {result.outcome for result in results} == {SUCCEEDED}
