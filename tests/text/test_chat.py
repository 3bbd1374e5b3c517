"""Chat templates: ids against transformers' apply_chat_template, responses marked, content kept from structure."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import Data

from halter.errors import Refusal
from halter.text.chat.conversations import BUILTIN, ChatTemplate
from halter.text.chat.rows import Encoded, encode_pair, encode_text
from halter.text.tokenizer import Tokenizer

Messages = list[dict[str, Any]]
TEMPLATES = {"llama3": tiny.LLAMA3_TEMPLATE, "chatml": tiny.CHATML_TEMPLATE, "llama2": tiny.LLAMA2_TEMPLATE}
GENERATED = {
    "llama3": tiny.LLAMA3_TEMPLATE.replace(
        "message['content'] | trim + '<|eot_id|>' }}",
        "'' }}{% generation %}{{ message['content'] | trim }}{% endgeneration %}{{ '<|eot_id|>' }}",
    )
}
CHAT: Messages = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Once upon a time?"},
    {"role": "assistant", "content": "There was a girl."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "She played."},
]


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny.llama3(tmp_path_factory.mktemp("llama3")))


@pytest.fixture(scope="module")
def llama2(data: Data) -> Tokenizer:
    return Tokenizer.from_folder(data.pieces)


@pytest.fixture(scope="module")
def stories(data: Data) -> Tokenizer:
    return Tokenizer.from_folder(data.base)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' tokenizer with the files of ``llama3``."""
    return transformers.PreTrainedTokenizerFast.from_pretrained(tiny.llama3(tmp_path_factory.mktemp("peer")))


@pytest.fixture(scope="module")
def stories_peer(data: Data) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(data.base)


def learned(tokenizer: Tokenizer, row: Encoded) -> str:
    """The learned tokens as text, runs apart."""
    runs, last = [], False
    for id, flag in zip(row.tokens, row.supervised, strict=True):
        if flag:
            runs[-1:] = [[*runs[-1], id]] if last else [runs[-1], [id]] if runs else [[id]]
        last = flag
    return " | ".join(tokenizer.decode(run, skip_control=False) for run in runs)


# The same ids as transformers

words = st.sampled_from(
    ["Once", " upon", " a time", "\n", "\n\n", "  ", "it's", " 12345", "é", "你好", '"', "{x}", "\\", "<", "|>"]
)
contents = st.lists(words, min_size=1, max_size=6).map("".join)
answers = contents.map(str.strip).filter(bool)


def chats(roles: list[str]) -> st.SearchStrategy[Messages]:
    return st.tuples(
        *((answers if r == "assistant" else contents).map(lambda c, r=r: {"role": r, "content": c}) for r in roles)
    ).map(list)  # type: ignore[misc]


SHAPES = [
    ["user"],
    ["user", "assistant"],
    ["user", "assistant", "user"],
    ["user", "assistant", "user", "assistant"],
]


@pytest.mark.parametrize("kind", ["llama3", "chatml"])
def test_ids_equal_transformers(kind: str, peer: Any, llama3: Tokenizer) -> None:
    ids_equal(TEMPLATES[kind], peer, llama3)


def test_ids_equal_transformers_with_a_sentencepiece_tokenizer(stories_peer: Any, stories: Tokenizer) -> None:
    ids_equal(TEMPLATES["llama2"], stories_peer, stories)


