"""What a process has open, by proc_pid_fd(5): for tests that ask whether a lock or a file without a name is held."""

from __future__ import annotations

from pathlib import Path


def open_files(pid: int) -> dict[Path, str]:
    """The links of a process's descriptors, and what they point to. What is closed meanwhile is left out."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[link] = str(link.readlink())
        except FileNotFoundError:
            continue
    return found


def nameless(pid: int, folder: Path) -> list[Path]:
    """The links of the open files that were made in `folder`, a real path, and have no name any more."""
    return [link for link, file in open_files(pid).items() if file.startswith(f"{folder}/") and file.endswith(" (deleted)")]
