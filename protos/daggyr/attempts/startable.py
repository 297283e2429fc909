"""What cannot be started: the rules that hold anywhere, and the sentence for each fault, whoever finds it.

Every executor has `check` look at a task before it starts it, and `check_sizes` where it cannot ask the kernel itself. What
only the host of the task can know (no such program, no such folder) has its sentence here as well: the agent calls the functions,
and `refusal` makes a sentence of what a shell has told (dg_refuse in attempt.sh). This module looks at no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from daggyr.attempts.keys import Ident

MAX_WORD_BYTES = 128 * 1024  # of one argument or variable with its NUL: MAX_ARG_STRLEN with pages of 4 KiB, execve(2)
MAX_WORDS_BYTES = 2 * 1024 * 1024 - 128 * 1024  # of all of them: a quarter of the usual stack limit, less what the host adds
_POINTER_BYTES = 8  # that the kernel counts for each argument and variable

_MAX_SHOWN = 300  # characters of a user's text in a note


class NotStartable(ValueError):
    """A task that cannot be started, here or anywhere like here. The message is the note for its user."""


def shown(text: str | bytes) -> str:
    """A user's text in quotes, as notes show it: without control characters, and not too long."""
    quoted = repr(text.decode(errors="replace") if isinstance(text, bytes) else text)
    return quoted if len(quoted) <= _MAX_SHOWN else quoted[:_MAX_SHOWN] + "...'"


# -- rules that hold anywhere


def task_environment(ident: Ident, task_id: str, own: Mapping[str, str]) -> dict[str, str]:
    """The variables of one attempt: those that name it, and over them the task's own."""
    run_id, _, attempt, life = ident
    names = {"DAGGYR_RUN_ID": str(run_id), "DAGGYR_TASK_ID": task_id, "DAGGYR_ATTEMPT": str(attempt), "DAGGYR_LIFE": f"{life:x}"}
    return {**names, **own}


def check(command: Sequence[str], environment: Mapping[str, str], working_directory: str) -> None:
    """Raises NotStartable for what no host could start, whatever its kernel and its files are."""
    if not command or not command[0]:
        raise NotStartable("the command is empty")
    for name in environment:
        if not name or "=" in name:
            raise NotStartable(f"no variable of the environment can be called {shown(name)}")
    text = "".join((*command, *environment, *environment.values(), working_directory))
    if "\0" in text:
        raise NotStartable("the command or its environment holds a NUL character, which cannot be passed on")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = shown(text[error.start])
        raise NotStartable(f"the command or its environment holds half of a character, {half}, which has no bytes") from None


def words_of(command: Iterable[str], environment: Mapping[str, str]) -> list[bytes]:
    """What execve(2) is given of a task: its arguments, and its variables as NAME=VALUE."""
    return [word.encode() for word in (*command, *(f"{name}={value}" for name, value in environment.items()))]


def check_sizes(words: Sequence[bytes]) -> None:
    """Raises NotStartable for words (see `words_of`) that are too long for a usual Linux host."""
    sizes = [len(word) + 1 for word in words]
    if max(sizes) > MAX_WORD_BYTES or sum(sizes) + _POINTER_BYTES * len(sizes) > MAX_WORDS_BYTES:
        raise too_long(words)


def too_long(words: Sequence[bytes]) -> NotStartable:
    """For words that the kernel does not take (E2BIG of execve(2))."""
    longest = max(map(len, words))
    if longest >= MAX_WORD_BYTES:
        what = f"an argument or variable is too long for this host: {longest} bytes, where Linux takes {MAX_WORD_BYTES - 1}"
    else:
        what = f"the command and its environment are too long for this host: {sum(map(len, words)) + len(words)} bytes"
    return NotStartable(f"{what} (execve(2))")


# -- what only the host of the task can know. `home` is the folder where tasks start, as `shown` or in words; `reason` is the
# -- kernel's, as strerror(3) has it.


def no_home(home: str) -> str:
    return f"the folder where tasks start cannot be entered: {shown(home)}"


def no_folder(folder: str, home: str) -> str:
    return f"no such folder: working_directory {shown(folder)} (relative ones count from {home})"


def not_entered(folder: str, reason: str) -> str:
    return f"cannot enter working_directory {shown(folder)}: {reason}"


def not_in_path(program: str, path: str) -> str:
    return f"no such program: {shown(program)} is in none of the folders of PATH={shown(path)}"


def no_program(program: str, home: str, folder: str) -> str:
    """For a program that is given as a path; a relative one is looked for in the task's working directory, `folder`."""
    if program.startswith("/"):
        return f"no such program: {shown(program)}"
    if folder.startswith("/"):
        return f"no such program: {shown(program)} in {shown(folder)}"
    return f"no such program: {shown(program)} in {home}" + (f", working_directory {shown(folder)}" if folder else "")


def not_executable(program: str) -> str:
    return f"{shown(program)} is not executable: chmod +x it gives the permission"


def is_folder(program: str) -> str:
    return f"{shown(program)} is a folder, not a program"


def not_executed(program: str, reason: str) -> str:
    """For a program that is there and may be executed, and that the kernel does not execute, with its reason."""
    return f"cannot start {shown(program)}: {reason}"


def no_interpreter(program: str, interpreter: str) -> str:
    return f"{shown(program)} names an interpreter in its first line that is not there: {shown(interpreter)}"


def windows_line_ends(program: str) -> str:
    return rf"{shown(program)} has Windows line ends, so that its first line names no program: sed -i 's/\r$//' takes them away"


def no_loader(program: str) -> str:
    return f"{shown(program)} needs a loader that is not there: it was made for another system"


def no_format(program: str) -> str:
    return f"{shown(program)} is neither a binary for this host nor a script with a first line like #!/bin/sh"


def refusal(told: bytes) -> str:
    """The sentence for what a shell has told with dg_refuse: a word and its texts, with a NUL after each."""
    word, *texts = told.decode(errors="replace").split("\0")[:-1] or [""]
    match word, texts:
        case "home", [home]:
            return no_home(home)
        case "folder", [folder, home]:
            return no_folder(folder, shown(home))
        case "enter", [folder, reason]:
            return not_entered(folder, reason)
        case "path", [program, path]:
            return not_in_path(program, path)
        case "program", [program, home, folder]:
            return no_program(program, shown(home), folder)
        case "executable", [program]:
            return not_executable(program)
        case "directory", [program]:
            return is_folder(program)
        case "execute", [program, "No such file or directory"]:
            return not_executed(program, "its loader, or the interpreter that its first line names, is not there")
        case "execute", [program, reason]:
            return no_format(program) if reason == "Exec format error" else not_executed(program, reason)
        case "tool", [tool, host]:
            return f"there is no {tool} on {host}, which attempts need"
    return told.decode(errors="replace").strip("\0\n")  # an earlier version's sentence
