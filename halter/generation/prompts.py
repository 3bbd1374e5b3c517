"""What one may ask a model, as token ids: a string as it stands, a conversation, or token ids."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from halter import kinds
from halter.data.turns import under_system
from halter.errors import Refusal
from halter.files.row_names import called_rows
from halter.generation.options import GenerationKeywords
from halter.generation.seeing import Seeing
from halter.kinds import Worded
from halter.pictures.seen import RowPicture
from halter.readers.named import AsReader
from halter.telling import tell_once
from halter.text.chat import marks as chat_marks
from halter.text.chat.conversations import ChatTemplate, writable
from halter.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids, BOS included; ``continues`` says that the answer goes on with the prompt's text, word by word.

    ``stop_ids`` end an answer to this prompt beside the tokenizer's own: the end of turn of its template.
    """

    tokens: tuple[int, ...]
    continues: bool
    stop_ids: tuple[int, ...] = ()
    pictures: tuple[RowPicture, ...] = ()
    """Where pictures stand among the tokens."""


Prompt: TypeAlias = str | EncodedPrompt | Sequence[int] | Sequence[Mapping[str, Any]]
Prompts: TypeAlias = Annotated[
    Prompt | Sequence[Prompt | Tensor] | Tensor,
    Worded("a text, a list of token ids, a conversation (a list of messages), or a list of these"),
]
LONGEST_NAME = 256
Readers: TypeAlias = Annotated[
    AsReader | Sequence[AsReader], Worded("names of readers, functions from a picture to a text, or a list of these")
]
Template: TypeAlias = str | ChatTemplate | None


class AnswerKeywords(GenerationKeywords, total=False):
    """What ``generate`` and ``stream`` take by name: how prompts become tokens, how many answers, and their options."""

    template: Template
    template_date: str | None
    prefill: str
    n: int
    max_rows: int
    fetch_pictures: bool
    readers: Readers
    json_schema: Mapping[str, Any] | None


def as_list(prompts: Prompts) -> list[Prompt]:
    """One prompt or several as a list. A list of mappings is one conversation, a list of numbers one prompt's ids.
    Refusals ``tokens-wanted`` for a tensor of no ids, ``prompts-unordered`` for a set, ``rows-asked`` for rows."""
    if isinstance(prompts, set | frozenset):
        what = "a set has no order, so nobody could tell which answer is whose"
        raise Refusal("prompts-unordered", what, where="prompts", fix="prompts=sorted(prompts), or a list")
    plain: Any = _ids(prompts, 1, 2) if isinstance(prompts, Tensor) else prompts
    if isinstance(plain, str | EncodedPrompt):
        return [plain]
    items = [_ids(one, 0, 1) if isinstance(one, Tensor) else one for one in plain]
    if (rows := kinds.rows_in(items)) and "role" not in rows.columns and isinstance(items[0], Mapping):
        what, named = "these are rows, and what they ask stands in one of their columns", ", ".join(rows.columns)
        raise Refusal("rows-asked", what, where="prompts", found=[named], fix=f"prompts={rows.asks}")
    return [items] if items and isinstance(items[0], Mapping | Integral) else items


def _ids(tensor: Tensor, least: int, most: int) -> Any:
    """Token ids as Python's numbers. Refusal ``tokens-wanted`` for other numbers, or other dimensions."""
    if not least <= tensor.dim() <= most or tensor.is_floating_point() or tensor.dtype == torch.bool:
        found = f"{tensor.dtype} {list(tensor.shape)}"
        expected = "int64 [T] or [B, T]" if most == 2 else "int64 [T] each"
        raise Refusal(
            "tokens-wanted",
            "a tensor of prompts is token ids",
            found=[found],
            expected=expected,
            fix="give texts, or [tokenizer.bos_id, *tokenizer.encode(TEXT)]",
        )
    return tensor.tolist()


def tell_of_template(asked: Sequence[Any], template: Template, adapter: Any) -> None:
    """Say once that texts are asked without the template in which their adapter was trained."""
    if template is not None or not any(isinstance(one, str) for one in asked):
        return
    for one in adapter if isinstance(adapter, list | tuple) else [adapter]:
        name = (getattr(one, "facts", {}).get("template") or {}).get("name")
        if name:
            tell_once(f"note: this adapter was trained with {name}; template={name!r} asks it so")


def as_template(template: Template) -> ChatTemplate | None:
    """The template that is meant by a name. Refusals of ``ChatTemplate.named``."""
    return ChatTemplate.named(template) if isinstance(template, str) else template