def ids_equal(source: str, peer: Any, tokenizer: Tokenizer) -> None:
    template = ChatTemplate.from_source(source)
    bos = tokenizer.bos_id

    @settings(max_examples=60, deadline=None)
    @given(messages=st.sampled_from(SHAPES).flatmap(chats), prompt=st.booleans())
    def check(messages: Messages, prompt: bool) -> None:
        row = template.encode(tokenizer, messages, add_generation_prompt=prompt)
        theirs = peer.apply_chat_template(
            messages, chat_template=source, add_generation_prompt=prompt, return_dict=False
        )
        text = peer.apply_chat_template(messages, chat_template=source, add_generation_prompt=prompt, tokenize=False)
        if theirs[:1] != [bos]:
            theirs, text = [bos, *theirs], tokenizer.token(bos or 0) + text
        assert row.text == text
        assert row.tokens == theirs
        if messages[-1]["role"] == "assistant":  # generation starts from exactly what training saw before the answer
            asked = template.encode(tokenizer, messages[:-1], add_generation_prompt=True)
            assert row.tokens[: len(asked.tokens)] == asked.tokens
            assert (
                not any(row.supervised[:1])
                and row.supervised[len(asked.tokens)]
                and row.supervised[len(asked.tokens) :].count(True) >= 2
            )

    check()


def test_an_answer_is_a_token_boundary_where_transformers_merges(llama3: Tokenizer, peer: Any) -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{{ 'Onc' if m.role == 'assistant' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}Onc{% endif %}"
    )
    template = ChatTemplate.from_source(source)
    chat = [{"role": "user", "content": "a "}, {"role": "assistant", "content": "e upon"}]
    row = template.encode(llama3, chat)
    prompt = template.encode(llama3, chat[:1], add_generation_prompt=True).tokens
    theirs = peer.apply_chat_template(chat, chat_template=source, return_dict=False)
    assert row.tokens == [*prompt, *llama3.encode("e upon"), llama3.eos_id]
    assert row.supervised == [False] * len(prompt) + [True] * (len(row.tokens) - len(prompt))
    assert row.tokens[:-1] != theirs
    assert llama3.decode(row.tokens[:-1]) == peer.decode(theirs, skip_special_tokens=True)


# Built-in templates, letter by letter (facts: lineage 5.4)

ALPACA_WITH = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
ALPACA_WITHOUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ASK, TELL = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
WORDED: list[tuple[str, Messages, str]] = [
    ("llama-2", [ASK], "<s>[INST] q [/INST]"),
    ("llama-2", [ASK, TELL, ASK, TELL], "<s>[INST] q [/INST]* a </s>*<s>[INST] q [/INST]* a </s>*"),
    (
        "llama-2",
        [{"role": "system", "content": " s\n"}, ASK, TELL],
        "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST]* a </s>*",
    ),
    ("alpaca", [ASK, TELL], f"<s>{ALPACA_WITHOUT}### Instruction:\nq\n\n### Response:\n*a</s>*"),
    ("alpaca", [ASK | {"input": ""}, TELL], f"<s>{ALPACA_WITHOUT}### Instruction:\nq\n\n### Response:\n*a</s>*"),
    ("alpaca", [ASK | {"input": "x"}], f"<s>{ALPACA_WITH}### Instruction:\nq\n\n### Input:\nx\n\n### Response:\n"),
    (
        "alpaca",
        [{"role": "system", "content": "S"}, ASK, TELL],
        "<s>S\n\n### Instruction:\nq\n\n### Response:\n*a</s>*",
    ),
    (
        "alpaca",
        [ASK, TELL, ASK, TELL],
        f"<s>{ALPACA_WITHOUT}### Instruction:\nq\n\n### Response:\n*a</s>*"
        "\n\n### Instruction:\nq\n\n### Response:\n*a</s>*",
    ),
    ("vicuna", [ASK], f"<s>{VICUNA} USER: q ASSISTANT:"),
    ("vicuna", [ASK, TELL, ASK, TELL], f"<s>{VICUNA} USER: q ASSISTANT:* a</s>*USER: q ASSISTANT:* a</s>*"),
    ("vicuna", [{"role": "system", "content": "S"}, ASK], "<s>S USER: q ASSISTANT:"),
]


