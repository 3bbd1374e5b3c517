"""From what a row means to its tokens, and which of them are learnt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from halter.data import formats
from halter.data.example import Example
from halter.data.formats import BadRow, Canonical
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.files.chat import ChatTemplate
from halter.files.chat_rows import encode_pair, encode_text
from halter.files.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoder:
    """Everything that decides a row's tokens."""

    options: DataOptions
    tokenizer: Tokenizer
    template: ChatTemplate | None

    def canonical(self, row: dict[str, Any], where: str) -> Canonical:
        """What the row means, its columns renamed as the recipe says. Raises BadRow, Refusal ``data-format``."""
        renamed = {theirs: ours for ours, theirs in self.options.columns.items()}
        absent = [theirs for theirs in renamed if theirs not in row]
        if absent:
            raise BadRow(f"missing key {', '.join(absent)}")
        row = {renamed.get(key, key): value for key, value in row.items()}
        if self.options.row_template is not None:
            row = {**row, "prompt": _filled(self.options.row_template, row)}
            return formats.prompt_completion(row)
        return formats.FORMATS[formats.find(set(row), where)].read(row)

    def example(self, meant: Canonical, origin: str) -> Example:
        """Tokens and targets. Refusal ``no-template`` where a conversation has no template to be written with."""
        every = self.options.train_on == "all"
        if meant.tokens is not None:
            ids = np.asarray(meant.tokens, dtype=np.int32)
            learnt = np.ones(len(ids), bool) if meant.labels is None else np.asarray(meant.labels) != -100
            if ids.size and (ids.min() < 0 or ids.max() >= self.tokenizer.vocab_size):
                raise BadRow("token ids outside the vocabulary")
            return Example(ids, learnt, origin)
        if meant.text is not None:
            encoded = encode_text(self.tokenizer, meant.text)
        elif meant.messages is None:
            encoded = encode_pair(self.tokenizer, meant.prompt or "", meant.completion or "")
        elif self.template is None:
            raise Refusal(
                "no-template",
                "conversations need a chat template, and this checkpoint has none",
                where=origin,
                expected="data.template: llama-2, llama-3, alpaca, vicuna or a Jinja file",
            )
        else:
            encoded = self.template.encode(
                self.tokenizer,
                meant.messages,
                tools=meant.tools,
                date=self.options.template_date,
                on_responses="last" if self.options.train_on == "last_response" else "all",
                train_on_prompt=every,
            )
        learnt = np.asarray(encoded.supervised, bool)
        return Example(np.asarray(encoded.tokens, np.int32), np.ones_like(learnt) if every else learnt, origin)

    def fitted(self, example: Example, whole_text: bool) -> Iterator[Example]:
        """The example as rows of at most max_length tokens, by the recipe's ``on_long``; none where it is dropped.

        A row whose answer would be cut away entirely is dropped whatever the policy.
        """
        most, policy = self.options.max_length, self.options.on_long
        if len(example.tokens) <= most:
            yield example
        elif policy == "split" and whole_text:
            for start in range(0, len(example.tokens), most):
                piece = slice(start, start + most)
                yield Example(example.tokens[piece], example.supervised[piece], example.origin)
        elif policy in ("cut", "split"):
            short = Example(example.tokens[:most], example.supervised[:most], example.origin)
            if short.targets:
                yield short


def _filled(template: str, row: dict[str, Any]) -> str:
    """``{column}`` replaced by the row's text; doubled braces stand for single ones."""

    def value(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in row:
            raise BadRow(f"missing key {match[1]}")
        return str(row[match[1]])

    return re.sub(r"\{\{|\}\}|\{(\w+)\}", value, template)
