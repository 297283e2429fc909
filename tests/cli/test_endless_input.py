"""Specifications that are read from pipes and devices, which may never end and cannot be read twice."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import pytest

from daggyr_server.cli import document
from daggyr_server.cli.errors import CommandError

SPEC = b'{"tasks": {"a": {"details": {"command": ["true"]}}}}'


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_MAX_SPOOLED_BYTES", 3 * 1024**2)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_a_device_that_never_ends_is_refused(device: str) -> None:
    with (
        pytest.raises(CommandError, match=rf"{device} goes on after 3.0 MiB and is no file: write it to one"),
        document.json_document(device),
    ):
        pass


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("length", "fits"), [(3 * 1024**2, True), (3 * 1024**2 + 1, False)])
def test_a_pipe_is_read_whole_up_to_a_bound(tmp_path: Path, length: int, fits: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = SPEC.ljust(length)

    def write() -> None:
        with pipe.open("wb") as file:
            try:
                file.write(data)
            except BrokenPipeError:
                assert not fits

    writing = threading.Thread(target=write)
    writing.start()
    try:
        if fits:
            with document.json_document(str(pipe)) as found:
                assert found.read() == data
                found.seek(0)
                assert found.read() == data, "a second try sends the same"
        else:
            with pytest.raises(CommandError, match="goes on after"), document.json_document(str(pipe)):
                pass
    finally:
        writing.join()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_not_taken_for_a_fault_of_the_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=lambda: pipe.write_bytes(SPEC))
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda max_size: full)
        writing.start()
        with (
            pytest.raises(CommandError, match=r"cannot keep .*pipe in .* while it is read: No space left on device; .* TMPDIR"),
            document.json_document(str(pipe)),
        ):
            pass
    writing.join()
