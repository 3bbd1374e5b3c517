"""Stop strings against the plain definition, whatever the pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from halter.generation.options import GenerationOptions
from halter.generation.stopping import StopStrings

TEXT = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def by_definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        done = [s for s in stops if text[:end].endswith(s)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(pieces=st.lists(TEXT, max_size=6), stops=STOPS)
def test_as_defined_for_any_pieces(pieces: list[str], stops: list[str]) -> None:
    gate = StopStrings(stops)
    said = "".join(gate.push(piece) for piece in pieces)
    said += gate.flush()
    assert (said, gate.found) == by_definition("".join(pieces), stops)


@given(text=TEXT, stops=STOPS)
def test_nothing_certain_is_held_back(text: str, stops: list[str]) -> None:
    """What is held back is a beginning of a stop string, so an answer streams as it comes."""
    gate = StopStrings(stops)
    said = "".join(gate.push(character) for character in text)
    if gate.found is None:
        held = text.removeprefix(said)
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_across_pieces() -> None:
    gate = StopStrings(["\n### "])
    assert [gate.push(piece) for piece in ("An answer", ".\n", "# no\n##", "# Instruction", "more")] == [
        "An answer",
        ".",
        "\n# no",
        "",
        "",
    ]
    assert gate.found == "\n### "


def test_options_that_do_nothing_or_can_hardly_be_meant_are_told() -> None:
    assert GenerationOptions(temperature=1.0, top_p=0.9, repetition_penalty=1.1).doubts() == []
    assert GenerationOptions().doubts() == []
    (one,) = GenerationOptions(top_p=0.9, top_k=4).doubts()
    assert "top_k, top_p do nothing at temperature 0" in one
    hot, penalty = GenerationOptions(temperature=70.0, repetition_penalty=50.0).doubts()
    assert "temperature 70" in hot and "repetition_penalty 50" in penalty
