"""From what a row means to its tokens, and which of them are learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from halter.data.example import Example
from halter.data.formats import Canonical
from halter.data.options import DataOptions
from halter.data.turns import BadRow, under_system
from halter.errors import Refusal
from halter.text.chat.conversations import BUILTIN, ChatTemplate
from halter.text.chat.rows import EncodedRows, encode_pair, encode_text
from halter.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoder:
    """Everything that decides a row's tokens."""

    options: DataOptions
    tokenizer: Tokenizer
    template: ChatTemplate | None
    system: str | None = None
    """The system message of every conversation, in place of one that a row has."""
    context: int | None = None
    """The most tokens that the model reads, where that is known: no length beyond it is ever offered."""

    @property
    def at_context(self) -> bool:
        """Whether the longest row that is taken is all that the model reads."""
        return self.context is not None and self.options.max_length >= self.context

    def examples(self, meant: Canonical, origin: str) -> tuple[list[Example], dict[str, int]]:
        """Tokens and targets of a row, which may be several rows to train on, and what is to be told of it (data.told).

        Raises BadRow where nothing is learnt; Refusal ``no-template`` where a conversation has no template to be
        written with, and those of the template.
        """
        if meant.tokens is not None:
            made, notes = [self._given(meant, origin)], {}
        else:
            rows = self._encoded(meant, origin)
            made = [Example(np.array(r.tokens, np.int32), np.array(r.supervised, bool), origin) for r in rows.encoded]
            notes = rows.notes
        if not any(example.targets for example in made):
            raise BadRow("no token to learn")
        return [example for example in made if example.targets], notes

    def _encoded(self, meant: Canonical, origin: str) -> EncodedRows:
        every = self.options.train_on == "all"
        if meant.text is not None:
            return EncodedRows([encode_text(self.tokenizer, meant.text)], {})
        if meant.messages is None:
            prompt, completion = meant.prompt or "", meant.completion or ""
            return EncodedRows([encode_pair(self.tokenizer, prompt, completion, train_on_prompt=every)], {})
        if self.template is None:
            raise Refusal(
                "no-template",
                "conversations need a chat template, and this checkpoint has none",
                where=origin,
                expected=f"data.template: {', '.join(BUILTIN)} or a Jinja file",
                fix="for a base model, --template alpaca is the usual choice",
            )
        return self.template.rows(
            self.tokenizer,
            meant.messages if self.system is None else under_system(meant.messages, self.system),
            tools=meant.tools,
            date=self.options.template_date,
            on_responses="last" if self.options.train_on == "last_response" else "all",
            train_on_prompt=every,
            reasoning=self.options.reasoning,
        )

    def _given(self, meant: Canonical, origin: str) -> Example:
        ids = np.array(meant.tokens, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= self.tokenizer.vocab_size):
            raise BadRow(f"token ids outside the vocabulary of {self.tokenizer.vocab_size}")
        learnt = np.ones(len(ids), bool) if meant.labels is None else np.array(meant.labels) != -100
        return Example(ids.astype(np.int32), learnt, origin)

    def keeping(self, example: Example, meant: Canonical) -> tuple[str, ...]:
        """Which ``on_long`` would keep something of a row that is too long; () of other rows."""
        most = self.options.max_length
        if len(example.tokens) <= most:
            return ()
        cut = ("cut",) if example.supervised[:most].any() else ()
        return (*cut, "split") if meant.text is not None or meant.tokens is not None else cut

    def fitted(self, example: Example, meant: Canonical) -> list[Example]:
        """The example as rows of at most max_length tokens, by the recipe's ``on_long``; none where it is dropped.

        A row whose answer would be cut away entirely is dropped whatever the policy.
        """
        most, policy = self.options.max_length, self.options.on_long
        if len(example.tokens) <= most:
            return [example]
        if policy == "split" and (meant.text is not None or meant.tokens is not None):
            return [piece for piece in self._pieces(example, most) if piece.targets]
        if policy == "cut":
            short = Example(example.tokens[:most], example.supervised[:most], example.origin)
            return [short] if short.targets else []
        return []

    def _pieces(self, example: Example, most: int) -> Iterator[Example]:
        """Pieces that learn every target once: each repeats the last token of the one before, as something to begin
        from, after a BOS where the row has one."""
        tokens, supervised = example.tokens, example.supervised
        bos = self.tokenizer.bos_id
        again = int(bos is not None and tokens[0] == bos and most > 2)
        yield Example(tokens[:most], supervised[:most], example.origin)
        for start in range(most - 1, len(tokens) - 1, max(1, most - 1 - again)):
            piece = tokens[start : start + most - again]
            learnt = supervised[start : start + most - again].copy()
            learnt[0] = False
            if again:
                piece, learnt = np.insert(piece, 0, tokens[0]), np.insert(learnt, 0, False)
            yield Example(piece, learnt, example.origin)
