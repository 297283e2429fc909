"""The parts of attempt.sh that both shell scripts use, in situations that a whole host cannot be brought to each time.

Each test puts one order of ends before the script: the task before the wait, or the attempt before its guard.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
from importlib import resources
from pathlib import Path

import pytest
from support.waiting import DEADLINE

from daggyr import attempts

TRIALS = 100  # of what happens by chance
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}

# The shell comes to `wait` only after the task has ended, because the script calls `dg_stop_task` just before that.
LATE = """
dg_find_tools
dg_home=$PWD dg_in=/dev/null dg_out=$PWD/out dg_err=$PWD/err dg_mark=MARK=1 dg_timeout= dg_grace=1
dg_cause=$PWD/cause dg_refused=$PWD/refused dg_said=$PWD/said dg_times=$PWD/times dg_stopping=1
dg_begun() { :; }
dg_stop_task() {
    while { read -r line </proc/$dg_task/stat; } 2>/dev/null; do  # bash takes it away at once
        case $line in *') Z '*) break ;; esac
    done
}
dg_carry_out '' 0 0 "$@"
echo "$dg_code $dg_flags" >result
"""


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("script", "code", "flags"),
    [
        *((f"kill -s {number.name[3:]} $$", 128 + number, "s") for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)),
        ("exit 139", 139, "-"),
        ("exit 3", 3, "-"),
    ],
)
def test_a_task_that_ends_before_it_is_waited_for(tmp_path: Path, shell: str, script: str, code: int, flags: str) -> None:
    """A task that SIGSEGV ended was told to have exited with 139, because a shell says nothing of what ended before it waits."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "program"
    program.write_text((resources.files(attempts) / "attempt.sh").read_text() + LATE)
    subprocess.run([*SHELLS[shell], str(program), "sh", "-c", script], cwd=tmp_path, check=True, timeout=DEADLINE)
    assert (tmp_path / "result").read_text().split() == [str(code), flags]


# `kill` notes its arguments and sends the guards nothing, so that they do not hear that the attempt is over, as when a shell
# loses the signal.
DEAF = """
dg_find_tools
dg_home=$PWD dg_in=/dev/null dg_out=$PWD/out dg_err=$PWD/err dg_mark=MARK=1 dg_timeout=0.1 dg_grace=0
dg_cause=$PWD/cause dg_refused=$PWD/refused dg_said=$PWD/said dg_times=$PWD/times dg_stopping=
dg_begun() { :; }
kill() {
    echo "$over $*" >>killed
    case " $* " in *" $dg_guards "*) ;; *) command kill "$@" ;; esac
}
over=no
dg_carry_out '' 0 0 "$@"
over=yes
wait $dg_guards || :
"""


# The guard's time is over once the attempt is, however slow the machine is.
OVER_FIRST = """
sleep() { until [ -e "$dg_times" ]; do command sleep 0.01; done; }
"""


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("stale", [False, True], ids=["first", "again"])
def test_a_guard_that_was_not_told_of_the_end_ends_nobody(tmp_path: Path, shell: str, stale: bool) -> None:
    """A guard that went on sent its signals to whatever process group had the number of the task's group by then."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "program"
    program.write_text((resources.files(attempts) / "attempt.sh").read_text() + OVER_FIRST + DEAF)
    if stale:
        (tmp_path / "times").write_text("of an execution before")
    subprocess.run([*SHELLS[shell], str(program), "true"], cwd=tmp_path, check=True, timeout=DEADLINE)
    lines = (tmp_path / "killed").read_text().splitlines()
    assert len(lines) == 2  # the shell itself signals the guard and the group
    assert not (tmp_path / "cause").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_timeout_is_kept_where_the_script_was_executed_before(tmp_path: Path, shell: str) -> None:
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "program"
    program.write_text((resources.files(attempts) / "attempt.sh").read_text() + DEAF)
    (tmp_path / "times").write_text("of an execution before")
    subprocess.run([*SHELLS[shell], str(program), "sleep", "1000"], cwd=tmp_path, check=True, timeout=DEADLINE)
    assert (tmp_path / "cause").read_text() == "timeout\n"


# Each task stops the shell that waits for it, and ends at the same moment. So a signal interrupts the `wait` that ends.
STOPS = """
dg_find_tools
dg_home=$PWD dg_in=/dev/null dg_out=$PWD/out dg_err=$PWD/err dg_mark=MARK=1 dg_timeout= dg_grace=1000
dg_begun() { :; }
count=0
while [ "$count" -lt "$1" ]; do
    own=$PWD/$count
    dg_cause=$own.cause dg_refused=$own.refused dg_said=$own.said dg_times=$own.times
    dg_take_stops
    dg_carry_out '' 0 0 sh -c 'kill -s CONT "$0"; kill -s TERM "$0"' $$
    echo "$dg_code" >>codes
    count=$((count + 1))
