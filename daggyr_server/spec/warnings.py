"""Warns of what is valid in a specification and most likely not meant: misspelt parameters, parameters that nobody uses, `~`.

`templates` passes it the text of each task, and `expand` asks for the sentences after the last one. A warning never refuses
anything, and there are only a few of them, however many tasks have the same mistake.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable

from daggyr_server.spec.document import Details
from daggyr_server.spec.faults import at, quoted, shown

MAX_WARNINGS = 20
_MAX_KEPT = 1_000
_MAX_STYLES = 8
_MAX_CANDIDATES = 500
_BRACES = ("{{", "}}")  # the documentation writes parameters so; these are looked for in a run without parameters, too
_STYLE = re.compile(r"(?P<before>[^\w\s]{0,8})\w(?:[\w.-]{0,98}\w)?(?P<after>[^\w\s]{0,8})")
_SHELL_OPTION = re.compile(r"-\w*c")  # the word after it is a script, in which a shell replaces `~`
_MOST_WORDS = 1_000  # as many words of a command are looked at
_ALIKE = 0.7  # how like a known name a text must be, from 0 to 1, if it is not written as the documentation does


class Warnings:
    """The warnings of one document."""

    def __init__(self, parameters: Iterable[str]) -> None:
        """`parameters` are the names of the run's parameters."""
        self._known = frozenset(parameters)
        self._unused = set(self._known)
        self._generators = False
        self.marks: tuple[str, ...] = ()  # the beginnings of texts that look like parameters
        self._styles: dict[tuple[str, str], re.Pattern[str]] = {}
        self._alike: dict[str, str] = {}  # text that looks like a parameter -> the first place that has it
        self._unused_of_tasks: dict[str, str] = {}  # place of a parameter -> its name
        self._left_out = 0
        self._seen: set[tuple[str, ...]] = set()  # sets of parameters that were replaced in one task
        self._odd: dict[str, str] = {}  # place -> what is odd there
        self._learn(_BRACES)
        for name in sorted(self._known)[:_MAX_CANDIDATES]:
            self._learn_from(name)

    def task(self, place: str, text: str, own: Collection[str], used: Collection[str], *, generates: bool) -> None:
        """Look at a task with the texts `text` and parameters of its `own`. `used` are the parameters that are replaced in it."""
        self._generators = self._generators or generates
        if self._unused:
            self._unused.difference_update(used)
        if own:
            replaced = frozenset(used)
            for parameter in own:
                if parameter not in replaced:
                    self._keep(self._unused_of_tasks, at(f"{place}.parameters", parameter), parameter)
        for (before, _), style in self._styles.items():
            if before in text:
                for found in style.findall(text):
                    if found not in self._known and found not in own and found not in self._alike:
                        self._keep(self._alike, found, f"{place}.details")

    def has_only(self, used: tuple[str, ...], text: str) -> bool:
        """Whether everything in a text that looks like a parameter is one of `used`, and these were seen in a task before.

        Most tasks are like that, and need no closer look.
        """
        if used not in self._seen or len(self.marks) > 1:
            if len(self._seen) < _MAX_KEPT:
                self._seen.add(used)
            return False
        mark = self.marks[0]
        left = text.count(mark)
        for name in used:
            left -= text.count(name) * name.count(mark)
        return not left

    def command(self, place: str, details: Details) -> None:
        """Look at a task whose program has a blank in its name, or that has `~` in one of its texts."""
        program = details.command[0]
        if " " in program.strip() and "/" not in program:
            words = json.dumps(program.split()[:5], ensure_ascii=False)
            self._keep(
                self._odd,
                f"{place}.details.command[0]",
                f"{quoted(program)} is taken as one program's name; write {shown(words)} if it is a program and its arguments",
            )
        words_before = ["", *details.command]
        for index, word in enumerate(details.command[:_MOST_WORDS]):
            if word.startswith("~/") and not _SHELL_OPTION.fullmatch(words_before[index][:20]):
                self._tilde(f"{place}.details.command[{index}]", word)
        if isinstance(details.working_directory, str) and details.working_directory.startswith("~"):
            self._tilde(f"{place}.details.working_directory", details.working_directory)

    def _tilde(self, place: str, text: str) -> None:
        self._keep(self._odd, place, f"the `~` of {quoted(text)} stays as it is, because no shell reads it; write the whole path")

    def sentences(self) -> list[str]:
        """At most MAX_WARNINGS warnings, and a last sentence that says how many more there are."""
        made = [f"{place}: {words}" for place, words in self._odd.items()]
        for text, place in self._alike.items():
            likely = _nearest(text, self._known)
            braces = text.startswith(_BRACES[0])
            if likely or braces:
                hint = f"did you mean {quoted(likely)}?" if likely else "parameters are listed under `parameters`"
                made.append(f"{place}: {quoted(text)} is no parameter, and stays as it is; {hint}")
        unused = [] if self._generators else [(at("parameters", name), name) for name in sorted(self._unused)]
        for place, name in [*unused, *self._unused_of_tasks.items()]:
            likely = _nearest(name, self._alike)
            hint = f"; did you mean it where {quoted(likely)} stands?" if likely else ""
            where = "in the task" if place.startswith("tasks.") else "in any task"
            made.append(f"{place}: the parameter {quoted(name)} does not occur {where}, and multiplies nothing{hint}")
        left_out = len(made) - MAX_WARNINGS + self._left_out
        return [*made[:MAX_WARNINGS], f"and {left_out:,} more"] if left_out > 0 else made

    def _keep(self, kept: dict[str, str], key: str, value: str) -> None:
        if len(kept) < _MAX_KEPT:
            kept[key] = value
        else:
            self._left_out += 1

    def _learn_from(self, name: str) -> None:
        style = _STYLE.fullmatch(name) if len(name) <= 120 else None
        if style is not None and style["before"]:
            self._learn((style["before"], style["after"]))

    def _learn(self, style: tuple[str, str]) -> None:
        if style not in self._styles and len(self._styles) < _MAX_STYLES:
            before, after = map(re.escape, style)
            blank = r"\s{0,3}" if style[1] else ""
            end = after or r"(?!\w)"
            self._styles[style] = re.compile(rf"{before}{blank}\w(?:[\w.-]{{0,98}}\w)?{blank}{end}")
            self.marks = tuple({before for before, _ in self._styles})


def _nearest(text: str, known: Iterable[str]) -> str:
    alike = {_folded(name): name for name in known if abs(len(name) - len(text)) <= 6}
    found = difflib.get_close_matches(_folded(text), list(alike)[:_MAX_CANDIDATES], n=1, cutoff=_ALIKE)
    return alike[found[0]] if found else ""


def _folded(text: str) -> str:
    return "".join(text.lower().split())