@pytest.mark.parametrize(("name", "messages", "text"), WORDED)
def test_the_words_of_built_in_templates(name: str, messages: Messages, text: str, llama2: Tokenizer) -> None:
    """Stars in the expected text bound what is learned."""
    row = ChatTemplate.builtin(name).encode(llama2, messages, add_generation_prompt=messages[-1] is not TELL)
    assert row.text == text.replace("*", "")
    parts = text.split("*")
    spans = [llama2.decode(llama2.encode(p, control=True), skip_control=False).strip() for p in parts[1::2]]
    assert [s.strip() for s in learned(llama2, row).split(" | ")] == (spans or [""]) or not any(row.supervised)
    assert any(row.supervised) == (len(parts) > 1)


def test_llama2_is_encoded_turn_by_turn_as_meta_does(llama2: Tokenizer, data: Data) -> None:
    import sentencepiece

    meta = sentencepiece.SentencePieceProcessor(model_file=str(data.pieces / "tokenizer.model"))
    system = "<<SYS>>\nBe kind.\n<</SYS>>\n\n"
    first = [1, *meta.encode(f"[INST] {system}Once upon a time? [/INST] There was a girl. "), 2]
    second = [1, *meta.encode("[INST] And then? [/INST] She played. "), 2]
    row = ChatTemplate.builtin("llama-2").encode(llama2, CHAT)
    assert row.tokens == first + second
    assert learned(llama2, row) == "There was a girl. </s> | She played. </s>"


def test_llama3_has_metas_sequence(llama3: Tokenizer) -> None:
    def turn(role: str, text: str) -> list[int]:
        ids = [llama3.token_id(t) for t in (tiny.HEAD, tiny.HEAD_END, tiny.EOT)]
        head, end, eot = (id for id in ids if id is not None)
        return [head, *llama3.encode(role), end, *llama3.encode("\n\n"), *llama3.encode(text), eot]

    row = ChatTemplate.builtin("llama-3").encode(llama3, CHAT)
    assert row.tokens == [llama3.bos_id, *(id for m in CHAT for id in turn(m["role"], m["content"]))]
    assert learned(llama3, row) == "There was a girl.<|eot_id|> | She played.<|eot_id|>"
    asked = ChatTemplate.builtin("llama-3").encode(llama3, CHAT[:4], add_generation_prompt=True)
    assert asked.tokens == row.tokens[: len(asked.tokens)] and asked.text.endswith(f"assistant{tiny.HEAD_END}\n\n")


def test_alpaca_rows_of_the_mark(stories: Tokenizer, stories_peer: Any, data: Data) -> None:
    """BOS once, prompt and response tokenised apart, EOS at the end: the real rows are those of 1.823."""
    template, peer = ChatTemplate.builtin("alpaca"), stories_peer
    lines = data.test.read_text("utf-8").splitlines()
    counted = 0
    for line in map(json.loads, lines):
        user = {"role": "user", "content": line["instruction"], "input": line["input"]}
        row = template.encode(stories, [user, {"role": "assistant", "content": line["output"]}])
        prompt = (
            f"{ALPACA_WITH}### Instruction:\n{line['instruction']}\n\n### Input:\n{line['input']}\n\n### Response:\n"
        )
        head = [1, *peer(prompt, add_special_tokens=False).input_ids]
        tail = [*peer(line["output"], add_special_tokens=False).input_ids, 2]
        assert row.tokens == head + tail
        assert row.supervised == [False] * len(head) + [True] * len(tail)
        counted += max(0, min(512, len(row.tokens)) - len(head))
    assert (len(lines), counted) == (150, {"real": 46_617, "own": 41_939}[data.name])


# Exactly one BOS


@pytest.mark.parametrize("name", [name for name in BUILTIN if name != "llama-4"])  # whose tokens are in test_templates
@pytest.mark.parametrize("shape", [2, 3])
def test_one_bos_opens_a_row(name: str, shape: int, llama3: Tokenizer, llama2: Tokenizer) -> None:
    tokenizer = llama3 if name.startswith("llama-3") or name == "chatml" else llama2
    row = ChatTemplate.builtin(name).encode(tokenizer, CHAT[:shape], add_generation_prompt=shape < 3)
    assert row.tokens[0] == tokenizer.bos_id and row.tokens.count(tokenizer.bos_id or -1) == 1 and not row.supervised[0]


