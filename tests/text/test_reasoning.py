"""Reasoning in answers: learned whole, right after the prompt that generation gives, by the prompts of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny
import transformers

from halter.errors import Refusal
from halter.text.chat import reasoning
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

# The shape of R1's distilled models: past turns lose what stands before </think>, the prompt opens a thought.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' and m['content'] is none %}{% for c in m['tool_calls'] %}"
    "{{ '<|im_end|><tool_call>' + c['function']['name'] + '\\n' + c['function']['arguments'] + '</tool_call>' }}"
    "{% endfor %}{{ '<|eot_id|>' }}{% endif %}"
    "{% if m['role'] == 'tool' %}{{ '<|eom_id|>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' and m['content'] is not none %}{% set c = m['content'] %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_end|>' + c + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_end|><think>\\n' }}{% endif %}"
)
# Nemotron's: Llama 3's headers, reasoning taken out of every answer and the rest trimmed, a plain prompt.
NEMOTRON = tiny.LLAMA3_TEMPLATE.replace(
    "message['content'] | trim",
    "(message['content'].split('</think>')[-1].lstrip() if message['role'] == 'assistant' and '</think>' in "
    "message['content'] else message['content']) | trim",
)
# Qwen3's: reasoning stays after the last question only, and an empty thought is written where there is none.
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role != 'assistant' %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- else %}{%- set c = m.content or '' %}"
    "{%- set thought = '' %}{%- if '</think>' in c %}"
    "{%- set thought = c.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}{{- c }}"
    "{%- for t in m.tool_calls or [] %}{{- '\\n<tool_call>\\n' }}{{- t.function | tojson }}{{- '\\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SOURCES = {"r1": R1, "nemotron": NEMOTRON, "qwen3": QWEN3}
Messages = list[dict[str, Any]]
ASK, MORE = {"role": "user", "content": "2+2?"}, {"role": "user", "content": "3+3?"}
TALK: Messages = [
    ASK,
    {"role": "assistant", "content": "<think>\nhm, four\n</think>\n\nIt is 4."},
    MORE,
    {"role": "assistant", "content": "<think>\nsix\n</think>\n\nIt is 6."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama3(tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def peer(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def prompt_of(peer: Any, tokenizer: Tokenizer, source: str, messages: Messages) -> list[int]:
    """The ids that transformers asks with."""
    ids = peer.apply_chat_template(messages, chat_template=source, add_generation_prompt=True, return_dict=False)
    return ids if ids[0] == tokenizer.bos_id else [tokenizer.bos_id, *ids]


def halves(tokenizer: Tokenizer, row: Any) -> tuple[list[int], str]:
    """What is not learned at the beginning, and what is, as text."""
    start, end = row.supervised.index(True), len(row.supervised) - row.supervised[::-1].index(True)
    assert all(row.supervised[start:end]), "one response, to its end"
    assert not tokenizer.decode(row.tokens[end:], skip_control=False).strip()
    return row.tokens[:start], tokenizer.decode(row.tokens[start:end], skip_control=False)


@pytest.mark.parametrize("turns", [2, 4])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_answer_continues_the_prompt_of_transformers_with_its_reasoning(
    kind: str, turns: int, tokenizer: Tokenizer, peer: Any
) -> None:
    source = SOURCES[kind]
    made = ChatTemplate.from_source(source).rows(tokenizer, TALK[:turns])
    assert len(made.encoded) == turns // 2, "one row an answer, because earlier answers stand without their reasoning"
    for number, row in zip(range(1, turns, 2), made.encoded, strict=True):
        head, said = halves(tokenizer, row)
        assert head == prompt_of(peer, tokenizer, source, TALK[:number])
        opened = "<think>\n" if kind == "r1" else ""
        assert (opened + said).startswith(TALK[number]["content"])
        assert row.tokens[len(head) :].count(tokenizer.token_id("</think>")) == 1, "the tag is the model's own token"


def test_the_row_of_the_peer_would_lose_it(tokenizer: Tokenizer, peer: Any) -> None:
    for kind in ("r1", "nemotron"):
        theirs = peer.apply_chat_template(TALK, chat_template=SOURCES[kind], tokenize=False)
        assert "four" not in theirs.replace("<think>", "")
        made = ChatTemplate.from_source(SOURCES[kind]).rows(tokenizer, TALK)
        assert made.notes == {"reasoning_restored": 2, "own_rows": 1}
        assert ["four" in row.text for row in made.encoded] == [True, False]
        assert "six" in made.encoded[1].text


def test_a_conversation_stays_one_row_where_all_of_it_stands_as_it_will_be_asked(tokenizer: Tokenizer) -> None:
    plain = [ASK, {"role": "assistant", "content": "It is 4."}, MORE, TALK[3]]
    for kind in ("nemotron", "qwen3"):
        made = ChatTemplate.from_source(SOURCES[kind]).rows(tokenizer, plain)
        assert len(made.encoded) == 1
        assert made.encoded[0].text.count("It is") == 2 and "six" in made.encoded[0].text
        assert made.encoded[0].supervised.count(True) > 20
    kept = ChatTemplate.from_source(tiny.LLAMA3_TEMPLATE).rows(tokenizer, TALK)
    assert kept.encoded == [ChatTemplate.from_source(tiny.LLAMA3_TEMPLATE).encode(tokenizer, TALK)] and not kept.notes


@pytest.mark.parametrize("kind", [*SOURCES, "llama-3"])
def test_reasoning_is_dropped_by_choice_and_counted(kind: str, tokenizer: Tokenizer, peer: Any) -> None:
    template = ChatTemplate.builtin(kind) if kind == "llama-3" else ChatTemplate.from_source(SOURCES[kind])
    made = template.rows(tokenizer, TALK, reasoning="drop")
    assert made.notes["reasoning_dropped"] == 2
    for row in made.encoded:
        assert "hm, four" not in row.text and "six" not in row.text
        runs = tokenizer.decode([t for t, s in zip(row.tokens, row.supervised) if s], skip_control=False)
        assert "It is" in runs
    if kind == "r1":
        head, said = halves(tokenizer, made.encoded[1])
        assert head == prompt_of(peer, tokenizer, R1, TALK[:3]), "earlier answers stand as they will in use"
        assert said == "\n</think>\n\nIt is 6.<|eot_id|>" and made.notes["reasoning_closed"] == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("It is 4.", "\n</think>\n\nIt is 4.<|eot_id|>"),
        ("hm\n</think>\n\nIt is 4.", "hm\n</think>\n\nIt is 4.<|eot_id|>"),
        ("<think>hm</think>It is 4.", "hm</think>It is 4.<|eot_id|>"),
        ("<think>\n\n</think>\n\nIt is 4.", "\n</think>\n\nIt is 4.<|eot_id|>"),
        ("<think>\nhm\n</think>\n\n", "hm\n</think>\n\n<|eot_id|>"),
        ("<think>a <|eot_id|> b</think>It is </think> 4.", "a <|eot_id|> b</think>It is </think> 4.<|eot_id|>"),
    ],
)
def test_answers_of_every_shape_to_a_prompt_that_opens_a_thought(
    content: str, said: str, tokenizer: Tokenizer, peer: Any
) -> None:
    made = ChatTemplate.from_source(R1).rows(tokenizer, [ASK, {"role": "assistant", "content": content}])
    (row,) = made.encoded
    head, learnt = halves(tokenizer, row)
    assert (head, learnt) == (prompt_of(peer, tokenizer, R1, [ASK]), said)
    assert row.tokens.count(tokenizer.token_id("<|eot_id|>")) == 1, "what people typed is no control token"
    assert row.tokens.count(tokenizer.token_id("</think>")) == 1


def test_the_last_response_alone_and_switches(tokenizer: Tokenizer) -> None:
    template = ChatTemplate.from_source(R1)
    made = template.rows(tokenizer, TALK, on_responses="last")
    assert [row.text for row in made.encoded] == [template.rows(tokenizer, TALK).encoded[1].text]
    quiet = [*TALK[:3], {**TALK[3], "loss": False}]
    assert [row.text for row in template.rows(tokenizer, quiet).encoded] == [
        template.rows(tokenizer, TALK).encoded[0].text
    ]
    every = template.rows(tokenizer, TALK, train_on_prompt=True).encoded
    assert not every[0].supervised[1] and all(every[1].supervised[1:]), "a prompt is learned once"


def test_what_a_template_prints_in_part_only_is_counted(tokenizer: Tokenizer) -> None:
    long = [{"role": "user", "content": "A rather long question?"}, {"role": "assistant", "content": "Yes."}]
    for short in ("message['content'].split('rather')[0]", "message['content'][:9]"):
        source = tiny.LLAMA3_TEMPLATE.replace("message['content'] | trim", f"{short} | trim")
        made = ChatTemplate.from_source(source).rows(tokenizer, long)
        assert made.notes == {"content_cut": 1} and "long question" not in made.encoded[0].text


def test_calls_whose_content_is_null(tokenizer: Tokenizer, peer: Any) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    said = {"role": "assistant", "content": "<think>\nok\n</think>\n\n4."}
    talk = [ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "4"}, said]
    made = ChatTemplate.from_source(R1).rows(tokenizer, talk)
    told = [halves(tokenizer, row)[1] for row in made.encoded]
    assert told == ['\n</think>\n\n<tool_call>add\n{"a": 1}</tool_call><|eot_id|>', "ok\n</think>\n\n4.<|eot_id|>"]
    assert halves(tokenizer, made.encoded[0])[0] == prompt_of(peer, tokenizer, R1, talk[:1])
    asked = ChatTemplate.from_source(R1).encode(tokenizer, talk[:3], add_generation_prompt=True)
    assert halves(tokenizer, made.encoded[1])[0] == asked.tokens  # transformers takes a null content out of the message


def test_the_end_of_a_turn_after_a_call_is_learned_though_the_template_has_no_stable_beginning(
    tokenizer: Tokenizer,
) -> None:
    """Qwen3's template writes the call's turn in another way once a question follows it."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    talk = [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        MORE,
        {"role": "assistant", "content": "6"},
    ]
    row = ChatTemplate.from_source(QWEN3).encode(tokenizer, talk)
    learnt = tokenizer.decode([t for t, s in zip(row.tokens, row.supervised) if s], skip_control=False)
    assert learnt.count("<|im_end|>") == 2 and "</tool_call><|im_end|>" in learnt


def test_an_answer_without_words_is_named_where_the_template_marks_no_beginning(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n{% endfor %}<|eot_id|>"
    talk = [ASK, {"role": "assistant", "content": ""}, MORE, {"role": "assistant", "content": "6"}]
    with pytest.raises(Refusal) as caught:
        ChatTemplate.from_source(source).encode(tokenizer, talk)
    assert "message 2: the assistant says nothing" in caught.value.found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("<think>\na\n</think>\n\nb", ("<think>\n", "a", "\n</think>\n\n", "b")),
        ("  <reasoning>a</reasoning>b", ("  <reasoning>", "a", "</reasoning>", "b")),
        ("a</think> b", ("", "a", "</think> ", "b")),
        ("<think>a", None),
        ("a", None),
        (None, None),
        ("<thinking>a</think>b", None),
    ],
)
def test_the_pieces_of_an_answer(content: Any, found: Any) -> None:
    pieces = reasoning.parts(content)
    assert found == (None if pieces is None else (pieces.opening, pieces.thought, pieces.closing, pieces.answer))
    assert pieces is None or "".join(found) == content
