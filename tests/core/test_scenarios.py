"""The ten stories that matter most, as texts in `scenarios/`, say what the machine says.

`REWRITE_SCENARIOS=1` writes into the texts what it says now, to be reviewed as any other change.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest
from scenario import UnreadableScenario, played

FOLDER = Path(__file__).parent / "scenarios"
STORIES = ("retry", "lost", "kill", "edit", "generator", "restore", "match", "priority", "shares", "reservation")


def differences(written: str, said: str) -> str:
    return "\n".join(difflib.unified_diff(written.splitlines(), said.splitlines(), "written", "said", n=8, lineterm=""))


def test_every_story_is_there_and_no_other() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(STORIES)


@pytest.mark.parametrize("name", STORIES)
def test_the_machine_says_what_is_written(name: str) -> None:
    path = FOLDER / f"{name}.txt"
    written = path.read_text()
    said = played(written)
    if os.environ.get("REWRITE_SCENARIOS"):
        path.write_text(said)
        return
    if said != written:
        pytest.fail(f"{path.name}:\n{differences(written, said)}", pytrace=False)


def test_what_is_said_is_in_the_text_and_what_is_not_is_not() -> None:
    """A comparison that passes means something."""
    said = played("host h cores=1\n----\n\nsubmit\n  a:\n----\n\nend 1 a FAILED 2\n----\nall is well\n")
    assert "record  AttemptRecorded   1:a#0/1 FAILED on h: the task is ERRORED" in said
    assert "record  RunMoved          run 1 is ERRORED at 0 s: 1 ERRORED" in said
    assert "all is well" not in said
    assert played(said) == said
    assert "-all is well" in differences("all is well", said)


def test_what_a_step_says_nothing_to_is_written_as_nothing() -> None:
    assert played("host h cores=1\n") == "host h cores=1\n----\nnothing\n"


@pytest.mark.parametrize("text", ["hst h", "end 1 a FAILED", "host h clsed", "host h\nsubmit\n  a:\nmark 1 a GREEN"])
def test_a_text_that_is_no_scenario_is_refused(text: str) -> None:
    with pytest.raises(UnreadableScenario):
        played(text)
