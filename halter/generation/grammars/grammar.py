"""A form as a grammar over the tokens of one tokenizer, shared by many answers, and its state in each of them.

llguidance keeps a parser over bytes and says which tokens' bytes may come next. So a form holds for text, however it is
cut into tokens, and for every kind of tokenizer. Ends of an answer are no text: a row's stop ids are allowed where
the form is complete.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from halter.errors import HalterError, Refusal
from halter.files.extras import missing_extra
from halter.generation.grammars.forms import AnswerForm, unusable
from halter.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

KEPT = 64
"""Grammars of a tokenizer that are kept, and as many refusals: those that were asked for longest ago go first."""


class FormFault(HalterError):
    """A form that cannot be gone on with; it ends its own answer alone."""


class Grammar:
    """A form that can be used. ``digest`` is its own."""

    def __init__(self, matcher: LLMatcher, digest: str, vocab_size: int) -> None:
        self._matcher, self.digest, self._vocab_size = matcher, digest, vocab_size

    def begin(self, stop_ids: Collection[int]) -> Constraint:
        """Its state at the beginning of an answer that these ids end."""
        return Constraint(self._matcher.deep_copy(), stop_ids, self._vocab_size)


class Constraint:
    """A form in the middle of one answer."""

    def __init__(self, matcher: LLMatcher, stop_ids: Collection[int], vocab_size: int) -> None:
        self._matcher, self._stop_ids, self._vocab_size = matcher, frozenset(stop_ids), vocab_size

    def allowed(self, size: int) -> Tensor:
        """Bool [size]: which of the tokens below ``size`` may come next. Changes nothing. Raises FormFault."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._refuse_broken()
        known = min(size, self._vocab_size)  # behind them is the end that is only the library's
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[:known] = torch.from_numpy(np.unpackbits(mask, count=known, bitorder="little"))
        ends = [id for id in self._stop_ids if 0 <= id < size]
        allowed[ends] = self._matcher.is_accepting()
        if not allowed.any():
            raise FormFault("no token of this model goes on with the form that is asked for")
        return allowed

    def take(self, id: int) -> bool:
        """Go on by an allowed token; whether the form is complete and nothing can follow. Raises FormFault."""
        if id in self._stop_ids:
            return False
        self._matcher.consume_token(id)
        self._refuse_broken()
        return bool(self._matcher.is_stopped())

    def _refuse_broken(self) -> None:
        if self._matcher.is_error():
            from halter.generation.grammars.trial import reason

            raise FormFault(f"the form that is asked for is too much to follow: {reason(self._matcher.get_error())}")


class Grammars:
    """Those of one tokenizer, the ones that were asked for last kept by their digest. Safe between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self._spaced, self._vocab_size = tokenizer.drops_first_space, tokenizer.vocab_size
        self._tokens = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), slices=LLTokenizer.json_slices())
        self._kept: OrderedDict[str, Grammar | Refusal] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, form: AnswerForm) -> Grammar:
        """Refusal ``schema-unusable``, with the library's reason and where the schema stands."""
        digest = form.digest(self._spaced)
        with self._lock:
            known = self._kept.get(digest)
            if known is not None:
                self._kept.move_to_end(digest)
        if known is None:
            known = self._made(form, digest)
            with self._lock:
                self._kept[digest] = known
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        if isinstance(known, Refusal):
            raise known
        return known

    def _made(self, form: AnswerForm, digest: str) -> Grammar | Refusal:
        from halter.generation.grammars.process import trials
        from halter.generation.grammars.trial import compiled

        schemas, lark = form.schemas, form.lark(self._spaced)
        which, why = trials.fault([one.text for one in schemas], lark)
        if not why:
            matcher, why = compiled(self._tokens, lark)
            if not why:
                return Grammar(matcher, digest, self._vocab_size)
        return unusable(schemas[which or 0].where, why)


class _Vocabulary:
    """A tokenizer as llguidance wants it: the bytes of every id, and an end of its own, which no model has."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        size = self.eos_token_id = tokenizer.vocab_size
        self.tokens = [*(tokenizer.piece(id) for id in range(size)), b"<end>"]
        # Control tokens say nothing in a text, and so can be no part of a form; nor can ids without bytes.
        self.special_token_ids = [
            *(control.id for control in tokenizer.controls),
            *(id for id, data in enumerate(self.tokens) if not data),
            size,
        ]

    def __call__(self, text: str) -> list[int]:
        """The tokens by which a model would write a text that a form leaves no choice about."""
        return self._tokenizer.encode(text, continues=True)


_GRAMMARS: WeakKeyDictionary[Tokenizer, Grammars] = WeakKeyDictionary()
_MAKING = threading.Lock()


def grammar_of(tokenizer: Tokenizer, form: AnswerForm) -> Grammar:
    """The form as a grammar. Refusals ``schema-unusable``, and of ``grammars_of``."""
    return grammars_of(tokenizer).of(form)


def grammars_of(tokenizer: Tokenizer) -> Grammars:
    """Those of a tokenizer, kept with it. They take half a second for 128,000 tokens, in which no other thread goes on.
    Refusal ``extra-missing``."""
    with _MAKING:
        grammars = _GRAMMARS.get(tokenizer)
        if grammars is None:
            try:
                grammars = _GRAMMARS[tokenizer] = Grammars(tokenizer)
            except ImportError as error:
                raise missing_extra("serve", "answers of a given form", "json_schema", error) from error
    return grammars
