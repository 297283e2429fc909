"""The suite's first part: attempts start, end and are told of, and their processes have the right environment and input."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from executor_harness import Harness, Told
from executor_kinds import CORES, DAEMONS, ENVIRONMENT, ExecutorKind
from support.task_specs import python, shell, spec

from daggyr.v1.task_pb2 import STDERR, STDOUT, Assignment, AssignmentBatch, AttemptKey, TaskTemplate

pytestmark = pytest.mark.asyncio(loop_scope="session")


LIKE_SIGNALS = [126, 127, 129, 137, 139, 200, 255]  # exit codes by which shells tell of other ends too
EXACT = {
    "QUOTES": "a 'b' \"c\" `d`",
    "LINES": "one\ntwo\n",
    "DOLLAR": "$HOME ${X} $(id) \\",
    "TEXT": "größer ✓ 日本",
    "EMPTY": "",
}
ODD_NAMES = {
    name: f"value of {name}"
    for name in (
        *("A\n", "\n", "1x", "A-B", "a.b", "ä", "A B", "-u", "_"),
        *("dg_home", "IFS", "PWD", "UID", "PS4", "LC_ALL", "OPTIND"),
    )
}
TELL_VARIABLES = "import os, sys\nfor name in sys.argv[1:]: os.write(1, os.environb[name.encode()] + b'\\0')"
WORDS = ["", " ", "*", "$HOME", "a\nb", "'\"", "-n", "日本"]
NO_NAME = "no variable of the environment can be called"
NUL = "the command or its environment holds a NUL character, which cannot be passed on"
WORD = "an argument or variable is too long for this host"


class TestEvery:
    """Cases for executors of all kinds."""

    async def test_HostOffered(self, any_executor: Harness) -> None:
        host = any_executor.reports.hosts[await any_executor.host()]
        assert host.name
        assert host.resources["cores"] == CORES
        largest = any_executor.executor.largest()
        assert largest is None or dict(largest) == dict(host.resources)

    async def test_StartWaitSucceeded(self, any_executor: Harness) -> None:
        before = time.time_ns()
        told = await any_executor.run_one(spec("/bin/true"))
        result = told.result
        assert told.outcome == "SUCCEEDED"
        assert result.exit_code == 0 and result.HasField("exit_code")
        assert not result.HasField("signal")
        assert list(result.notes) == []
        assert before <= result.start_time.ToNanoseconds() <= result.stop_time.ToNanoseconds() <= time.time_ns()

    async def test_StartManyWaitAll(self, any_kind: ExecutorKind, any_executor: Harness) -> None:
        many = any_kind.many
        assert [told.outcome for told in await any_executor.run(*[spec("/bin/true")] * many)] == ["SUCCEEDED"] * many

    async def test_StopAndRecallOfWhatIsUnknownArePassedOver(self, any_executor: Harness) -> None:
        keys = [AttemptKey(run_id=2**40, task_number=7, attempt=1)]
        host = await any_executor.host()
        any_executor.executor.stop(host, keys)
        any_executor.executor.recall(host, keys)
        assert (await any_executor.run_one(spec("/bin/true"))).outcome == "SUCCEEDED"
        any_executor.stop(*await any_executor.give(spec("/bin/true")))

    async def test_FollowOfWhatIsUnknownEnds(self, any_executor: Harness) -> None:
        key = AttemptKey(run_id=2**40, task_number=7, attempt=1)
        any_executor.reports.of(key).host = await any_executor.host()
        assert await any_executor.followed(key) == []

    async def test_DemandIsHeard(self, any_executor: Harness) -> None:
        any_executor.executor.demand(10)
        any_executor.executor.demand(0)


class TestResults:
    """What results say of a process."""

    @pytest.mark.given(shell("exit 3"))
    async def test_StartWaitFailed(self, told: Told) -> None:
        assert told.outcome == "FAILED"
        assert told.result.exit_code == 3
        assert not told.result.HasField("signal")

    @pytest.mark.given(*[shell(f"exit {code}") for code in LIKE_SIGNALS])
    async def test_ExitCodesThatLookLikeSignals(self, all_told: list[Told]) -> None:
        assert [(one.outcome, one.result.HasField("signal")) for one in all_told] == [("FAILED", False)] * len(LIKE_SIGNALS)
        assert [one.result.exit_code for one in all_told] == LIKE_SIGNALS

    @pytest.mark.given(shell("kill -TERM $$"))
    async def test_StartWaitSignalled(self, told: Told) -> None:
        assert told.outcome == "FAILED", "a signal that nobody here sent"
        assert told.result.signal == 15
        assert not told.result.HasField("exit_code")
        assert "SIGTERM" in told.notes

    async def test_UsageIsTold(self, kind: ExecutorKind, executor: Harness) -> None:
        if not kind.tells_usage:
            pytest.skip(f"{kind.name} declares that it tells no usage")
        before = time.monotonic()
        told = await executor.run_one(python("import time\nkept = b'x' * 100_000_000\nwhile time.process_time() < 0.2: pass"))
        assert told.outcome == "SUCCEEDED"
        assert 0.2 <= told.result.cpu_seconds <= time.monotonic() - before, "one thread cannot have used more"
        assert 100_000_000 <= told.result.max_rss_bytes < 1_000_000_000

    async def test_StartedIsToldWhileItRuns(self, executor: Harness, tmp_path: Path) -> None:
        gate = tmp_path / "gate"
        key = await executor.give_one(shell('until [ -e "$1" ]; do sleep 0.02; done', str(gate)))
        await executor.started(key)
        assert executor.reports.of(key).results == []
        gate.touch()
        assert (await executor.ends(key)).outcome == "SUCCEEDED"


class TestEnvironment:
    """What a process is given."""

    @pytest.mark.given(python(TELL_VARIABLES, *EXACT, environment=EXACT))
    async def test_ItsOwnIsExact(self, told: Told) -> None:
        assert told.output().decode().split("\0") == [*EXACT.values(), ""]

    @pytest.mark.given(python(TELL_VARIABLES, "--", *ODD_NAMES, environment={**ODD_NAMES, "--": ""}))
    async def test_NamesThatNoShellCanHave(self, told: Told) -> None:
        assert told.output().decode().split("\0") == ["", *ODD_NAMES.values(), ""]

    async def test_TheAttemptIsNamed(self, executor: Harness) -> None:
        host = await executor.host()
        batch = executor.batch(shell('echo "$DAGGYR_RUN_ID|$DAGGYR_TASK_ID|$DAGGYR_ATTEMPT"'))
        (assignment,) = batch.assignments
        assignment.key.attempt = 7
        assignment.task_id = "join.{{MONTH}}:01 'quoted' $X"
        (key,) = executor.start(host, batch)
        assert (await executor.ends(key)).text == f"{key.run_id}|{assignment.task_id}|7\n"

    @pytest.mark.given(shell("echo $DAGGYR_TASK_ID $INHERITED", environment={"DAGGYR_TASK_ID": "mine", "INHERITED": "too"}))
    async def test_TheTasksOwnWins(self, told: Told) -> None:
        assert told.text == "mine too\n"

    @pytest.mark.given(shell("env"))
    async def test_WhatIsNamedIsInheritedButNothingElseAndNotItsDAGGYR(self, told: Told) -> None:
        found = dict(line.split("=", 1) for line in told.text.splitlines() if "=" in line)
        assert found["INHERITED"] == ENVIRONMENT["INHERITED"]
        assert found.keys().isdisjoint(DAEMONS) and found["PATH"]
        ours = {name for name in found if name.startswith("DAGGYR_")} - {"DAGGYR_AGENT_ID"}  # where an agent runs it
        assert ours == {"DAGGYR_RUN_ID", "DAGGYR_TASK_ID", "DAGGYR_ATTEMPT", "DAGGYR_LIFE"}

    async def test_TheProgramIsLookedUpInTheTasksPath(self, executor: Harness, tmp_path: Path) -> None:
        program = tmp_path / "of-the-task"
        program.write_text("#!/bin/sh\necho found\n")
        program.chmod(0o755)
        assert (await executor.run_one(spec("of-the-task", environment={"PATH": str(tmp_path)}))).text == "found\n"

    @pytest.mark.given(python("import sys\nsys.stdout.buffer.write('\\0'.join(sys.argv[1:]).encode())", *WORDS))
    async def test_ArgumentsAreNotInterpreted(self, told: Told) -> None:
        assert told.text.split("\0") == WORDS


class TestFolders:
    @pytest.mark.given(shell("pwd"))
    async def test_ItStartsWhereTheDaemonDid(self, told: Told, home: Path) -> None:
        assert told.text == f"{home}\n"

    @pytest.mark.given(shell("pwd", working_directory="below"))
    async def test_AFolderCountsFromThere(self, told: Told, home: Path) -> None:
        assert told.text == f"{home / 'below'}\n"

    async def test_AnAbsoluteFolder(self, executor: Harness, tmp_path: Path) -> None:
        assert (await executor.run_one(shell("pwd", working_directory=tmp_path))).text == f"{tmp_path}\n"


class TestStdin:
    @pytest.mark.given(shell("readlink /proc/self/fd/0; cat"))
    async def test_AbsentIsDevNull(self, told: Told) -> None:
        assert told.text == "/dev/null\n"

    @pytest.mark.parametrize("text", ["", "größer\n", "x" * 1_000_000], ids=["empty", "text", "large"])
    @pytest.mark.given(lambda text: python("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", stdin=text))
    async def test_GivenTextIsReadWhole(self, told: Told, text: str) -> None:
        assert told.output() == text.encode()

    @pytest.mark.given(spec("/bin/true", stdin="x" * 1_000_000))
    async def test_ItNeedNotBeRead(self, told: Told) -> None:
        assert told.outcome == "SUCCEEDED"


class TestTemplates:
    async def test_ValuesTakeTheirPlaces(self, executor: Harness, tmp_path: Path) -> None:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
        template = TaskTemplate(
            spec=shell(
                'read -r line; echo "$1 $VALUE $line"; pwd',
                "{{A}}{{AB}}{{B}}",
                environment={"VALUE": "{{B}}", "{{A}}": "names are not searched"},
                working_directory=f"{tmp_path}/{{{{A}}}}",
                stdin="{{A}} in\n",
            ),
            parameters=["{{A}}", "{{B}}", "{{AB}}"],
        )
        host = await executor.host()
        batch = executor.batch(spec("/bin/echo", "without"))
        batch.templates.append(template)
        run_id = batch.assignments[0].key.run_id
        for number, values in enumerate((["one", "{{A}}", "$X"], ["two", "'", "\\"]), 1):
            batch.assignments.append(
                Assignment(key=AttemptKey(run_id=run_id, task_number=number, attempt=1), task_id="t", template=1, values=values)
            )
        told = await executor.ended(executor.start(host, batch))
        assert [one.text for one in told] == [
            "without\n",
            f"one$X{{{{A}}}} {{{{A}}}} one in\n{tmp_path}/one\n",
            f"two\\' ' two in\n{tmp_path}/two\n",
        ]

    async def test_ValuesThatDoNotFitAreRejected(self, executor: Harness) -> None:
        host = await executor.host()
        key = executor.batch(spec("x")).assignments[0].key
        template = TaskTemplate(spec=spec("/bin/echo", "{{A}}"), parameters=["{{A}}"])
        batch = AssignmentBatch(templates=[template], assignments=[Assignment(key=key, task_id="t", values=["1", "2"])])
        executor.start(host, batch)
        executor.reports.of(key).host = host
        assert (await executor.ends(key)).outcome == "REJECTED"


class TestRejected:
    """A task that cannot be started is REJECTED with a note that names the reason, and has no start."""

    @pytest.mark.parametrize(
        ("task", "named"),
        [
            pytest.param(spec("no-such-program-anywhere"), "no-such-program-anywhere", id="no such program"),
            pytest.param(spec("/no/such/program"), "/no/such/program", id="no such path"),
            pytest.param(spec("/etc/passwd"), "/etc/passwd", id="not executable"),
            pytest.param(spec("/bin"), "/bin", id="a folder"),
            pytest.param(spec("/bin/true", working_directory="/no/such/folder"), "/no/such/folder", id="no such folder"),
            pytest.param(spec("/bin/true", working_directory="/etc/passwd"), "/etc/passwd", id="no folder"),
            pytest.param(spec("/bin/true", resources={"cores": 1, "unicorns": 2}), "2 of unicorns", id="no such resource"),
            pytest.param(spec("/bin/true", "x" * 200_000), "too long", id="argument too long"),
            pytest.param(spec("/bin/true", *["x" * 1000] * 2_800), "too long", id="arguments too long together"),
            pytest.param(spec("/bin/echo", "a\0b"), "NUL|null", id="a NUL"),
        ],
    )
    @pytest.mark.given
    async def test_StartRejected(self, told: Told, task: object, named: str) -> None:
        assert told.outcome == "REJECTED"
        assert any(word in told.notes for word in named.split("|")), told.notes
        assert not told.result.HasField("start_time")
        assert not told.result.HasField("exit_code")
        assert told.starts == 0

    @pytest.mark.given(spec("/bin/true"), spec("no-such-program-anywhere"), spec("/bin/true"))
    async def test_OthersGoOn(self, all_told: list[Told]) -> None:
        assert [one.outcome for one in all_told] == ["SUCCEEDED", "REJECTED", "SUCCEEDED"]

    @pytest.mark.parametrize(
        ("task", "sentence"),
        [
            pytest.param(spec(), "the command is empty", id="no command"),
            pytest.param(spec(""), "the command is empty", id="an empty word"),
            pytest.param(spec("true", environment={"A=B": "c"}), f"{NO_NAME} 'A=B'", id="a name with ="),
            pytest.param(spec("true", environment={"": "c"}), f"{NO_NAME} ''", id="an empty name"),
            pytest.param(spec("tr\0ue"), NUL, id="a NUL in the program"),
            pytest.param(spec("true", environment={"A\0": "c"}), NUL, id="a NUL in a name"),
            pytest.param(spec("true", environment={"A": "\0"}), NUL, id="a NUL in a value"),
            pytest.param(spec("true", working_directory="a\0b"), NUL, id="a NUL in the folder"),
            pytest.param(
                spec("true", "x" * 131_072), f"{WORD}: 131072 bytes, where Linux takes 131071 (execve(2))", id="argument"
            ),
            pytest.param(
                spec("true", environment={"A": "ä" * 70_000}),
                f"{WORD}: 140002 bytes, where Linux takes 131071 (execve(2))",
                id="variable",
            ),
            pytest.param(
                spec("no-such", environment={"PATH": "/bin:/nowhere"}),
                "no such program: 'no-such' is in none of the folders of PATH='/bin:/nowhere'",
                id="not in PATH",
            ),
            pytest.param(spec("/no/such"), "no such program: '/no/such'", id="no such path"),
            pytest.param(spec("./no"), "no such program: './no' in '{home}'", id="no such path below"),
            pytest.param(
                spec("./no", working_directory="below"),
                "no such program: './no' in '{home}', working_directory 'below'",
                id="no such path below its folder",
            ),
            pytest.param(
                spec("./no", working_directory="/tmp"), "no such program: './no' in '/tmp'", id="no such path in its folder"
            ),
            pytest.param(
                spec("/etc/passwd"), "'/etc/passwd' is not executable: chmod +x it gives the permission", id="not executable"
            ),
            pytest.param(
                spec("plain", environment={"PATH": "/bin:."}),
                "'./plain' is not executable: chmod +x it gives the permission",
                id="not executable in PATH",
            ),
            pytest.param(spec("/bin"), "'/bin' is a folder, not a program", id="a folder"),
            pytest.param(
                spec("true", working_directory="mis'sing"),
                """no such folder: working_directory "mis'sing" (relative ones count from '{home}')""",
                id="no such folder",
            ),
            pytest.param(
                spec("true", working_directory="-"),
                "no such folder: working_directory '-' (relative ones count from '{home}')",
                id="no such folder, a hyphen",
            ),
            pytest.param(
                spec("true", working_directory="/etc/passwd"),
                "cannot enter working_directory '/etc/passwd': Not a directory",
                id="no folder",
            ),
        ],
    )
    @pytest.mark.given
    async def test_TheSameFaultHasTheSameSentence(self, told: Told, home: Path, task: object, sentence: str) -> None:
        assert (told.outcome, told.notes) == ("REJECTED", sentence.replace("{home}", str(home)))

    @pytest.mark.given(python("import sys\nprint(len(sys.argv[1]))", "x" * 131_071))
    async def test_WhatIsAsLongAsCanBeIsStarted(self, told: Told) -> None:
        assert told.text == "131071\n"

    async def test_NoInterpreter(self, executor: Harness, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_text("#!/no/such/interpreter\n")
        program.chmod(0o755)
        told = await executor.run_one(spec(str(program)))
        assert told.outcome == "REJECTED"
        assert f"'{program}'" in told.notes and "interpreter" in told.notes and "first line" in told.notes
        assert told.pieces == {STDOUT: {}, STDERR: {}}

    @pytest.mark.parametrize("words", [("/usr/bin/env",), ("setsid", "--wait")], ids=["env", "setsid"])
    @pytest.mark.given(lambda words: spec(*words, "no-such-program"))
    async def test_ATaskThatStartsNothingHasRun(self, told: Told, words: tuple[str, ...]) -> None:
        """A program that starts tasks for an executor may itself say what this task says."""
        assert (told.outcome, told.result.exit_code) == ("FAILED", 127)
        assert b"no-such-program" in told.output(STDERR)
