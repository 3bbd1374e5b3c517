"""A request while it is worked on: what of it the cache has, and what the next step feeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from halter.generation.requests import NOBODY, Request
from halter.generation.streaming import Delta, GrowingAnswer, TokenLogprob
from halter.pictures.seen import RowPicture, between
from halter.pictures.tokens import compared


class Outcome(NamedTuple):
    """What one step made of a row: its next token, nothing while its prompt lasts, or the fault that ends it; and what
    is told of its tokens. ``last``: the answer's form is complete with it."""

    token: int | None = None
    fault: Exception | None = None
    logprob: TokenLogprob | None = None
    prompt: tuple[TokenLogprob, ...] = ()
    last: bool = False


class ActiveRow:
    """One request. ``fed`` counts the tokens, of prompt and answer, that lie in the cache's ``slot``; ``pending`` are
    those of the next step. A row that waits for another's beginning has it as ``source``, and ``begins`` of its tokens
    come from there. ``reads_ahead``: ModelConfig's."""

    def __init__(self, id: int, request: Request, answer: GrowingAnswer, owner: int, reads_ahead: bool = False) -> None:
        self.id, self.answer, self.owner = id, answer, owner
        self.prompt, self.options, self.draws = request.prompt.tokens, request.options, request.draws
        self.party, self.kept = request.party or NOBODY, request.party is not None
        self.pictures = request.prompt.pictures
        self.compared = compared(self.prompt, self.pictures, reads_ahead)
        """The prompt by which it is compared with others."""
        self.together = self.pictures[-1].end if reads_ahead and self.pictures else 0
        """So many of its first tokens go in one step, as what is computed for them hangs on all of their pictures."""
        self.rule = request.options.rule
        self.constraint = None if request.grammar is None else request.grammar.begin(answer.stop_ids)
        self.slot, self.fed = -1, 0
        self.pending: Sequence[int] = ()
        self.source: ActiveRow | None = None
        self.begins = 0
        self.seen: Tensor | None = None
        self.told = 0  # log-probabilities that pieces have handed out

    @property
    def tells_prompt(self) -> bool:
        """Whether something is told of each of the prompt's tokens."""
        return self.options.prompt_logprobs is not None

    @property
    def filling(self) -> bool:
        """Whether the cache has not all of the prompt yet."""
        return self.fed < len(self.prompt)

    @property
    def completes(self) -> bool:
        """Whether the next step ends with the prompt's last token, or one after it, so that one can be chosen."""
        return self.fed + len(self.pending) >= len(self.prompt)

    @property
    def sights(self) -> tuple[RowPicture, ...]:
        """The pictures that the next step brings, placed as from its first token; those that are seen from everywhere
        come with every step."""
        return between(self.pictures, self.fed, self.fed + len(self.pending)) if self.pictures else ()

    @property
    def longest(self) -> int:
        """Tokens that the cache may have to hold: the last one of an answer is never fed back."""
        return len(self.prompt) + self.answer.budget - 1

    def begun(self, length: int) -> None:
        """Its slot has the first tokens of its prompt, which were computed for another row."""
        self.fed, self.source = length, None
        self.answer.cached_tokens = length

    @property
    def tokens(self) -> tuple[int, ...]:
        """Those that its slot has, of prompt and answer."""
        return (*self.prompt, *self.answer.tokens)[: self.fed]

    def take(self, outcome: Outcome) -> Delta | None:
        """Go on by what a step has made of this row; a piece where there is something to hand out."""
        if outcome.fault is not None:
            text = self.answer.end("error", str(outcome.fault) or type(outcome.fault).__name__)
        else:
            self.fed += len(self.pending)
            if self.answer.prompt_logprobs is not None:
                self.answer.prompt_logprobs += outcome.prompt
            if outcome.token is None:
                return None
            text = self.answer.push(outcome.token, outcome.logprob, outcome.last)
            self.pending = (outcome.token,)
        ended = self.answer.result
        if not text and ended is None:
            return None
        new = tuple(self.answer.logprobs[self.told :]) if self.answer.logprobs else ()
        self.told += len(new)
        return Delta(self.id, text, ended, new)
