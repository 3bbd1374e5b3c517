"""What generation hands out: pieces of text as they become certain, and the finished answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from halter.elsewhere import called_otherwise
from halter.errors import HalterError
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.stopping import StopStrings
from halter.text.tokenizer import Tokenizer

Finish = Literal["stop", "length", "context", "cancelled", "error"]


class TokenLogprob(NamedTuple):
    """How likely the model held a token where it stands, by its own logits, whatever the options then made of them."""

    token: int
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place with theirs, the likeliest first, as many as were asked for."""


@called_otherwise
@dataclass(frozen=True)
class Generation:
    """One finished answer."""

    text: str
    """The answer, without what stopped it."""
    tokens: tuple[int, ...]
    """What was generated, a stop id not included; where a stop string ended it, the tokens that spelt it are."""
    finish_reason: Finish
    """stop: a stop id or string came, or the form that it was held to is complete; length: max_new_tokens are there;
    context: the model's context is full; cancelled: whoever asked has gone; error: it could not be worked on, and
    ``error`` says why."""
    stop: int | str | None
    """The id or string that stopped it, where one did."""
    prompt_tokens: tuple[int, ...]
    """What the model was given, BOS included."""
    error: str = ""
    """What went wrong, where the finish reason is error."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of each of ``tokens``, where ``logprobs`` was asked for."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """Of each of ``prompt_tokens``, where that was asked for; None of the first, which nothing predicts."""

    cached_tokens: int = field(default=0, compare=False)
    """So many of ``prompt_tokens`` had been computed before, for this prompt's beginning in another row."""

    @property
    def cut_off(self) -> str:
        """Why it ends in the middle, '' where it came to its end."""
        words = {
            "length": f"max_new_tokens, {len(self.tokens)}",
            "context": "the model's context is full",
            "cancelled": "cancelled",
            "error": self.error,
        }
        return words.get(self.finish_reason, "")

    def __str__(self) -> str:
        return self.text


class Delta(NamedTuple):
    """New text of one row; the row's last piece carries its result. ``logprobs`` are those of the tokens since the
    piece before, where they were asked for."""

    row: int
    text: str
    result: Generation | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class AnswersFailed(HalterError):
    """Some of several answers ended in an error; ``answers`` are all, in the order of what was asked, the good ones
    whole and the others as far as they came."""

    def __init__(self, answers: Sequence[Generation]) -> None:
        self.answers = list(answers)
        failed = [place for place, answer in enumerate(answers) if answer.finish_reason == "error"]
        first = failed[0]
        which = f"{len(failed)} of {len(answers)} answers failed"
        super().__init__(f"{which}, the first of them number {first}: {answers[first].error}")


class GrowingAnswer:
    """One row's answer while it grows: ids in, certain text out."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: EncodedPrompt, options: GenerationOptions, context: int | None = None
    ) -> None:
        own: Collection[int] = () if options.ignore_stop_ids else (*tokenizer.stop_ids, *prompt.stop_ids)
        self.stop_ids = frozenset((*own, *options.stop_ids))
        # A prompt that is simply continued sets the stage for its next word's space; a reply begins a text of its own.
        self._stream = tokenizer.stream(previous=prompt.tokens if prompt.continues else ())
        self._gate = StopStrings(options.stop)
        self._prompt = prompt
        room = len(prompt.tokens) + options.max_new_tokens if context is None else context
        self.budget = min(options.max_new_tokens, room - len(prompt.tokens))
        self._limit: Finish = "length" if self.budget == options.max_new_tokens else "context"
        self._text: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if options.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprob | None] | None = None if options.prompt_logprobs is None else [None]
        self.cached_tokens = 0
        self.result: Generation | None = None

    @property
    def whole(self) -> bool:
        """Whether it came to an end by itself, so that all that was computed for it were numbers."""
        return self.result is not None and self.result.finish_reason not in ("cancelled", "error")

    @property
    def sound(self) -> bool:
        """Whether all that was computed for it so far were numbers: it has tokens, and nothing went wrong."""
        return self.whole or (bool(self.tokens) and (self.result is None or not self.result.error))

    def push(self, id: int, logprob: TokenLogprob | None = None, last: bool = False) -> str:
        """Take the next token; returns the text that is certain now. ``last``: its form is complete with it. ``result``
        is there once the answer has ended."""
        if id in self.stop_ids:
            return self._finish("", "stop", id)
        self.tokens.append(id)
        if self.logprobs is not None and logprob is not None:
            self.logprobs.append(logprob)
        text = self._gate.push(self._stream.push(id))
        if self._gate.found is not None:
            return self._finish(text, "stop", self._gate.found)
        if last:
            return self._finish(text, "stop", None)
        if len(self.tokens) == self.budget:
            return self._finish(text, self._limit, None)
        self._text.append(text)
        return text

    def end(self, reason: Finish, error: str = "") -> str:
        """End the answer where it is; returns the text that was held back."""
        return self._finish("", reason, None, error)

    def _finish(self, text: str, reason: Finish, stop: int | str | None, error: str = "") -> str:
        if self._gate.found is None:
            text += self._gate.push(self._stream.flush()) + self._gate.flush()
        self._text.append(text)
        answer = "".join(self._text)
        own = None if self.logprobs is None else tuple(self.logprobs)
        prompt = None if self.prompt_logprobs is None else tuple(self.prompt_logprobs)
        given = self._prompt.tokens
        self.result = Generation(
            answer, tuple(self.tokens), reason, stop, given, error, own, prompt, self.cached_tokens
        )
        return text
