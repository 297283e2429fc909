"""The job script by itself, in the shells that a node may have as /bin/sh. Tests start it as Slurm would, without a cluster."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from executor_harness import GRACE, PATIENCE
from support.task_specs import python, shell, spec
from support.waiting import DEADLINE, until

from daggyr.v1.task_pb2 import Assignment, AttemptKey, TaskSpec
from daggyr_server.executors.slurm.jobs.script import job_script
from daggyr_server.executors.slurm.jobs.submission_folder import JobReport, Manifest, SubmissionFolder

SHELLS = [
    pytest.param(words, id=words[0])
    for words in (["dash"], ["bash", "--posix"], ["busybox", "sh"])
    if shutil.which(words[0]) is not None
]


class Node:
    """Runs the tasks of one submission."""

    def __init__(self, folder: Path, words: Sequence[str], *tasks: TaskSpec, timeout: float = 0, grace: float = PATIENCE) -> None:
        self.words = list(words)
        self.home = folder / "home with 'quotes'"
        self.home.mkdir(exist_ok=True)
        keys = [(1, number, 1, 5) for number in range(len(tasks))]
        self.submission = SubmissionFolder(folder / "it's one", Manifest("daggyr-x", keys, timeout, 0))
        self.submission.write([(number, _assignment(number), task) for number, task in enumerate(tasks)])
        self.script = folder / "script"
        self.script.write_text(job_script(self.submission.path, self.home, grace=grace, timeout=timeout, whole_stdout_bytes=0))

    def start(self, index: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_ID": f"test-{os.getpid()}-{index}"}
        return subprocess.Popen([*self.words, str(self.script)], env=environment, cwd=self.home, stdin=subprocess.DEVNULL)

    def run(self, index: int = 0) -> JobReport:
        self.start(index).wait(DEADLINE)
        return self.result(index)

    def result(self, index: int = 0) -> JobReport:
        found = self.submission.result(index)
        assert found is not None, "the result is not whole"
        return found

    def has_written(self) -> bool:
        path = self.submission.output(0, "out")
        return path.exists() and path.read_text().endswith("\n")

    def out(self, index: int = 0) -> str:
        return self.submission.output(index, "out").read_text()


def _assignment(number: int) -> Assignment:
    return Assignment(key=AttemptKey(run_id=1, task_number=number, attempt=1), task_id=f"task {number} 'x'")


@pytest.mark.parametrize("words", SHELLS)
def test_a_task_gets_what_it_was_given(words: list[str], tmp_path: Path) -> None:
    strange = {"A-B": "1 2", "IFS": ":", "UID": "7", "PS1": "$ ", "dg_task": "mine", "LINES": "a\nb'c\"", "EMPTY": "", "1x": "y"}
    source = "import os, sys\nprint([os.environ.get(name) for name in sys.argv[1:]], os.getcwd())\nprint(sys.stdin.read())"
    node = Node(
        tmp_path, words, python(source, *strange, environment=strange, stdin="in\nput"), shell("echo $DAGGYR_TASK_ID $0", "*")
    )
    reported = node.run()
    assert (reported.status, reported.stopped, reported.rejected) == (0, False, None)
    assert node.out() == f"{list(strange.values())} {node.home}\nin\nput\n"
    assert reported.start is not None and reported.stop is not None and reported.start < reported.stop
    node.run(1)
    assert node.out(1) == "task 1 'x' sh\n"


@pytest.mark.parametrize("words", SHELLS)
@pytest.mark.parametrize(
    ("first", "then"), [(1_700_003_600, 1_700_000_000), (1_700_000_000, 1_700_003_600)], ids=["back", "ahead"]
)
def test_a_task_takes_what_it_takes_while_the_nodes_date_is_set(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, then: int
) -> None:
    asked = tmp_path / "asked"
    program = tmp_path / "programs/date"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nif mkdir {asked} 2>/dev/null; then echo {first}.000000001; else echo {then}.000000002; fi\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    reported = Node(tmp_path, words, shell("sleep 0.1")).run()
    assert reported.start == first * 10**9 + 1
    assert reported.stop is not None and 90_000_000 <= reported.stop - reported.start < 3_600 * 10**9


@pytest.mark.parametrize("words", SHELLS)
def test_ends_are_told(words: list[str], tmp_path: Path) -> None:
    tasks = [shell("exit 7"), shell("kill -KILL $$"), spec("no-such-program"), spec("/bin/true", working_directory="nowhere")]
    script = tmp_path / "script-without-interpreter"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    node = Node(tmp_path, words, *tasks, spec(str(script)))
    found = [node.run(index) for index in range(5)]
    assert [each.status for each in found[:2]] == [7, 128 + 9]
    assert ["no-such-program" in (found[2].rejected or ""), "nowhere" in (found[3].rejected or "")] == [True, True]
    assert "script-without-interpreter" in (found[4].rejected or "")
    assert [each.start for each in found[2:4]] == [None, None]


@pytest.mark.parametrize("words", SHELLS)
def test_a_stop_is_passed_on_and_the_grace_period_kept(words: list[str], tmp_path: Path) -> None:
    cleaning = shell("trap 'echo bye; exit 4' TERM; echo here; while :; do sleep 0.02; done")
    stubborn = shell("trap '' TERM; echo here; while :; do sleep 0.02; done")
    for task, grace, status, said in ((cleaning, PATIENCE, 4, "here\nbye\n"), (stubborn, GRACE, 128 + 9, "here\n")):
        folder = tmp_path / str(status)
        folder.mkdir()
        node = Node(folder, words, task, grace=grace)
        process = node.start(0)
        until(node.has_written, "a task that is there")
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)
        reported = node.result()
        assert (reported.status, reported.stopped) == (status, True)
        assert node.out() == said


@pytest.mark.parametrize("words", SHELLS)
def test_a_timeout_is_kept(words: list[str], tmp_path: Path) -> None:
    node = Node(tmp_path, words, shell("sleep 100 & wait"), timeout=0.2)
    reported = node.run()
    assert (reported.status, reported.timed_out, reported.stopped) == (128 + 15, True, False)


@pytest.mark.parametrize("words", [words for words in SHELLS if words.id != "busybox"])  # busybox has a sleep of its own
def test_the_grace_after_a_timeout_is_that_after_a_kill(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard of a timeout sleeps for the timeout and then for the grace that the job was given."""
    folder, slept, ready = tmp_path / "bin", tmp_path / "slept", tmp_path / "ready"
    folder.mkdir()
    (folder / "sleep").write_text(
        f"""#!/bin/sh
        PATH=${{PATH#*:}}
        echo "$1" >> {slept}
        case $1 in
            1.25) until [ -e {ready} ]; do sleep 0.01; done ;;
            0.750) ;;
            *) exec sleep "$1" ;;
        esac
        """
    )
    (folder / "sleep").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    task = shell(f"trap '' TERM; : > {ready}; while :; do /bin/sleep 100; done")
    reported = Node(tmp_path, words, task, timeout=1.25, grace=0.75).run()
    assert (reported.status, reported.timed_out, reported.stopped) == (128 + 9, True, False)
    assert [word for word in slept.read_text().split() if word != "5"] == ["1.25", "0.750"]


