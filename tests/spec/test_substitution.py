"""The rule of substitution: the result equals a naive reading of the rule, and the work grows with the text alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daggyr.substitution import Substitution

LETTERS = "ab{}é"
NAMES = st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=8, unique=True)
# The same kind of names, but so many that a regular expression would be the wrong tool.
MANY = [f"{letter}{number}" for letter in "ab{" for number in range(100)]


def naive(text: str, names: list[str]) -> Iterator[tuple[int, str]]:
    """Find the places where names are replaced, by the words of the documentation."""
    place = 0
    while place < len(text):
        found = max((name for name in names if text.startswith(name, place)), key=len, default="")
        if found:
            yield place, found
        place += len(found) or 1


def replaced(text: str, names: list[str], values: Mapping[str, str]) -> str:
    made, done = "", 0
    for place, name in naive(text, names):
        made += text[done:place] + values[name]
        done = place + len(name)
    return made + text[done:]


@pytest.mark.parametrize("others", [[], MANY], ids=["few", "many"])
@pytest.mark.parametrize("apart", [False, True], ids=["one set", "two sets"])
@given(names=NAMES, text=st.text(LETTERS + "01", max_size=60), data=st.data())
def test_names_are_replaced_as_a_naive_reading_of_the_rule_says(
    others: list[str], apart: bool, names: list[str], text: str, data: st.DataObject
) -> None:
    every = [*names, *(name for name in others if name not in names)]
    if apart:
        some = data.draw(st.integers(0, len(every)))
        rule = Substitution(every[:some], Substitution(every[some:]))
    else:
        rule = Substitution(every)
    wanted = Counter(name for _, name in naive(text, every))
    assert rule.occurring([text]) == set(wanted)
    assert rule.count(text) == wanted
    # The values hold names themselves, which must not be searched again.
    values = {name: f"<{every[(index + 1) % len(every)]}>" for index, name in enumerate(every)}
    assert rule.apply(text, values) == replaced(text, every, values)


@pytest.mark.parametrize("count", [400, 400_000])
def test_names_that_begin_alike_cost_no_more_than_others(count: int) -> None:
    """Names that begin alike are not tried one by one, which would compare hundreds of characters at each place: it took 47 s."""
    names = ["a" * number + "b" for number in range(1, 300)]
    rule = Substitution(names)
    text = "a" * count
    assert rule.occurring([text]) == set()
    assert rule.apply(text + "b", dict.fromkeys(names, "x")) == "a" * (count - 299) + "x"
