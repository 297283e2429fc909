"""attempt.sh by itself, in the shells that a host may have as /bin/sh."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.readme_examples import ROOT

from daggyr.attempts import shell
from daggyr.attempts.kept import KEPT_BYTES, MOST_BYTES, kept_of, limit_of

SHELLS = [
    pytest.param(words, id=words[0])
    for words in (["dash"], ["bash", "--posix"], ["busybox", "sh"])
    if shutil.which(words[0]) is not None
]
PROGRAMS = ("daggyr_server/executors/ssh/remote.sh", "daggyr_server/executors/slurm/jobs/job.sh")


@pytest.mark.parametrize("words", SHELLS)
def test_a_shell_keeps_the_same_bytes(words: list[str]) -> None:
    near = [0, 1, 2, 3, 7, 8, KEPT_BYTES - 1, KEPT_BYTES, KEPT_BYTES + 1, 5 * KEPT_BYTES, MOST_BYTES, 2**64 - 1]
    cases = [(size, limit) for size in near[:-2] for limit in near]
    calls = "".join(f"dg_keep {size} {limit_of(limit)}; echo $dg_head $dg_tail $dg_cut\n" for size, limit in cases)
    calls += "".join(f"dg_keep {size} 0; echo $dg_head $dg_tail $dg_cut\n" for size, _ in cases)
    printed = subprocess.run(words, input=shell.text() + calls, capture_output=True, text=True, check=True).stdout
    expected = [kept_of(size, limit) for size, limit in cases] + [kept_of(size) for size, _ in cases]
    assert printed.splitlines() == [f"{each.head} {each.tail} {each.cut}" for each in expected]


@pytest.mark.parametrize("words", SHELLS)
def test_a_signal_is_told_however_soon_the_task_has_ended(words: list[str], tmp_path: Path) -> None:
    """Here the shell is busy for longer than the task lives, before it waits for it."""
    names = ("out", "err", "said", "cause", "refused", "times")
    settings = f"cd {tmp_path}; dg_home=/ dg_in=/dev/null dg_mark=A=b dg_timeout= dg_grace=1 "
    settings += " ".join(f"dg_{name}={tmp_path}/{name}" for name in names)
    busy = 'wait() { n=0; while [ $n -lt 50000 ]; do n=$((n + 1)); done; command wait "$@"; }'
    calls = "dg_begun() { :; }; dg_find_tools; dg_take_stops; dg_carry_out '' 0 0 sh -c 'kill -KILL $$'; echo $dg_code $dg_flags"
    (tmp_path / "script").write_text(f"{shell.text()}{settings}\n{busy}\n{calls}\n")
    printed = subprocess.run([*words, tmp_path / "script"], capture_output=True, text=True, check=True).stdout
    assert printed == "137 s\n"


@pytest.mark.parametrize("words", SHELLS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_both_programs_are_read_without_a_fault(words: list[str], program: str) -> None:
    text = shell.text() + (ROOT / program).read_text(encoding="utf-8")
    checked = subprocess.run([*words, "-n"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_what_is_shared_stands_once() -> None:
    """No function of attempt.sh is defined again by one of the programs, which would then go its own way."""
    shared = _functions(shell.text())
    for program in PROGRAMS:
        assert shared & _functions((ROOT / program).read_text(encoding="utf-8")) == set()
    assert Path(shell.__file__).with_name("attempt.sh").is_file()


def _functions(text: str) -> set[str]:
    return {line.removesuffix("() {") for line in text.splitlines() if line.endswith("() {")}
