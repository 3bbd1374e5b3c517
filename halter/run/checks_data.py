"""What is wrong with rows, template and vocabulary together, found before the base is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from halter.adapters.adapter import Adapter
from halter.data.example import Example
from halter.data.examples import Examples
from halter.errors import Refusal
from halter.files.checkpoint import ModelFolder
from halter.files.vocabulary_rows import rows_of
from halter.model.config import ModelConfig
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

MOST_SCANNED = 200_000
"""Rows whose tokens are looked at; of more, so many evenly spread ones."""
BLOCK = 1024
SAMPLED = 512
"""Ordinary rows of a vocabulary matrix that a token's row is compared with."""
NEAR_ZERO = 0.02
"""An untrained row is shorter than this share of the median: it stayed at zero, or decayed to it."""
TALKS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "What is your name?"), ("assistant", "I have none.")),
    (("system", "Be brief."), ("user", "Who are you?"), ("assistant", "A program.")),
    (("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four.")),
)
"""Conversations that two templates must write alike to be one."""


@dataclass(frozen=True)
class Scan:
    """What the rows hold: ids that occur and ids that are learnt (bool [ids]), rows with BOS after BOS, and rows in
    which an end that is also the pad token is masked right after what is learnt."""

    there: np.ndarray
    learnt: np.ndarray
    doubled: list[str]
    unended: list[str]
    rows: int


def _said(row: Example) -> np.ndarray:
    """A row's tokens without those of its pictures, which a family may feed from elsewhere than its vocabulary."""
    inside = [n for one in row.pictures for n in range(one.start, one.end)]
    return np.delete(row.tokens, inside) if inside else row.tokens


def scan(examples: Examples, tokenizer: Tokenizer, known: int = 0) -> Scan:
    """Look through the rows once. ``known``: how many tokens the base can be fed, pictures' among them, for which a
    tokenizer may have no text."""
    size = max(tokenizer.vocab_size, known)
    bos = -1 if tokenizer.bos_id is None else tokenizer.bos_id
    places = np.linspace(0, len(examples) - 1, min(len(examples), MOST_SCANNED)).astype(np.int64)
    end = -1 if tokenizer.pad_id is None or tokenizer.pad_id not in tokenizer.stop_ids else tokenizer.pad_id
    there, learnt = np.zeros(size, bool), np.zeros(size, bool)
    doubled: list[str] = []
    unended: list[str] = []
    for start in range(0, len(places), BLOCK):
        rows = [examples[place] for place in places[start : start + BLOCK].tolist()]
        starts = np.cumsum([0, *(len(row.tokens) for row in rows)])
        tokens = np.concatenate([row.tokens for row in rows])
        targets = np.concatenate([row.supervised for row in rows])
        there[np.concatenate([_said(row) for row in rows])] = True
        learnt[tokens[targets]] = True
        for told, second in (
            (doubled, (tokens[1:] == bos) & (tokens[:-1] == bos)),
            (unended, (tokens[1:] == end) & targets[:-1] & ~targets[1:]),
        ):
            at = np.flatnonzero(second) + 1
            which = np.searchsorted(starts, at, side="right") - 1
            inside = at > starts[which]  # the first token of a row follows none
            told += [rows[n].origin for n in np.unique(which[inside]).tolist()]
    return Scan(there, learnt, doubled, unended, len(places))


def rows(found: Scan, tokenizer: Tokenizer, config: ModelConfig) -> Iterator[Refusal]:
    """Refusals ``double-bos``, ``pad-trained``, ``token-without-row``."""
    if found.doubled:
        bos = tokenizer.token(tokenizer.bos_id or 0)
        yield Refusal(
            "double-bos",
            f"{len(found.doubled)} of {found.rows} rows have {bos} right after {bos}; the base has seen one at a time",
            fix="take the BOS out of the data or of the template, one is put before every row",
            found=found.doubled,
            waivable=True,
        )
    pad = tokenizer.pad_id
    if found.unended:
        yield Refusal(
            "pad-trained",
            f"{tokenizer.token(pad or 0)} is the pad token and the end of a text, and {len(found.unended)} of "
            f"{found.rows} rows have it masked right after what is learned: the model would never learn to stop",
            fix="learn the end too (labels are the token itself, -100 only where nothing is learned)",
            found=found.unended,
            waivable=True,
        )
    elif pad is not None and pad not in tokenizer.stop_ids and pad < len(found.learnt) and found.learnt[pad]:
        # A pad token that is the end of a text, as in many checkpoints, is learnt by right: Halter masks no padding.
        yield Refusal(
            "pad-trained",
            f"the pad token {tokenizer.token(pad)} is learned; programs that mask padding would unlearn it",
            fix="give pad_token in tokenizer_config.json a token that nothing else uses",
            waivable=True,
        )
    beyond = np.flatnonzero(found.there[config.table_rows :]) + config.table_rows
    if len(beyond):
        yield Refusal(
            "token-without-row",
            f"the data holds tokens for which the base has no row, it has {config.table_rows}",
            found=[tokenizer.token(id) for id in beyond.tolist()],
            fix="take the tokenizer files that came with the base",
        )