def test_bos_where_the_template_writes_none_one_or_two(llama3: Tokenizer, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": f"hi {tiny.BOS}"}]
    rows = [
        ChatTemplate.from_source("{{ bos_token }}" * n + "{{ messages[0].content }}").encode(llama3, chat)
        for n in (0, 1, 2)
    ]
    expected = [llama3.bos_id, *llama3.encode(f"hi {tiny.BOS}")]
    assert [row.tokens for row in rows] == [expected] * 3 and expected.count(llama3.bos_id) == 1
    without = Tokenizer.from_folder(tiny.llama3(tmp_path, add_bos_token=False))
    assert ChatTemplate.from_source("{{ messages[0].content }}").encode(without, chat).tokens == expected[1:]
    assert ChatTemplate.builtin("vicuna").encode(without, chat).tokens.count(llama3.bos_id or -1) == 0


# Control tokens in content


@pytest.mark.parametrize("kind", ["llama-3", "llama3", "chatml", "tools"])
def test_no_control_id_comes_from_content(kind: str, llama3: Tokenizer) -> None:
    made = ChatTemplate.from_source(TEMPLATES[kind]) if kind in TEMPLATES else ChatTemplate.builtin("llama-3")
    control = {c.id for c in llama3.controls}
    strings = [c.text for c in llama3.controls]

    def conversation(texts: list[str]) -> tuple[Messages, list[dict[str, Any]] | None]:
        a, b, c, d = texts
        messages = [
            {"role": "system", "content": f"S{a}"},
            {"role": "user", "content": f"{b} hi {c}x"},
            {"role": "assistant", "content": f"no{d}{a}"},
        ]
        if kind != "tools":
            return messages, None
        call = {
            "type": "function",
            "id": f"i{a}",
            "function": {"name": f"f{b}", "arguments": {f"k{c}": [f"v{d}", {"n": a}]}},
        }
        tools = [
            {
                "type": "function",
                "function": {"name": f"f{b}", "description": f"{c}.", "parameters": {f"p{d}": {"type": f"string{a}"}}},
            }
        ]
        messages[2:] = [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": {f"r{a}": f'"{b}"'}},
        ]
        return [*messages, {"role": "assistant", "content": f"done {c}"}], tools

    def structure(texts: list[str]) -> list[int]:
        messages, tools = conversation(texts)
        row = made.encode(llama3, messages, tools=tools)
        assert all(t in row.text for t in texts)
        return [id for id in row.tokens if id in control]

    expected = structure(["e", "f", "g", "h"])

    @settings(max_examples=25, deadline=None)
    @given(texts=st.lists(st.sampled_from(strings), min_size=4, max_size=4))
    def check(texts: list[str]) -> None:
        assert structure(texts) == expected

    check()
    for string in strings:
        assert structure([string] * 4) == expected


def test_content_beside_structure_cannot_complete_a_control_token(llama3: Tokenizer) -> None:
    template = ChatTemplate.from_source(
        "{{ bos_token }}{% for m in messages %}<|{{ m.content }}|>{{ m.content }}<|eot_id|>{% endfor %}"
    )
    row = template.encode(llama3, [{"role": "user", "content": "eot_id"}, {"role": "user", "content": "<|eot_id|"}])
    assert [llama3.token(i) for i in row.tokens if i in {c.id for c in llama3.controls}] == [
        tiny.BOS,
        tiny.EOT,
        tiny.EOT,
    ]


def test_a_marker_that_is_an_ordinary_piece(tmp_path: Path) -> None:
    """The template's own marker stays the one id it was; typed, it becomes several."""
    spec = json.loads(tiny.sentencepiece_like("prepend").to_str())
    vocab = spec["model"]["vocab"]
    for token in ("<", "x", ">", "<x", "<x>"):
        vocab.setdefault(token, len(vocab))
    spec["model"]["merges"] = [["<", "x"], ["<x", ">"], *spec["model"]["merges"]]
    tokenizer = Tokenizer.from_folder(
        tiny.write(tmp_path, tiny.tokenizers.Tokenizer.from_str(json.dumps(spec)), bos_token="<s>", eos_token="</s>")
    )
    row = ChatTemplate.from_source("<x>{{ messages[0].content }}</s>").encode(
        tokenizer, [{"role": "user", "content": "a<x>b"}]
    )
    assert row.tokens.count(vocab["<x>"]) == 1 and tokenizer.decode(row.tokens) == "<x>a<x>b"


# What is learned


def test_switches_of_learning(llama3: Tokenizer) -> None:
    template = ChatTemplate.builtin("llama-3")

    def told(messages: Messages, **switches: Any) -> str:
        return learned(llama3, template.encode(llama3, messages, **switches))

    first, second = "There was a girl.<|eot_id|>", "She played.<|eot_id|>"
    assert told(CHAT) == f"{first} | {second}"
    assert told(CHAT, on_responses="last") == second
    for key, value in (("loss", False), ("train", False), ("weight", 0)):
        quiet = [m | ({key: value} if i == 2 else {key: True}) for i, m in enumerate(CHAT)]
        row = template.encode(llama3, quiet)
        assert learned(llama3, row) == second and row.text == template.encode(llama3, CHAT).text
    quiet = [m | ({"loss": False} if i == 2 else {}) for i, m in enumerate(CHAT)]
    row = template.encode(llama3, quiet, train_on_prompt=True)
    everything = template.encode(llama3, CHAT, train_on_prompt=True)
    assert everything.supervised == [False] + [True] * (len(row.tokens) - 1)
    assert everything.supervised.count(True) - row.supervised.count(True) == len(llama3.encode(first, control=True))


CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Z\\u00fcrich", "days": [1, 2]}'},
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}]
TOOL_CHAT: Messages = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": 'sunny "and"\nwarm'},
    {"role": "assistant", "content": "Nice."},
]
HERMES = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content or '' }}{% endif %}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tool_calls_are_learned_and_results_are_not(llama3: Tokenizer, peer: Any) -> None:
    row = ChatTemplate.builtin("llama-3").encode(llama3, TOOL_CHAT, tools=TOOLS)
    call = '{"name": "get_weather", "parameters": {"city": "Zürich", "days": [1, 2]}}'
    assert learned(llama3, row) == f"{call}<|eot_id|> | Nice.<|eot_id|>"
    assert '<|start_header_id|>ipython<|end_header_id|>\n\nsunny "and"\nwarm<|eot_id|>' in row.text
    hermes = ChatTemplate.from_source(HERMES).encode(llama3, TOOL_CHAT, tools=TOOLS)
    arguments = call.replace("parameters", "arguments")
    assert learned(llama3, hermes) == f"<tool_call>\n{arguments}\n</tool_call><|im_end|> | Nice.<|im_end|>"
    objects = json.loads(json.dumps(TOOL_CHAT))
    objects[1]["tool_calls"][0]["function"]["arguments"] = json.loads(CALL["function"]["arguments"])  # type: ignore[index]
    theirs = peer.apply_chat_template(objects, tools=TOOLS, chat_template=HERMES, return_dict=False)
    assert hermes.tokens == [llama3.bos_id, *theirs]


