"""Values that cannot be true, in updates of executors that cannot be refused: they are left out with a note."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from daggyr.attempts.kept import CHUNK_BYTES
from daggyr.v1.task_pb2 import FAILED, STDERR, STDOUT, SUCCEEDED, AttemptKey, AttemptResult, AttemptUpdate, OutputChunk
from daggyr_server.executors.believable import MAX_NOTE_BYTES, MAX_NOTES, mended
from daggyr_server.executors.slurm.jobs.submission_folder import Manifest, SubmissionFolder
from daggyr_server.executors.ssh.output import Output
from daggyr_server.executors.ssh.script import parse_ended

KEY = AttemptKey(run_id=1, attempt=1)


def test_what_is_sound_stays_as_it_was() -> None:
    result = AttemptResult(outcome=SUCCEEDED, exit_code=0, cpu_seconds=1.5, max_rss_bytes=2**40, notes=["a word"])
    result.start_time.seconds, result.stop_time.seconds = 1_700_000_000, 1_600_000_000  # the clock was set back
    result.stdout.size_bytes, result.stdout.cut_offset, result.stdout.cut_bytes = 100, 20, 80
    updates = [
        AttemptUpdate(key=KEY, started={"start_time": {"seconds": 5}}),
        AttemptUpdate(key=KEY, output=OutputChunk(stream=STDOUT, data=b"x" * CHUNK_BYTES)),
        AttemptUpdate(key=KEY, finished=result),
        AttemptUpdate(key=KEY),  # of a kind that only a later version knows
    ]
    copies = [AttemptUpdate.FromString(update.SerializeToString()) for update in updates]
    assert mended(updates) == copies


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exit_code", 256),
        ("exit_code", -1),
        ("signal", 65),
        ("cpu_seconds", math.nan),
        ("cpu_seconds", math.inf),
        ("cpu_seconds", -1.0),
        ("max_rss_bytes", 2**64 - 1),
        ("start_time", {"seconds": 10**11 * 31_556_952}),
        ("stop_time", {"seconds": -1}),
        ("stop_time", {"seconds": 1, "nanos": 10**9}),
        ("stdout", {"size_bytes": 1, "cut_offset": 1, "cut_bytes": 1}),
        ("stderr", {"size_bytes": 2**63}),
    ],
)
def test_what_cannot_be_is_left_out_with_a_note(field: str, value: Any) -> None:
    fields: dict[str, Any] = {"outcome": FAILED, field: value}
    (update,) = mended([AttemptUpdate(key=KEY, finished=AttemptResult(**fields))])
    assert not update.finished.HasField(field)  # type: ignore[arg-type]
    assert update.finished.outcome == FAILED
    (note,) = update.finished.notes
    assert note.startswith(f"{field} is out of bounds") and note.endswith("; it is left out") and len(note) < 300


@pytest.mark.parametrize("outcome", [0, 99, -1])
def test_an_unknown_outcome_is_no_success(outcome: Any) -> None:
    (update,) = mended([AttemptUpdate(key=KEY, finished=AttemptResult(outcome=outcome))])
    assert update.finished.outcome == FAILED


@pytest.mark.parametrize("notes", [["é" * MAX_NOTE_BYTES], ["x"] * 100_000, ["x" * 100, *["y" * 5_000] * 60]])
def test_notes_without_end_are_cut(notes: list[str]) -> None:
    (update,) = mended([AttemptUpdate(key=KEY, finished=AttemptResult(outcome=FAILED, notes=notes))])
    kept = update.finished.notes
    assert len(kept) <= MAX_NOTES and sum(len(note.encode()) for note in kept) <= MAX_NOTE_BYTES
    assert kept[-1] == f"and {len(notes) - len(kept) + 1:,} more notes" if len(notes) > 1 else "bytes in all" in kept[0]
    assert notes[0].startswith(kept[0].partition("...")[0])


def test_output_comes_in_pieces_and_of_known_streams_only() -> None:
    data = bytes(range(256)) * 4 * 1024
    whole = AttemptUpdate(key=KEY, output=OutputChunk(stream=STDERR, offset=7, data=data + b"end"))
    stray = AttemptUpdate(key=KEY, output=OutputChunk(stream=3, data=b"x"))  # type: ignore[arg-type]
    pieces = [update.output for update in mended([whole, stray])]
    assert {piece.stream for piece in pieces} == {STDERR}
    assert b"".join(piece.data for piece in pieces) == data + b"end"
    assert [piece.offset for piece in pieces] == [7 + CHUNK_BYTES * number for number in range(5)]


def test_an_update_of_no_attempt_is_dropped() -> None:
    assert mended([AttemptUpdate(key=AttemptKey(run_id=1)), AttemptUpdate(finished=AttemptResult(outcome=FAILED))]) == []


@pytest.mark.parametrize(
    "words",
    [
        "256 - - - 1.00 2.00 0m0.00s 0m0.00s - .",
        "-1 - - - 1.00 2.00 0m0.00s 0m0.00s - .",
        f"0 - - - {'9' * 20}.00 2.00 0m0.00s 0m0.00s - .",
        "x - - - 1.00 2.00 - .",
    ],
)
def test_an_end_that_cannot_be_is_not_understood(words: str) -> None:
    """A target's shell tells such an end, and the connection is then begun anew."""
    with pytest.raises(ValueError):
        parse_ended(words.split())


def test_cpu_seconds_without_end_are_none_at_all() -> None:
    ended = parse_ended(f"0 - - - 1.00 2.00 {'9' * 400}m0.00s 0m0.00s - .".split())
    assert (ended.status, ended.cpu_seconds) == (0, None)


@pytest.mark.parametrize("sizes", ["-1 0 0", "10 6 6", "10 -1 5", f"{2**70} 5 5", "x 1 1"])
def test_sizes_of_output_that_contradict_each_other_are_not_understood(sizes: str) -> None:
    with pytest.raises(ValueError):
        Output(["1-0-1/stdout", *sizes.split()])


@pytest.mark.parametrize(
    ("start", "result"),
    [
        ("99999999999999999999.000000000\n", "status 1\nchildren \n"),
        ("1.000000000\n", f"status {'9' * 3_000}\nstop 1.000000000\nchildren \n"),
        ("1.000000000\n", "status -1\nstop 253402300800.000000000\nchildren 0m1e999s 0m0s\n"),
        ("1.000000000\n", f"status x\nchildren {'9' * 400}m0s 0m0s\n"),
    ],
)
def test_files_of_a_slurm_job_that_make_no_sense(tmp_path: Path, start: str, result: str) -> None:
    """A file that holds no status is taken for status 255, which is no success. Times that no clock tells are left out."""
    (tmp_path / "0.start").write_text(start)
    (tmp_path / "0.result").write_text(result)
    manifest = Manifest(name="n", keys=[(1, 0, 1)], timeout=0, whole_stdout_bytes=0)
    reported = SubmissionFolder(tmp_path, manifest).result(0)
    assert reported is not None and reported.status in (1, 255)
    finished = AttemptResult(outcome=FAILED, exit_code=reported.status)
    for time, told in ((finished.start_time, reported.start), (finished.stop_time, reported.stop)):
        if told is not None:
            time.FromNanoseconds(told)
    if reported.cpu_seconds is not None:
        finished.cpu_seconds = reported.cpu_seconds
    (update,) = mended([AttemptUpdate(key=KEY, finished=finished)])
    assert not update.finished.HasField("cpu_seconds")