done
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_stop_that_comes_as_the_task_ends(tmp_path: Path, shell: str) -> None:
    """In bash, the script sometimes waited for a task that had ended, until Slurm killed it."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "program"
    program.write_text((resources.files(attempts) / "attempt.sh").read_text() + STOPS)
    subprocess.run([*SHELLS[shell], str(program), str(TRIALS)], cwd=tmp_path, check=True, timeout=DEADLINE)
    codes = (tmp_path / "codes").read_text().split()
    assert len(codes) == TRIALS
    assert set(codes) <= {"0", "143"}


# A stand-in for guards notes which there are, and ends nobody; `kill` notes whom the script tells that the attempt is over.
STARTING = """
dg_find_tools
dg_home=$PWD dg_in=/dev/null dg_out=$PWD/out dg_err=$PWD/err dg_mark=MARK=1 dg_timeout=1000 dg_grace=1000
dg_cause=$PWD/cause dg_refused=$PWD/refused dg_said=$PWD/said dg_times=$PWD/times
dg_begun() { :; }
dg_guard() {
    trap exit USR1
    sh -c 'echo $PPID' >>guards
    until [ -e "$dg_times" ]; do command sleep 0.01; done
    exit
}
kill() {
    case $1 in -USR1) shift && echo "$@" >>told && set -- -USR1 "$@" ;; esac
    command kill "$@"
}
dg_take_stops
dg_carry_out '' 0 0 sh -c 'until [ -s guards ]; do sleep 0.01; done'
wait
"""


def stopped_at(point: int, text: str) -> str | None:
    """attempt.sh with a stop that comes as a task is being started, behind a line there; None if there are not so many."""
    lines = text.splitlines(keepends=True)
    begins = next(number for number, line in enumerate(lines) if line.strip() == 'dg_become "$@" &')
    after = [begins]
    inside = False  # a subshell, which is not stopped
    for number in range(begins + 1, len(lines)):
        line = lines[number].strip()
        if line == "dg_code=":
            break
        inside = line == "{" or (inside and not line.startswith("}"))
        if not inside and not line.startswith("#") and not line.endswith("then"):
            after.append(number)
    if point >= len(after):
        return None
    lines.insert(after[point] + 1, "command kill -s TERM $$\n")
    return "".join(lines)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_stop_that_comes_as_the_task_is_started_is_heeded_and_leaves_no_guard(tmp_path: Path, shell: str) -> None:
    """The guard that it made was forgotten, or the one that keeps the time was: it slept on until the grace was over."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    text = (resources.files(attempts) / "attempt.sh").read_text()
    for point in itertools.count():
        stopped = stopped_at(point, text)
        if stopped is None:
            break
        home = tmp_path / str(point)
        home.mkdir()
        (home / "program").write_text(stopped + STARTING)
        subprocess.run([*SHELLS[shell], "program"], cwd=home, check=True, timeout=DEADLINE)
        assert (home / "cause").read_text() == "kill\n", "the stop is not lost"
        told = (home / "told").read_text().split()
        assert set((home / "guards").read_text().split()) <= set(told), f"the stop came behind line {point}"
    assert point > 5