def test_a_generation_prompt_that_goes_its_own_way(llama3: Tokenizer) -> None:
    """R1's distilled models: asked with <think>, remembered without; a call is still learned from its first token."""
    source = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>' + m.content }}"
        "{% elif m.tool_calls %}<|im_end|>{% for c in m.tool_calls %}<tool_call>{{ c.function.name + ':' "
        "+ c.function.arguments }}</tool_call>{% endfor %}<|eot_id|>"
        "{% else %}{{ '<|im_end|>' + m.content.split('</think>')[-1] }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_end|><think>\\n' }}{% endif %}"
    )
    chat = [ASK, TOOL_CHAT[1], ASK, {"role": "assistant", "content": "<think>x</think>4"}]
    row = ChatTemplate.from_source(source).encode(llama3, chat)
    call = f"<tool_call>get_weather:{CALL['function']['arguments']}</tool_call><|eot_id|>"  # type: ignore[index]
    assert learned(llama3, row) == f"{call} | 4<|eot_id|>"
    asked = ChatTemplate.from_source(source).encode(llama3, chat[:3], add_generation_prompt=True)
    assert asked.text.endswith("<|im_end|><think>\n")


def test_templates_that_change_what_they_print(llama3: Tokenizer) -> None:
    chat = [
        {"role": "user", "content": " 2+2? "},
        {"role": "assistant", "content": "<think>hm</think>\n\n4 <|eot_id|>\n"},
    ]
    head = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
    tail = (
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
    )

    def told(expression: str, messages: Messages = chat) -> str:
        return learned(
            llama3, ChatTemplate.from_source(head + "{{ " + expression + " }}" + tail).encode(llama3, messages)
        )

    assert told("m.content | trim") == "<think>hm</think>\n\n4 <|eot_id|><|eot_id|>"
    assert told("m.content") == "<think>hm</think>\n\n4 <|eot_id|>\n<|eot_id|>"
    assert told("m.content | tojson") == '"<think>hm</think>\\n\\n4 <|eot_id|>\\n"<|eot_id|>'
    assert told("m.content.split('</think>')[-1].lstrip()") == "4 <|eot_id|>\n<|eot_id|>"
    harmless = [chat[0], {"role": "assistant", "content": "four"}]
    assert told("m.content | upper", harmless) == "FOUR<|eot_id|>"  # found by rendering the prompt alone
    assert told("'even' if '2' in m.content else m.content", harmless) == "four<|eot_id|>"
    with pytest.raises(Refusal) as caught:
        told("m.content | upper")  # changed beyond finding, and with a control token in it
    assert caught.value.id == "template-unsupported"


