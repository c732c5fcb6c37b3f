"""Stop strings against a brute-force reading of the whole text, at every cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.generation.stopping import StopMatcher

Matcher = Callable[[list[str]], StopMatcher]


def brute_force(text: str, stop: list[str]) -> tuple[str, bool]:
    """Read letter by letter: the first complete stop string ends the text, the longest if several are."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def run(matcher: StopMatcher, pieces: list[str]) -> tuple[str, bool, list[str]]:
    """(text, stopped, the parts emitted on the way)."""
    emitted = [matcher.push(piece) for piece in pieces]
    if not matcher.stopped:
        emitted.append(matcher.finish())
    return "".join(emitted), matcher.stopped, emitted


def check_all_cuts(make: Matcher, text: str, stop: list[str]) -> None:
    """Every way of cutting `text` into pieces gives the brute-force result."""
    wanted = brute_force(text, stop)
    for number in range(len(text)):
        for cuts in combinations(range(1, len(text)), number):
            bounds = [0, *cuts, len(text)]
            pieces = [text[a:b] for a, b in pairwise(bounds)]
            got, stopped, emitted = run(make(stop), pieces)
            assert (got, stopped) == wanted, pieces
            # What was emitted before the end is never taken back: each prefix is a prefix of the result.
            assert all(wanted[0].startswith("".join(emitted[:n])) for n in range(len(emitted)))


CASES = [
    ("the END", ["END"]),
    ("aENDb", ["END"]),
    ("abcd", ["abcd", "bc"]),
    ("xabcab", ["abcabc", "cab"]),
    ("aaaaaa", ["aaaa"]),
    ("no stop", []),
    ("enEN!END", ["END", "!"]),
    ("é\n\nx", ["\n\n", "\nx"]),
    ("ENENEND", ["END"]),
    ("tail EN", ["END"]),
    ("xab", ["ab", "xab"]),
]


@pytest.mark.parametrize(("text", "stop"), CASES)
def test_every_cut_gives_the_same_text(text: str, stop: list[str]) -> None:
    check_all_cuts(StopMatcher, text, stop)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("ab", max_size=6), max_size=6),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
def test_random_pieces_equal_brute_force(pieces: list[str], stop: list[str]) -> None:
    assert run(StopMatcher(stop), pieces)[:2] == brute_force("".join(pieces), stop)


class MatchesPieces(StopMatcher):
    """Broken control: looks at each piece alone, as matching on tokens does."""

    def push(self, text: str) -> str:
        self._held = ""
        return super().push(text) + self.finish()


class EmitsAtOnce(StopMatcher):
    """Broken control: finds the stop string, but has already shown its beginning."""

    def __init__(self, stop: list[str]) -> None:
        super().__init__(stop)
        self.whole = ""

    def push(self, text: str) -> str:
        self.whole += text
        self.stopped = self.stopped or any(s in self.whole for s in self.stop)
        return "" if self.stopped else text


@pytest.mark.parametrize("broken", [MatchesPieces, EmitsAtOnce])
def test_the_check_sees_broken_matchers(broken: Matcher) -> None:
    with pytest.raises(AssertionError):
        check_all_cuts(broken, "the END", ["END"])


def test_nothing_comes_after_the_stop() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.push("a END b"), matcher.push("more"), matcher.finish()] == ["a ", "", ""]


def test_text_is_held_no_longer_than_needed() -> None:
    """Only what may still become a stop string waits."""
    matcher = StopMatcher(["END"])
    assert [matcher.push(piece) for piece in ("aE", "N", "x", "E", "E")] == ["a", "", "ENx", "", "E"]
