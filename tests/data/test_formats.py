"""Formats are found by their columns, and each row means what its format says, or is a fault with its kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.data.columns import understand
from halter.data.formats import FORMATS, Canonical, find
from halter.data.options import DataOptions
from halter.data.turns import BadRow
from halter.errors import Refusal

USER, ASSISTANT = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
WEATHER = {"name": "weather", "arguments": {"city": "Rome"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": WEATHER}]}
TOOL = {"name": "weather", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": TOOL}]


def read(row: dict[str, Any], **options: Any) -> Canonical:
    return understand([row], DataOptions(train="x", **options), "x").read(row)


def chat(*messages: dict[str, Any], tools: list[Any] | None = None) -> Canonical:
    return Canonical(messages=list(messages), tools=tools)


MEANINGS: list[tuple[str, dict[str, Any], Canonical]] = [
    ("alpaca", {"instruction": "Q", "output": "A"}, chat(USER, ASSISTANT)),
    ("alpaca with input", {"instruction": "Q", "input": "I", "output": "A"}, chat({**USER, "input": "I"}, ASSISTANT)),
    ("alpaca, blank input", {"instruction": "Q", "input": " ", "output": "A"}, chat(USER, ASSISTANT)),
    ("alpaca, null input", {"instruction": "Q", "input": None, "output": "A"}, chat(USER, ASSISTANT)),
    (
        "alpaca with system and history",
        {"instruction": "Q", "output": "A", "system": "S", "history": [["q", "a"]], "text": "rendered: Q A"},
        chat(
            {"role": "system", "content": "S"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            USER,
            ASSISTANT,
        ),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        chat(USER, ASSISTANT),
    ),
    (
        "sharegpt with system",
        {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        chat({"role": "system", "content": "S"}, USER, ASSISTANT),
    ),
    ("sharegpt in roles", {"conversations": [USER, ASSISTANT]}, chat(USER, ASSISTANT)),
    (
        "sharegpt with tools",
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "function_call", "value": json.dumps(WEATHER)},
                {"from": "observation", "value": '{"sun": 1}'},
                {"from": "gpt", "value": "A"},
            ],
            "tools": json.dumps([TOOL]),
        },
        chat(USER, CALL, {"role": "tool", "content": '{"sun": 1}'}, ASSISTANT, tools=TOOLS),
    ),
    ("openai", {"messages": [USER, ASSISTANT]}, chat(USER, ASSISTANT)),
    ("openai as text", {"messages": json.dumps([USER, ASSISTANT])}, chat(USER, ASSISTANT)),
    (
        "openai from a table",
        {"messages": [{**USER, "tool_calls": None, "name": None}, ASSISTANT], "tools": []},
        chat(USER, ASSISTANT),
    ),
    (
        "openai, not learnt",
        {"messages": [USER, {**ASSISTANT, "loss": False}, USER, {**ASSISTANT, "weight": 1}]},
        chat(USER, {**ASSISTANT, "loss": False}, USER, {**ASSISTANT, "weight": 1}),
    ),
    (
        "openai, developer and parts",
        {
            "messages": [
                {"role": "developer", "content": "S"},
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                ASSISTANT,
            ]
        },
        chat({"role": "system", "content": "S"}, USER, ASSISTANT),
    ),
    (
        "openai with calls",
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c1", "type": "function", "function": WEATHER}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "sun"},
                ASSISTANT,
            ],
            "tools": TOOLS,
        },
        chat(
            USER,
            {**CALL, "tool_calls": [{"id": "c1", "type": "function", "function": WEATHER}]},
            {"role": "tool", "tool_call_id": "c1", "content": "sun"},
            ASSISTANT,
            tools=TOOLS,
        ),
    ),
    (
        "openai, old calls",
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": WEATHER}]},
        chat(USER, CALL),
    ),
    ("prompt and completion", {"prompt": "Q", "completion": "A"}, Canonical(prompt="Q", completion="A")),
    ("no prompt", {"prompt": "", "completion": "A"}, Canonical(prompt="", completion="A")),
    (
        "prompt and completion in messages",
        {"prompt": [USER], "completion": [ASSISTANT]},
        chat({**USER, "loss": False}, ASSISTANT),
    ),
    (
        "openai, reasoning apart",
        {"messages": [USER, {**ASSISTANT, "reasoning_content": "R"}]},
        chat(USER, {**ASSISTANT, "content": f"<think>\nR\n</think>\n\n{ASSISTANT['content']}"}),
    ),
    ("text", {"text": "T", "url": "x"}, Canonical(text="T")),
    ("tokens", {"input_ids": [1, 2, 3]}, Canonical(tokens=[1, 2, 3])),
    (
        "tokens with labels",
        {"input_ids": [1, 2, 3, 0], "labels": [-100, -100, 3, -100], "attention_mask": [1, 1, 1, 0]},
        Canonical(tokens=[1, 2, 3], labels=[-100, -100, 3]),
    ),
]


@pytest.mark.parametrize(("row", "meaning"), [m[1:] for m in MEANINGS], ids=[m[0] for m in MEANINGS])
def test_what_rows_mean(row: dict[str, Any], meaning: Canonical) -> None:
    assert read(row) == meaning


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"instruction": "Q", "output": ""}, "empty output"),
    ({"instruction": "Q", "output": " \n"}, "empty output"),
    ({"instruction": "Q", "output": None}, "output is null"),
    ({"instruction": "Q", "output": float("nan")}, "output is NaN"),
    ({"question": "Q", "answer": float("nan")}, "answer is NaN"),
    ({"instruction": "Q", "output": 42}, "wrong type of output: int"),
    ({"instruction": ["Q"], "output": "A"}, "wrong type of instruction: list"),
    ({"instruction": "Q", "output": "A", "input": 3}, "wrong type of input: int"),
    ({"instruction": "Q", "output": "A", "history": [["q"]]}, "history is no list of [question, answer]"),
    ({"conversations": "no"}, "wrong type of conversations: str"),
    ({"conversations": []}, "empty conversations"),
    ({"conversations": None}, "conversations is null"),
    ({"conversations": ["hi"]}, "wrong type of a turn: str"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role 'alien' (as user?)"),
    (
        {"messages": [{"role": "customer", "content": "x"}, {"role": "agent", "content": "y"}]},
        "unknown role 'customer' (as user?), 'agent' (as assistant?)",
    ),
    ({"messages": [USER, {"role": "clerk", "content": "y"}]}, "unknown role 'clerk' (as assistant?)"),
    ({"conversations": [{"value": "x"}]}, "missing key role"),
    ({"conversations": [{"from": "human"}]}, "missing key content"),
    ({"conversations": [{"from": "human", "value": "Q"}]}, "missing answer of the assistant"),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": " "}]}, "empty answer in message 2"),
    ({"conversations": [{"from": "function_call", "value": "{"}]}, "wrong type of function_call: not JSON"),
    ({"conversations": [{"from": "function_call", "value": "{}"}]}, "a tool call without a name"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "content is null"),
    (
        {"messages": '[{"role": "user", "role": "assistant", "content": "x"}]'},
        "messages: the key role stands twice in one object",
    ),
    ({"messages": [USER, ASSISTANT], "tools": "["}, "wrong type of tools: not JSON"),
    ({"messages": [USER, ASSISTANT], "tools": {"name": "x"}}, "wrong type of tools: not a list of objects"),
    (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        "wrong type of content: a part video, and Halter reads texts and pictures",
    ),
    ({"prompt": "Q", "completion": "\n"}, "empty completion"),
    ({"text": ""}, "empty text"),
    ({"input_ids": [1, "2"]}, "wrong type: input_ids and labels are lists of whole numbers"),
    ({"input_ids": [1, True]}, "wrong type: input_ids and labels are lists of whole numbers"),
    ({"input_ids": [1, 2], "labels": [1]}, "input_ids, labels and attention_mask differ in length"),
    (
        {"input_ids": [1, 2], "labels": [2, -100]},
        "labels that are neither -100 nor the token at their own place (are they shifted?)",
    ),
]


@pytest.mark.parametrize(("row", "kind"), FAULTS, ids=[kind for _, kind in FAULTS])
def test_faults_of_rows(row: dict[str, Any], kind: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(row)
    assert str(caught.value) == kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["gpt", "user", "[1]", "[{}]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "tool_calls", "name"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_no_row_whatever_raises_anything_else(name: str, data: st.DataObject) -> None:
    """Any JSON under the columns of a format is a meaning or a BadRow."""
    form = FORMATS[name]
    row = {key: data.draw(JSON) for key in sorted(form.needs | form.also)}
    try:
        meant = form.read(row)
    except BadRow:
        return
    assert sum(part is not None for part in (meant.messages, meant.prompt, meant.text, meant.tokens)) == 1
    json.dumps(meant.messages)


def test_every_format_is_found_by_its_columns() -> None:
    for name, form in FORMATS.items():
        assert find(set(form.needs), "x") == find(set(form.needs | form.also) | {"id", "text"}, "x") == name


def test_unknown_columns_are_refused_with_a_way_out() -> None:
    with pytest.raises(Refusal) as caught:
        read({"my question": "Q", "my answer": "A"})
    said = str(caught.value)
    assert caught.value.id == "data-format" and caught.value.found == ("my answer", "my question")
    assert "messages" in said and """data.columns='{instruction: "my question", output: "my answer"}'""" in said


def test_columns_of_two_formats_are_refused_until_one_is_chosen() -> None:
    row = {"messages": [USER, ASSISTANT], "prompt": "p", "completion": "c"}
    with pytest.raises(
        Refusal,
        match=r"openai, prompt_completion.*\{messages: messages\}.*\{completion: completion\}.*\[data-ambiguous\]",
    ):
        read(row)
    assert read(row, columns={"messages": "messages"}) == chat(USER, ASSISTANT)
    assert read(row, columns={"prompt": "prompt"}) == Canonical(prompt="p", completion="c")


def test_preference_pairs_are_refused_until_their_use_is_said() -> None:
    row = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    with pytest.raises(Refusal, match=r"data-preference"):
        read(row)
    assert read(row, columns={"prompt": "prompt", "completion": "chosen"}) == Canonical(prompt="Q", completion="A")


def test_columns_are_renamed() -> None:
    row = {"question": "Q", "answer": "A", "prompt": "not this", "context": "C"}
    assert read(row, columns={"prompt": "question", "completion": "answer"}) == Canonical(prompt="Q", completion="A")
    assert read(row, columns={"instruction": "question", "output": "answer", "input": "context"}) == chat(
        {**USER, "input": "C"}, ASSISTANT
    )
    assert read({"system": "Q", "answer": "A"}, columns={"instruction": "system", "output": "answer"}) == chat(
        USER, ASSISTANT
    )
    swapped = {"prompt": "A", "completion": "Q"}
    assert read(swapped, columns={"prompt": "completion", "completion": "prompt"}) == Canonical(
        prompt="Q", completion="A"
    )
    filled = {"prompt": "Question: {question}\n{{{context}}}", "completion": " {answer}#### {n}"}
    assert read({**row, "n": 3}, columns=filled) == Canonical(prompt="Question: Q\n{C}", completion=" A#### 3")


def test_a_row_template_makes_the_prompt_and_never_reads_content_as_a_template() -> None:
    row = {"question": "{answer}", "answer": "A"}
    meant = read(row, row_template='Q: {question} {"json": 1}\nA:', columns={"completion": "answer"})
    assert meant == Canonical(prompt='Q: {answer} {"json": 1}\nA:', completion="A")
    for options, wrong in (
        ({"row_template": "{nothing}", "columns": {"completion": "answer"}}, "nothing"),
        ({"columns": {"prompt": "question", "completion": "nix"}}, "nix"),
        ({"columns": {"prompt": "{question} {nul}", "completion": "answer"}}, "nul"),
    ):
        with pytest.raises(Refusal) as caught:
            read(row, **options)
        assert caught.value.id == "data-columns" and caught.value.found == (wrong,)
        assert "answer, question" in str(caught.value)
    with pytest.raises(Refusal, match="what the completion is"):
        read(row, row_template="{question}")
    with pytest.raises(BadRow, match="question is null"):
        options = DataOptions(train="x", row_template="{question}", columns={"completion": "answer"})
        understand([row], options, "x").read({"answer": "A", "question": None})


def test_a_file_is_held_to_the_format_of_its_first_rows() -> None:
    options = DataOptions(train="x")
    rows = [{"instruction": "lacks the rest"}, {"instruction": "Q", "output": "A"}]
    reader = understand(rows, options, "x")
    with pytest.raises(BadRow, match="missing key output"):
        reader.read(rows[0])
    assert reader.read(rows[1]) == chat(USER, ASSISTANT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation": 0.0},
        {"validation": 1.0},
        {"validation": float("nan")},
        {"max_length": 0},
        {"limit": 0},
        {"limit": -1},
    ],
)
def test_options_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=next(iter(wrong))):
        DataOptions(train="x", **wrong)