def test_templates_without_generation_prompt_or_end(llama3: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}"
    row = ChatTemplate.from_source(source).encode(llama3, CHAT)
    assert row.tokens[-1] == llama3.eos_id and row.supervised[-1]
    assert learned(llama3, row) == "There was a girl. | She played.\n<|eot_id|>"
    lines = ["SYSTEM: Be kind.", "USER: Once upon a time?", "ASSISTANT: There was a girl."]
    lines += ["USER: And then?", "ASSISTANT: She played."]
    assert row.text == tiny.BOS + "".join(f"{line}\n" for line in lines) + tiny.EOT


def test_blank_answers_still_learn_to_stop(llama3: Tokenizer) -> None:
    row = ChatTemplate.builtin("llama-3").encode(llama3, [ASK, {"role": "assistant", "content": " "}])
    assert learned(llama3, row) == tiny.EOT


def test_generation_blocks_are_only_blocks(llama3: Tokenizer) -> None:
    plain = ChatTemplate.from_source(tiny.LLAMA3_TEMPLATE).encode(llama3, CHAT)
    assert GENERATED["llama3"] != tiny.LLAMA3_TEMPLATE
    assert ChatTemplate.from_source(GENERATED["llama3"]).encode(llama3, CHAT) == plain


# Prompt and completion, plain text