def encode_prompt(
    tokenizer: Tokenizer,
    prompt: Prompt,
    template: Template = None,
    date: str | None = None,
    prefill: str = "",
    tools: Sequence[Any] | None = None,
    seeing: Seeing | None = None,
) -> EncodedPrompt:
    """Ids of a prompt, and of ``prefill``, with which its answer begins.

    A string is used as it stands, after BOS; with ``template`` (a built-in one's name, a Jinja file, or a template) it
    is one user turn. A conversation goes through ``template`` or the tokenizer's own; ``date`` (YYYY-MM-DD) is for
    those that ask what day it is, ``tools`` for those that have a place for them. One that ends with the assistant's
    words is continued there. Pictures are parts of messages, taken as ``seeing`` says. Refusals ``no-chat-template``,
    ``prefill-tokens`` for words after token ids, and those of Seeing.
    """
    if isinstance(prompt, EncodedPrompt):
        return prompt
    template = as_template(template)
    if isinstance(prompt, str):
        if template is None:
            opening = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
            return EncodedPrompt((*opening, *tokenizer.encode(prompt + prefill)), continues=True)
        prompt = [{"role": "user", "content": prompt}]
    items = list(prompt)
    if not items or not isinstance(items[0], Mapping):
        if prefill:
            what = "the prompt is token ids, so the answer's first words must be ids too"
            raise Refusal("prefill-tokens", what, fix="encode the text and add its ids to the prompt")
        return EncodedPrompt(tuple(int(id) for id in items), continues=True)  # type: ignore[call-overload]
    template = template or tokenizer.chat_template
    if template is None:
        raise _no_template(tokenizer)
    messages = [dict(message) for message in items]  # type: ignore[call-overload]
    begun, last = "", messages[-1]
    if last.get("role") == "assistant" and isinstance(last.get("content"), str) and not last.get("tool_calls"):
        begun = messages.pop()["content"]
    seeing = seeing or Seeing()
    messages, looked = seeing.look(messages)
    how: dict[str, Any] = {"tools": tools, "date": date, "picture": seeing.control(tokenizer) if looked else None}
    tokens = template.encode(tokenizer, messages, add_generation_prompt=True, **how).tokens
    if begun + prefill:
        tokens += _begun(tokenizer, template, messages, begun + prefill, tokens, how)
    tokens, pictures = seeing.placed(tokens, looked)
    stops = turn_end(tokenizer, template)
    return EncodedPrompt(tuple(tokens), continues=bool(begun + prefill), stop_ids=stops, pictures=pictures)


def _no_template(tokenizer: Tokenizer) -> Refusal:
    """Refusal ``no-chat-template``, with the built-in templates that this tokenizer can write."""
    usable = writable(tokenizer)
    name = "alpaca" if "alpaca" in usable else next(iter(usable), "")
    others = ", ".join(one for one in usable if one != name)
    fix = f'give --template {name}, in Python template="{name}" ({others} can be written too)' if name else ""
    what = "this tokenizer has no chat template, so a conversation cannot be put into words"
    return Refusal("no-chat-template", what, fix=fix or "ask in plain text, without messages")


def _begun(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    words: str,
    prompt: Sequence[int],
    how: Mapping[str, Any],
) -> list[int]:
    """Ids of an answer's first ``words``, as a training row has them after ``prompt``; ``how`` both are written.

    The template may put white space before an answer or take it away after one; what it takes away is added again.
    """
    answered = [*messages, {"role": "assistant", "content": words}]
    row = template.encode(tokenizer, answered, **how).tokens
    rest = row[len(prompt) :] if row[: len(prompt)] == list(prompt) else []
    wanted, length, said = words.strip(), 0, ""
    for end in range(1, len(rest) + 1):
        text = tokenizer.decode(rest[:end], skip_control=False).lstrip()
        if wanted.startswith(text.rstrip()) and words.lstrip().startswith(text):
            length, said = end, text
    if said.rstrip() != wanted:  # a token holds the words' end and more, or the template changes them
        return tokenizer.encode(words, continues=True)
    missing = words.lstrip()[len(said) :]
    return rest[:length] + (tokenizer.encode(missing, continues=True) if missing else [])