def needed_tokens(found: Scan, tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """Control tokens in the rows which only a template puts there: headers and ends of turns, not BOS and EOS."""
    always = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id}
    ids = {control.id for control in tokenizer.controls} - always
    return sorted(id for id in ids if id < config.vocab_size and found.there[id])


def untrained_tokens(
    checkpoint: ModelFolder,
    config: ModelConfig,
    tokenizer: Tokenizer,
    needed: Sequence[int],
    found: Scan,
    adapter: Adapter | None,
) -> Iterator[Refusal]:
    """Refusal ``untrained-tokens`` where the base's rows for ``needed`` ids are near zero, or equal to one another, and
    the adapter trains no such row. Rows of ids that are learnt are looked at in the head as well."""
    slots = [slot for slot in adapter.slots if slot.layer is None] if adapter is not None else []
    names = checkpoint.names()
    wrong: dict[int, str] = {}
    learnt = [id for id in needed if found.learnt[id]]
    for place, ids in zip(config.layout.vocabulary, (needed, learnt), strict=True):
        name = place.weight_name
        here = [slot.piece.token_ids for slot in slots if slot.place == place.name]
        ids = [id for id in ids if not any(rows is None or id in rows for rows in here)]
        if name in names and ids:
            wrong |= {
                id: f"{why} in {name}" for id, why in _untrained(checkpoint, name, ids, tokenizer) if id not in wrong
            }
    if wrong:
        yield Refusal(
            "untrained-tokens",
            "the chat template needs tokens that this base was never trained on",
            where=str(checkpoint.folder),
            found=[f"{tokenizer.token(id)} ({why})" for id, why in sorted(wrong.items())],
            fix="take the base's instruct version, or a template without them (data.template: alpaca), or train just "
            "these rows beside your method in a recipe file: method: "
            f"[{{name: lora}}, {{name: token_rows, tokens: {sorted(wrong)}}}]",
            waivable=True,
        )


def _untrained(
    checkpoint: ModelFolder, name: str, ids: Sequence[int], tokenizer: Tokenizer
) -> Iterator[tuple[int, str]]:
    size = checkpoint.names()[name].shape[0]
    controls = sorted({c.id for c in tokenizer.controls if c.id < size} | set(ids))
    ordinary = [id for id in np.linspace(0, size - 1, min(size, SAMPLED)).astype(int).tolist() if id not in controls]
    median = float(rows_of(checkpoint, name, ordinary).norm(dim=1).median()) if ordinary else 0.0
    held = dict(zip(controls, rows_of(checkpoint, name, controls)))
    for id in ids:
        length = float(held[id].norm())
        twins = [other for other in controls if other != id and torch.equal(held[other], held[id])]
        if not length > NEAR_ZERO * median:
            yield id, f"its row is {length:.2g} long, the median is {median:.2g}"
        elif twins:
            yield id, f"its row is that of {tokenizer.token(twins[0])} to the bit"


def templates(
    used: ChatTemplate | None,
    others: Mapping[str, ChatTemplate | None],
    tokenizer: Tokenizer,
    date: str | None,
) -> Iterator[Refusal]:
    """Refusal ``template-differs`` where ``used``, the template trained with, writes other tokens than one of
    ``others`` {whose: template}; None there means that it was used without any."""
    differences = []
    for whose, other in others.items():
        if (used is None) != (other is None):
            differences.append(f"{whose} has {'none' if other is None else other.name}")
        elif used is not None and other is not None:
            differences += [f"{whose} {text}" for text in difference(used, other, tokenizer, date)]
    if differences:
        name = "none" if used is None else used.name
        yield Refusal(
            "template-differs",
            f"training would use another chat template ({name}) than there is besides",
            found=differences,
            fix="leave data.template out to use the checkpoint's own; after an adapter, give the one of its training",
            waivable=True,
        )


def difference(used: ChatTemplate, other: ChatTemplate, tokenizer: Tokenizer, date: str | None) -> list[str]:
    """In what tokens two templates differ over TALKS: [] in none, else one line on the first that differs."""
    if used.digest == other.digest:
        return []
    for talk in TALKS:
        messages = [{"role": role, "content": content} for role, content in talk]
        here, there = (_written(t, messages, tokenizer, date) for t in (used, other))
        if here != there:
            return [f"writes {_around(there[0], here[0])}, and not {_around(here[0], there[0])}"]
    return []


def _written(
    template: ChatTemplate, messages: list[dict[str, str]], tokenizer: Tokenizer, date: str | None
) -> tuple[str, Any]:
    try:
        encoded = template.encode(tokenizer, messages, date=date)
    except Refusal as refusal:  # both may do without a system's turn, say
        return f"nothing ({refusal.id})", refusal.id
    text = tokenizer.decode(list(encoded.tokens), skip_control=False)
    return text, (list(encoded.tokens), list(encoded.supervised))


def _around(text: str, other: str) -> str:
    """The part of a text where it begins to differ from another."""
    pairs = enumerate(zip(text, other))
    first = next((n for n, (a, b) in pairs if a != b), min(len(text), len(other)))
    start = max(0, first - 10)
    return repr(("..." if start else "") + text[start : start + 60])