def test_pairs_and_texts(stories: Tokenizer, llama3: Tokenizer, stories_peer: Any) -> None:
    peer = stories_peer
    row = encode_pair(stories, "Tell:\n", "Once <s> upon")
    head, tail = peer("Tell:\n", add_special_tokens=False).input_ids, stories.encode("Once <s> upon")
    assert row.tokens == [1, *head, *tail, 2] and 1 not in tail
    assert row.supervised == [False] * (len(head) + 1) + [True] * (len(tail) + 1)
    assert encode_pair(stories, "Tell:", " a").tokens == [1, *peer("Tell: a", add_special_tokens=False).input_ids, 2]
    assert encode_pair(llama3, "a", "b", train_on_prompt=True).supervised == [False, True, True, True]
    text = encode_text(stories, "Once upon")
    assert text.tokens == [1, *peer("Once upon", add_special_tokens=False).input_ids, 2]
    assert text.supervised == [False] + [True] * (len(text.tokens) - 1)
    assert encode_text(stories, "Once upon", bos=False, eos=False).tokens == text.tokens[1:-1]


# From the checkpoint; dates; identity


def test_templates_of_a_folder(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "D{{ messages[0].content }}"},
        {"name": "tool_use", "template": "T{{ messages[0].content }}{{ tools | tojson }}"},
    ]
    folder = tiny.llama3(tmp_path / "a", chat_template=named)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.chat_template is not None
    chat = [{"role": "user", "content": "q"}]
    assert tokenizer.chat_template.encode(tokenizer, chat).text == f"{tiny.BOS}Dq"
    assert tokenizer.chat_template.encode(tokenizer, chat, tools=TOOLS).text.startswith(f"{tiny.BOS}Tq[")
    (folder / "chat_template.jinja").write_text("F{{ messages[0].content }}")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.chat_template is not None and tokenizer.chat_template.source == "F{{ messages[0].content }}"
    assert folder / "chat_template.jinja" in tokenizer.files
    assert Tokenizer.from_folder(tiny.llama3(tmp_path / "b", None)).chat_template is None


def test_the_date_is_pinned_and_recorded(llama3: Tokenizer, peer: Any) -> None:
    source = (
        "{{ bos_token }}{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}"
        "{% else %}{% set day = '26 Jul 2024' %}{% endif %}{{ day }} {{ messages[0].content }}"
    )
    template, chat = ChatTemplate.from_source(source), [{"role": "user", "content": "q"}]
    assert template.asks_date and not ChatTemplate.builtin("llama-3").asks_date
    row = template.encode(llama3, chat, date="2025-02-03")
    assert (row.text, row.date) == (f"{tiny.BOS}03 Feb 2025 q", "2025-02-03")
    assert (
        template.encode(llama3, chat).text == f"{tiny.BOS}26 Jul 2024 q" and template.encode(llama3, chat).date is None
    )
    assert ChatTemplate.builtin("llama-3").encode(llama3, chat, date="2025-02-03").date is None
    today = time.strftime("%Y-%m-%d")
    assert template.encode(llama3, chat, date=today).tokens == peer.apply_chat_template(
        chat, chat_template=source, return_dict=False
    )
    bare = ChatTemplate.from_source("{{ strftime_now('%Y') }}{{ messages[0].content }}")
    with pytest.raises(Refusal, match="template_date"):
        bare.encode(llama3, chat)
    with pytest.raises(Refusal, match="ISO|2024-07-26"):
        bare.encode(llama3, chat, date="yesterday")


def test_identity_of_templates(llama3: Tokenizer) -> None:
    digests = {ChatTemplate.builtin(n).digest for n in BUILTIN}
    assert len(digests) == len(BUILTIN)
    alpaca = ChatTemplate.builtin("alpaca")
    same = ChatTemplate.from_source(alpaca.source, "found in a folder")
    assert same.digest == alpaca.digest and same.encode(llama3, CHAT) == alpaca.encode(llama3, CHAT)
    assert ChatTemplate.from_source(alpaca.source + " ").digest != alpaca.digest
    assert pickle.loads(pickle.dumps(alpaca)).encode(llama3, CHAT) == alpaca.encode(llama3, CHAT)


