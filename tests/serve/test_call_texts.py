"""What a model wrote, read as calls or as text, in whatever pieces it comes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halter.serve.wire.calls import CallReader, calls_in

NAMES = ("weather", "now")
PIECES = st.sampled_from(
    [
        *(
            '{"name": "weather"',
            '{"name":"now","parameters":{}}',
            '{"name": "other", "parameters": {}}',
            '"name": "now"',
        ),
        *(', "parameters": {"a": 1.50}}', ', "arguments": {"é": []}}', ', "parameters": {"a": "x;}"}}'),
        *('"type": "function", ', "<|python_tag|>", "<|py", ";", " ", "\n", "{", "}", '"', "\\", ", ", ":[", "]"),
        *("Sure", "1e999", "NaN", "\\ud800"),
    ]
)


@given(st.lists(PIECES, max_size=7).map("".join), st.data())
def test_text_in_pieces_is_read_as_the_whole(text: str, data: st.DataObject) -> None:
    """However it is cut: the same calls, or the same text; and text comes out as soon as no calls can come of it."""
    want = calls_in(text, NAMES)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=9)))
    reader = CallReader(NAMES)
    said = "".join(reader.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
    calls, rest = reader.end()
    assert calls == want and (said + rest == ("" if calls else text))
    for call in calls:
        assert isinstance(json.loads(call.arguments), dict) and call.name in NAMES


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"name": "now", "parameters": {}}', ["now"]),
        (' <|python_tag|> {"name": "now", "arguments": {}} ; {"name":"weather","parameters":{}}\n', ["now", "weather"]),
        ('{"type": "function", "name": "now", "parameters": {}}', ["now"]),
        ('{"name": "other", "parameters": {}}', []),
        ('{"name": "now", "parameters": {}} and more', []),
        ('Here: {"name": "now", "parameters": {}}', []),
        ('{"name": "now", "parameters": {}};', []),
        ('{"name": "now", "parameters": "x"}', []),
        ('{"name": "now", "parameters": {}, "arguments": {}}', []),
        ('{"name": "now", "name": "now", "parameters": {}}', []),
        ('{"name": ["now"], "parameters": {}}', []),
        ('{"name": "now", "parameters": {"a": NaN}}', []),
        ('{"name": "now", "parameters": {"a": 1e999}}', []),
        ('{"name": "now", "parameters": ' + '{"a":' * 5000 + "1" + "}" * 5001, []),
        ('{"name": "now", "parameters": ' + '{"a":' * 300 + "1" + "}" * 301, []),
        ('{"name": "now", "parameters": {"a": "\\ud800"}}', []),
        ('[{"name": "now", "parameters": {}}]', []),
        ("now()", []),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_a_call(text: str, names: Sequence[str]) -> None:
    assert [call.name for call in calls_in(text, NAMES)] == list(names)


def test_plain_text_waits_no_longer_than_it_must() -> None:
    for text, until in (("Sure", 1), ('{"colour": 1', 12), ('{"name": "now", "x": 1', 22), ('{"name": "nowhere"', 14)):
        reader = CallReader(NAMES)
        said = [reader.push(one) for one in text]
        assert next(at for at, one in enumerate(said, 1) if one) == until, text
