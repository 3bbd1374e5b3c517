"""What a row asks and what it wants to be answered, told from its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halter.data.example import Example
from halter.generation.prompts import EncodedPrompt
from halter.text.tokenizer import Tokenizer

REPLACED = "\ufffd"
"""What is written for a piece of a wanted answer that the tokenizer does not know."""


@dataclass(frozen=True)
class Question:
    """A row's last response, to be generated: what comes before it, and the text that is wanted."""

    prompt: EncodedPrompt
    wanted: str


def question(example: Example, tokenizer: Tokenizer) -> Question | None:
    """The question that a row asks, or None for a row without a prompt (plain text) or without a response.

    Where the tokens have lost some of the answer, what is wanted is the row's own ``answer``; without it every <unk> is
    REPLACED, so that nothing wanted is never equal to nothing answered.
    """
    learnt = np.flatnonzero(example.supervised)
    if not len(learnt):
        return None
    end = int(learnt[-1]) + 1
    unlearnt = np.flatnonzero(~example.supervised[:end])
    start = int(unlearnt[-1]) + 1 if len(unlearnt) else 0
    prompt = tuple(example.tokens[:start].tolist())
    if prompt in ((), (tokenizer.bos_id,)):
        return None
    wanted = example.tokens[start:end].tolist()
    controls = {control.id for control in tokenizer.controls}
    stops = (wanted[-1],) if wanted[-1] in controls else ()  # a template's end of turn need not be a stop of the model
    said = [id for id in wanted if id not in (*tokenizer.stop_ids, *stops)]
    text = tokenizer.decode(said)
    if tokenizer.unk_id in said:
        text = _unsaid(said, tokenizer, example.answer)
    pictures = tuple(one for one in example.pictures if one.end <= start)
    return Question(EncodedPrompt(prompt, continues=False, stop_ids=stops, pictures=pictures), text)


def knows_all(example: Example, tokenizer: Tokenizer) -> bool:
    """Whether no learned token of a row stands for what its tokenizer does not know."""
    return tokenizer.unk_id is None or not bool((example.tokens[example.supervised] == tokenizer.unk_id).any())


def _unsaid(ids: Sequence[int], tokenizer: Tokenizer, own: str) -> str:
    """The text of ids with <unk> among them: ``own`` where they can come of it."""
    stretches: list[list[int]] = [[]]
    for id in ids:
        if id == tokenizer.unk_id:
            stretches.append([])
        else:
            stretches[-1].append(id)
    known = [tokenizer.decode(stretch) for stretch in stretches]
    return own if own and _comes_of(known, own) else REPLACED.join(known)


def _comes_of(known: Sequence[str], own: str) -> bool:
    """Whether a text holds these stretches in their order, the first at its beginning and the last at its end, with
    something between each two; white space aside, which templates take away and tokenizers add."""
    first, *between = ("".join(text.split()) for text in known)
    rest, last = "".join(own.split()), between.pop()
    if not rest.startswith(first):
        return False
    rest = rest[len(first) :]
    for stretch in between:
        at = rest.find(stretch, 1)
        if at < 1:
            return False
        rest = rest[at + len(stretch) :]
    return len(rest) > len(last) and rest.endswith(last)