def with_system(prompt: Prompt, system: str, template: Template) -> list[dict[str, Any]]:
    """The conversation that the prompt is, with a system message ahead of it; one that it has is replaced.

    Refusal ``system-unused`` where no template makes a conversation of the prompt, or where it is token ids.
    """
    turns: list[dict[str, Any]] | None = None
    if isinstance(prompt, str) and template is not None:
        turns = [{"role": "user", "content": prompt}]
    elif not isinstance(prompt, str | EncodedPrompt):
        items: list[Any] = list(prompt)
        if all(isinstance(turn, Mapping) for turn in items) and (items or template is not None):
            turns = items
    if turns is None:
        raise system_unused()
    return under_system(turns, system)


def system_unused(why: str = "without a chat template the prompt is used word for word") -> Refusal:
    """Refusal ``system-unused``: nothing that is asked has a place for a system message."""
    fix = "give --template (llama-3, alpaca, ...), or write it into the prompt"
    return Refusal("system-unused", f"there is no place for a system message: {why}", fix=fix).by_keyword()


def told_of_marks(prompts: Sequence[Prompt], template: Template) -> str:
    """A note where prompts hold the marks of a template and one is put around them; '' where it need not be said."""
    put = [one for one in prompts if not isinstance(one, str) or template is not None]
    marks = [mark for one in put if (mark := chat_marks.begun("\n".join(_spoken(one))))]
    if not marks:
        return ""
    which = "the prompt holds" if len(prompts) == 1 else f"{len(marks)} of {len(prompts)} prompts hold"
    return (
        f"note: {which} the marks of a chat template ({marks[0]}), and a template is put around that all the "
        "same: ask in plain words, or without a template (--template raw)"
    )


def told_of_files(prompts: Sequence[Prompt]) -> str:
    """A note where a prompt is the name of a file of rows; '' where none is."""
    short = (one for one in prompts if isinstance(one, str) and len(one) < LONGEST_NAME and "\n" not in one)
    named = [one for one in short if called_rows(Path(one)) and Path(one).is_file()]
    if not named:
        return ""
    way = f"what it holds is asked with halter generate RUN --input {shlex.quote(named[0])}"
    return f"note: {named[0]} is a file, and its name is what the model reads; {way}"


def _spoken(prompt: Prompt) -> list[str]:
    """The texts of a prompt; none of one that is token ids."""
    if isinstance(prompt, str):
        return [prompt]
    items: list[Any] = [] if isinstance(prompt, EncodedPrompt) else list(prompt)
    return [turn["content"] for turn in items if isinstance(turn, Mapping) and isinstance(turn.get("content"), str)]


def turn_end(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """The control token that ends a response in this template, which a base model's tokenizer need not call a stop."""
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
    last = template.encode(tokenizer, turn).tokens[-1]
    return (last,) if any(control.id == last for control in tokenizer.controls) else ()


def _unknown(prompt: EncodedPrompt, vocab_size: int) -> list[int]:
    """Ids beyond the vocabulary; those of pictures may be rows that it has besides."""
    beyond = [(place, id) for place, id in enumerate(prompt.tokens) if not 0 <= id < vocab_size]
    return [id for place, id in beyond if not any(one.start <= place < one.end for one in prompt.pictures)]


def too_long(prompt: EncodedPrompt, context: int) -> bool:
    """Whether a prompt leaves no room for one token of an answer in a context of so many tokens."""
    return len(prompt.tokens) >= context


def check_prompts(prompts: Sequence[EncodedPrompt], context: int, vocab_size: int) -> None:
    """Refusals ``prompt-empty``, ``prompt-tokens`` and ``prompt-too-long``, each naming everything that is wrong."""
    empty = [f"prompt {i}" for i, p in enumerate(prompts) if not p.tokens]
    if empty:
        raise Refusal(
            "prompt-empty",
            "a prompt without any token",
            found=empty,
            expected="at least one token",
            fix="give each prompt some text",
        )
    outside = [f"prompt {i}: {id}" for i, p in enumerate(prompts) for id in _unknown(p, vocab_size)]
    if outside:
        known = f"0 .. {vocab_size - 1}"
        raise Refusal(
            "prompt-tokens",
            "token ids that this model does not have",
            found=outside,
            expected=known,
            fix="encode the texts with this model's tokenizer, or give the texts",
        )
    long = [f"prompt {i}: {len(p.tokens)} tokens" for i, p in enumerate(prompts) if too_long(p, context)]
    if long:
        raise Refusal(
            "prompt-too-long",
            f"prompts leave no room for an answer in this model's context of {context} tokens",
            found=long,
            fix="shorten them, or halter generate with --on-long skip, or --on-long cut, which cuts their beginnings",
        )
