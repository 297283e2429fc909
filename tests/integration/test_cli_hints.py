"""What commands say where there is little to show, and which attempt's output they show."""

from __future__ import annotations

import pytest
from support.deployment import Deployment, shell, task


def test_lists_without_anything_say_so_beside_their_results(farm: Deployment) -> None:
    for arguments, hint in (
        (("runs",), "there are no runs yet\n"),
        (("runs", "--state", "killed"), "there are no such runs\n"),
        (("agents",), "no agent is connected\n"),
    ):
        ended = farm.daggyr(*arguments)
        assert (ended.code, ended.out, ended.err) == (0, "", hint)
        ended = farm.daggyr("--output", "json", *arguments)
        assert (ended.code, ended.json, ended.err) == (0, [], "")
    farm.submit({"a": shell("true")})
    ended = farm.daggyr("tasks", "last", "--state", "errored")
    assert (ended.code, ended.out, ended.err) == (0, "", "the run has no such tasks\n")


def test_the_output_of_each_attempt(local: Deployment) -> None:
    local.complete({"a": shell('echo "out $DAGGYR_ATTEMPT"; [ "$DAGGYR_ATTEMPT" = 2 ]', max_retries=1, retry_delay=0)})
    assert local.daggyr("logs", "last", "a").out == "out 2\n"
    for number in (1, 2):
        assert local.daggyr("logs", "last", "a", "--attempt", str(number)).out == f"out {number}\n"
    ended = local.daggyr("logs", "last", "a", "--attempt", "3")
    assert (ended.code, ended.out) == (2, "")
    assert "has had 2 attempts so far" in ended.err


@pytest.mark.parametrize("arguments", [("last",), ("last", "a"), ("last", "b", "-f")])
def test_an_attempt_of_what_is_more_than_one_task(local: Deployment, arguments: tuple[str, ...]) -> None:
    local.complete({"a": shell("echo X"), "b": shell("true")}, parameters={"X": ["1", "2"]})
    ended = local.daggyr("logs", *arguments, "--attempt", "1")
    assert (ended.code, ended.out) == (2, "")
    assert "--attempt is for one TASK" in ended.err


def test_output_on_standard_error_only_is_not_overlooked(local: Deployment) -> None:
    local.complete({"a": shell("echo trouble >&2"), "b": shell("echo fine; echo trouble >&2"), "c": shell("true")})
    ended = local.daggyr("logs", "last", "a")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == (
        "daggyr: nothing on standard output; standard error is not shown, 8 bytes: --stderr shows it, --both shows both\n"
    )
    assert local.daggyr("logs", "last", "a", "--stderr").out == "trouble\n"
    ended = local.daggyr("logs", "last", "b")
    assert ended.out == "fine\n"
    assert ended.err == "daggyr: standard error is not shown, 8 bytes: --stderr shows it, --both shows both\n"
    assert local.daggyr("logs", "last", "c").err == ""


def test_a_list_of_tasks_tells_how_much_the_last_attempts_wrote(local: Deployment) -> None:
    written = {
        "silent": shell("true"),
        "both": shell("echo out; echo error >&2"),
        "again": shell('[ "$DAGGYR_ATTEMPT" = 2 ] || { echo first; exit 1; }', max_retries=1, retry_delay=0),
        "never": task("/no/such/program"),
    }
    run_id = local.complete(written, code=1)["run_id"]
    expected = {"silent": (0, 0), "both": (4, 6), "again": (0, 0), "never": (None, None)}

    def sizes() -> dict[str, tuple[int | None, int | None]]:
        listed = local.json("tasks", str(run_id))
        return {each["task_id"]: (each["stdout_bytes"], each["stderr_bytes"]) for each in listed}

    assert sizes() == expected
    assert local.daggyr("logs", str(run_id)).out == "both | out\n"
    # What is changed moves the others to other numbers, under which none of their attempts is stored.
    local.json("edit", str(run_id), local.spec({"new": shell("echo new"), **written}))
    local.watch(run_id, code=1)
    assert sizes() == {"new": (4, 0), **expected}
    assert sorted(local.daggyr("logs", str(run_id)).out.splitlines()) == ["both | out", "new | new"]
