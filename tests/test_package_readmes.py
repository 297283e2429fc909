"""What the README.md of packages say of the tree: each file and each name that they mention exists, and no file is left out.

The checks are tried on a made-up tree as well, so that they cannot pass because they find nothing. `test_docs.py` holds what the
root's README promises to users.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("daggyr_server", "daggyr_agent", "protos", "tests", "deploy", "examples")
READMES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "CONTRIBUTING.md", *(r for top in TOPS for r in (ROOT / top).rglob("README.md")))
)
FILE = re.compile(rf"(?:[\w.-]+/)*[\w-]+\.(?:py|sql|sh|proto|toml|yaml|svg|md)|(?:[\w.-]+/)+|(?:{'|'.join(TOPS)})/[\w./-]+")
NAME = re.compile(r"_?[A-Za-z]\w*(?:\.\w+)*(?:\(\))?")
SOURCES = {".py", ".proto", ".sql", ".sh", ".toml", ".yaml", ""}
# What a program makes when it runs, and what users call files of their own.
MADE = {"output/", "coordinator.toml"}

# Packages whose README tells of every module, and folders in them of which it tells as a whole.
COMPLETE = (
    "daggyr_agent",
    "protos/daggyr",
    *(f"daggyr_server/{name}" for name in ("core", "spec", "trackers", "executors", "cli")),
)
WHOLE = {
    "protos/daggyr/attempts": "attempts/",
    "protos/daggyr/client": "client/",
    "protos/daggyr/v1": "v1/*.proto",
    "daggyr_server/trackers/memory": "memory/",
    "daggyr_server/cli/commands": "commands/*",
}


def spans(text: str) -> Iterator[str]:
    """The texts between backquotes, outside of blocks of code."""
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def files_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not any(
            part.startswith((".", "__pycache__")) or "_pb2" in part for part in path.parts[len(folder.parts) :]
        ):
            yield path


def missing_files(root: Path, readme: Path) -> list[str]:
    """The paths in a README that lead nowhere: from its folder, from the root, or as the end of a path below its folder."""
    folder = readme.parent
    below = {f"/{path.relative_to(folder)}" for path in files_below(folder)}
    found = []
    for name in spans(readme.read_text(encoding="utf-8")):
        places = (folder, root, root / "protos")
        if FILE.fullmatch(name) and name not in MADE and not any((place / name).exists() for place in places):
            end = f"/{name.rstrip('/')}"
            if not any(path.endswith(end) or f"{end}/" in path for path in below):
                found.append(name)
    return found


def words_of(root: Path) -> frozenset[str]:
    """All words of the sources."""
    texts = (path.read_text("utf-8", "replace") for top in TOPS for path in files_below(root / top) if path.suffix in SOURCES)
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


def members_of(root: Path) -> dict[str, set[str]]:
    """The words inside each class of the sources, by the class's name."""
    members: dict[str, set[str]] = {}
    for top in TOPS:
        for path in files_below(root / top):
            if path.suffix == ".py":
                text = path.read_text("utf-8")
                lines = text.splitlines()
                for node in ast.walk(ast.parse(text)):
                    if isinstance(node, ast.ClassDef):
                        body = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                        members.setdefault(node.name, set()).update(re.findall(r"\w+", body))
    return members


def missing_names(readme: Path, words: frozenset[str], members: dict[str, set[str]]) -> list[str]:
    """The names in a README of which a word is nowhere in the sources; of `Class.member`, the member has to be in the class."""
    found = []
    for name in spans(readme.read_text(encoding="utf-8")):
        if NAME.fullmatch(name) and not FILE.fullmatch(name):
            parts = re.findall(r"\w+", name)
            inside = members.get(parts[0], set()) if len(parts) == 2 and parts[0] in members else words
            if parts[0] not in words or not inside.issuperset(parts[1:]):
                found.append(name)
    return found


def left_out(root: Path, package: str, whole: dict[str, str]) -> list[str]:
    """The modules of a package of which its README does not tell, and that are in no folder of which it tells as a whole."""
    folder = root / package
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = "\n".join([*spans(text), *re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)])
    found = []
    for path in files_below(folder):
        within = next((sign for part, sign in whole.items() if root / part in path.parents), None)
        if path.suffix == ".py" and not path.name.startswith("__"):
            named = within in code if within is not None else re.search(rf"(?<!\w){path.stem}(?!\w)", code)
            if not named:
                found.append(str(path.relative_to(folder)))
    return found


@pytest.mark.parametrize("readme", READMES)
def test_each_file_that_it_names_is_there(readme: str) -> None:
    assert missing_files(ROOT, ROOT / readme) == []


def test_each_name_that_they_name_is_in_the_sources() -> None:
    words, members = words_of(ROOT), members_of(ROOT)
    assert {readme: found for readme in READMES if (found := missing_names(ROOT / readme, words, members))} == {}


@pytest.mark.parametrize("package", COMPLETE)
def test_it_tells_of_every_module(package: str) -> None:
    assert left_out(ROOT, package, WHOLE) == []


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    package = tmp_path / "daggyr_agent"
    (package / "inner").mkdir(parents=True)
    for name in ("one.py", "two.py", "inner/three.py"):
        (package / name).write_text("class Thing:\n    def known(self): ...\n\ndef other(): ...\n")
    readme = package / "README.md"
    readme.write_text(
        "`one.py`, `gone.py`, `inner/`, `other/`, `inner/three.py`, `Thing.known`, `Thing.other`, `Nothing`, `other()`\n"
    )
    assert missing_files(tmp_path, readme) == ["gone.py", "other/"]
    assert missing_names(readme, words_of(tmp_path), members_of(tmp_path)) == ["Thing.other", "Nothing"]
    assert left_out(tmp_path, "daggyr_agent", {"daggyr_agent/inner": "inner/"}) == ["two.py"]
