"""How text is generated, declared once: the arguments of halter.generate, the flags of the commands and their help.

An answer that is held to a form (a JSON schema) has the logits of all tokens that the form does not allow set to minus
infinity first of all. Options then act on the logits in this order, which is vLLM's: logit_bias, repetition_penalty,
presence_penalty with frequency_penalty, temperature, top_k, top_p, min_p, and the draw. Log-probabilities are told of
the model's own logits, before any of these, the form among them: near 0 where it would have written that by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, cast

from halter.elsewhere import refuse_unknown
from halter.errors import Refusal
from halter.numerics.sampling import Rule
from halter.telling import tell_once

HOT = 2.0
"""A temperature, or a penalty, above which it is told."""
MOST_BIAS, MOST_PENALTY = 100.0, 2.0
"""Of logit_bias, and of the penalties that are subtracted: OpenAI's bounds."""


@dataclass(frozen=True)
class GenerationOptions:
    """Options of one answer. Refusal ``generation-options`` names every value that makes no sense."""

    max_new_tokens: int = 256
    """Most tokens in an answer; the model's context may end it sooner."""
    temperature: float = 0.0
    """0 takes the most likely token every time; 1 samples the model's own distribution; above is wilder."""
    top_k: int = 0
    """Sample among the k most likely tokens only; 0 switches that off."""
    top_p: float = 1.0
    """Sample among the most likely tokens that together reach this probability; 1 switches that off."""
    min_p: float = 0.0
    """Sample only tokens at least this share as likely as the most likely one; 0 switches that off."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the prompt or the answer already holds become less likely."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the answer already holds: -2 to 2; 0 switches that off."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time that the answer already holds it: -2 to 2; 0 switches that
    off."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Numbers added to the logits of tokens, by token id: -100 forbids a token, 100 all but forces it."""
    seed: int = 0
    """Seed of the sampling. An answer depends on its prompt, this seed and the prompt's place in the list, not on the
    other prompts."""
    stop: tuple[str, ...] = ()
    r"""Strings that end an answer; they are not part of it. On the command line \n is a new line, \t a tab."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end an answer, beside the tokenizer's own."""
    ignore_stop_ids: bool = False
    """Go on past the tokenizer's own end tokens."""
    logprobs: int | None = None
    """Tell the log-probability of every answer token, and of so many of the likeliest tokens at its place; 0: of the
    answer's tokens alone."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens, all of which then go through the output head."""

    def keywords(self) -> GenerationKeywords:
        """The options as keyword arguments of ``generate``."""
        return cast("GenerationKeywords", dict(vars(self)))

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        ids = (self.stop_ids,) if isinstance(self.stop_ids, int) else tuple(self.stop_ids or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_ids", ids)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        rules = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must not be negative": 0 <= self.temperature < float("inf"),
            "top_k must not be negative": self.top_k >= 0,
            "top_p must lie in 0 .. 1": 0 <= self.top_p <= 1,
            "min_p must lie in 0 .. 1": 0 <= self.min_p <= 1,
            "repetition_penalty must be above 0": 0 < self.repetition_penalty < float("inf"),
            "presence_penalty must lie in -2 .. 2": abs(self.presence_penalty) <= MOST_PENALTY,
            "frequency_penalty must lie in -2 .. 2": abs(self.frequency_penalty) <= MOST_PENALTY,
            "logit_bias must lie in -100 .. 100": all(abs(n) <= MOST_BIAS for n in self.logit_bias.values()),
            "logprobs must not be negative": (self.logprobs or 0) >= 0,
            "prompt_logprobs must not be negative": (self.prompt_logprobs or 0) >= 0,
            "a stop string must not be empty": all(self.stop),
        }
        wrong = [f"{rule} ({getattr(self, rule.split()[0], '')!r})" for rule, kept in rules.items() if not kept]
        if wrong:
            raise Refusal(
                "generation-options",
                "options of generation that cannot be used",
                found=wrong,
                fix="change these; halter generate --help has every option with its default",
            )

    def doubts(self) -> list[str]:
        """What is asked that does nothing, or can hardly be meant."""
        named = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) != getattr(type(self), name)]
        told = []
        if named and self.temperature == 0:
            what = "do nothing" if len(named) > 1 else "does nothing"
            told.append(f"note: {', '.join(named)} {what} at temperature 0, the likeliest token; 0.7 samples")
        if self.temperature > HOT:
            told.append(f"note: at temperature {self.temperature:g} every token is nearly as likely; 1 is usual")
        if not 0.5 <= self.repetition_penalty <= HOT:
            told.append(f"note: repetition_penalty {self.repetition_penalty:g} outweighs the model; 1.1 is usual")
        return told

    def unshown(self, where: str) -> str:
        """A note that ``where`` log-probabilities are not shown; '' where none are asked for."""
        named = [name for name in ("logprobs", "prompt_logprobs") if getattr(self, name) is not None]
        shown = "halter generate shows them with --json or --output FILE, halter.generate gives them"
        return f"note: {' and '.join(named)}: {where} does not show log-probabilities; {shown}" if named else ""

    def told(self) -> GenerationOptions:
        """The same, its doubts told once in a process."""
        for doubt in self.doubts():
            tell_once(doubt)
        return self

    @classmethod
    def of(cls, **options: Any) -> GenerationOptions:
        """The options given by name. Refusal ``unknown-option`` names those that do not exist."""
        refuse_unknown(options, [field.name for field in fields(cls)], "halter.generate")
        return cls(**options)

    @property
    def rule(self) -> Rule:
        """The part that concerns the choice of a token."""
        return Rule(self.temperature, self.top_k, self.top_p, self.min_p)


class GenerationKeywords(TypedDict, total=False):
    """The fields of GenerationOptions as keyword arguments, for editors; a test holds the two alike."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    stop: str | Sequence[str] | None
    stop_ids: int | Sequence[int] | None
    ignore_stop_ids: bool
    logprobs: int | None
    prompt_logprobs: int | None