@pytest.mark.parametrize("words", SHELLS)
def test_what_is_void_or_taken_or_was_begun_is_not_started(words: list[str], tmp_path: Path) -> None:
    touch = [shell('touch "$1"', str(tmp_path / f"ran-{number}")) for number in range(3)]
    node = Node(tmp_path, words, *touch)
    assert node.submission.claim(0)
    assert node.start(0).wait(DEADLINE) == 0
    node.run(1)
    (tmp_path / "ran-1").unlink()
    assert node.start(1).wait(DEADLINE) == 0, "a job that Slurm starts again"
    assert not node.submission.void(), "one of it has begun"
    void = Node(tmp_path / "home with 'quotes'", words, *touch)
    assert void.submission.void()
    assert void.start(2).wait(DEADLINE) == 0
    assert not list(tmp_path.glob("ran-*"))


@pytest.mark.parametrize("words", SHELLS)
def test_interrupts_are_not_ignored(words: list[str], tmp_path: Path) -> None:
    """A task does not ignore SIGINT, although a shell's background processes do."""
    node = Node(tmp_path, words, python("import signal\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"))
    node.run()
    assert node.out() == "True\n"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory with little room."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr!r}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("words", SHELLS[:1])
class TestRoom:
    """A directory that is full."""

    def test_before_the_start_nothing_is_started(self, words: list[str], small: Path) -> None:
        ran = small.parent / "ran"
        node = Node(small, words, shell('touch "$1"', str(ran)))
        fill(small)
        assert node.start(0).wait(DEADLINE) == 1
        seen = node.submission.look()
        assert (seen.full, seen.claimed, ran.exists()) == ({0}, set(), False)

    def test_while_it_runs_output_is_marked(self, words: list[str], small: Path) -> None:
        node = Node(small, words, shell(f"cat /dev/zero > {small}/all 2>/dev/null; echo important; true"))
        process = node.start(0)
        until(lambda: (node.submission.path / "0.part").exists(), "a script that wants to say how the task ended")
        (small / "all").unlink()
        process.wait(DEADLINE)
        reported = node.result()
        assert (reported.status, reported.full, node.out()) == (0, True, "")

    def test_a_result_for_which_there_is_no_room_is_none(self, words: list[str], small: Path) -> None:
        node = Node(small, words, shell(f"cat /dev/zero > {small}/all 2>/dev/null; true"))
        assert node.start(0).wait(DEADLINE) == 0
        assert node.submission.result(0) is None
        assert node.submission.result_was_lost(0)


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "filled").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_what_is_no_array_has_the_index_0_whatever_the_environment_says(tmp_path: Path) -> None:
    node = Node(tmp_path, ["sh"], shell("echo ran"))
    node.script.write_text(job_script(node.submission.path, node.home, grace=GRACE, timeout=0, whole_stdout_bytes=0, size=1))
    node.start(3).wait(DEADLINE)
    assert node.out() == "ran\n"