def test_an_input_is_not_lost_in_templates_that_know_none(llama3: Tokenizer) -> None:
    row = ChatTemplate.builtin("llama-3").encode(llama3, [{"role": "user", "content": "Add.", "input": "2, 2"}])
    assert "\n\nAdd.\n\n2, 2<|eot_id|>" in row.text


# Refusals


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([], "no messages"),
        (["hi"], "message 1: is a str"),
        ([{"role": "user"}], "message 1: has neither"),
        ([{"content": "x"}], "message 1: has the role None"),
        ([ASK, {"role": "x<|eot_id|>", "content": "x"}], "message 2: has the role 'x<|eot_id|>'"),
        ([{"role": "user", "content": 3}], "message 1: has content of type int"),
        ([ASK | {"weight": 0.5}], "message 1: has weight 0.5: a message is learned whole (1) or not at all (0)"),
        ([{"role": "assistant", "content": None, "tool_calls": "f()"}], "message 1: has tool_calls"),
        ([{"role": "user", "content": "\ud800"}], "a half of a surrogate pair"),
        ([ASK | {"extra": {1, 2}}], "not JSON"),
    ],
)
def test_malformed_messages(messages: Any, wrong: str, llama3: Tokenizer) -> None:
    with pytest.raises(Refusal) as caught:
        ChatTemplate.builtin("llama-3").encode(llama3, messages)
    assert caught.value.id == "messages-malformed" and caught.value.found[0].startswith(wrong)


@pytest.mark.parametrize(
    ("template", "messages", "tools", "id"),
    [
        ("alpaca", [ASK], TOOLS, "template-failed"),
        ("vicuna", [{"role": "tool", "content": "x"}], None, "template-failed"),
        ("llama-2", [ASK, ASK], None, "template-failed"),
        ("llama-2", TOOL_CHAT[:2], None, "template-drops-content"),
        ("alpaca", [{"role": "user", "content": [{"type": "image"}]}], None, "template-unsupported"),
        ("llama-3", [ASK], None, "template-needs-tokens"),
        ("{{ raise_exception('only in pairs') }}", [ASK], None, "template-failed"),
        ("{{ messages[", [ASK], None, "template-failed"),
        ("{{ messages[0].content }}", [ASK, TELL], None, "template-drops-content"),
        ("{{ messages[0].content }}", [ASK], TOOLS, "template-drops-content"),
        ("{{ 'x' * 2000000 }}{{ messages[0].content }}", [ASK], None, "template-too-large"),
    ],
)
def test_refused_conversations(template: str, messages: Messages, tools: Any, id: str, llama2: Tokenizer) -> None:
    made = ChatTemplate.builtin(template) if template in BUILTIN else ChatTemplate.from_source(template)
    with pytest.raises(Refusal) as caught:
        made.encode(llama2, messages, tools=tools)
    assert caught.value.id == id and "template" in str(caught.value)


def test_unknown_built_in() -> None:
    with pytest.raises(Refusal, match="llama-2, llama-3, .*alpaca, vicuna.*template-unknown"):
        ChatTemplate.builtin("mistral")


# Speed


def test_a_hundred_thousand_rows_in_a_minute_or_so(llama3: Tokenizer) -> None:
    """Rendering, locating and encoding on one core: some 0.3 ms a row, 0.7 on a slow processor that is not alone. The
    bound is a change of order: a template that is compiled anew for each row."""
    template, rows = (
        ChatTemplate.builtin("llama-3"),
        [
            [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i}."}]
            for i in range(400)
        ],
    )
    template.encode(llama3, rows[0])
    times = []
    for _ in range(3):
        start = time.process_time()
        for row in rows:
            template.encode(llama3, row)
        times.append(time.process_time() - start)
    assert min(times) / len(rows) < 3e-3
