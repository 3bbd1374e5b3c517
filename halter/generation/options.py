"""How text is generated, declared once: the arguments of halter.generate, the flags of the commands and their help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict, cast

from halter.elsewhere import refuse_unknown
from halter.errors import Refusal
from halter.numerics.sampling import Rule
from halter.telling import tell_once

HOT = 2.0
"""A temperature, or a penalty, above which it is told."""


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
    seed: int = 0
    """Seed of the sampling. An answer depends on its prompt, this seed and the prompt's place in the list, not on the
    other prompts."""
    stop: tuple[str, ...] = ()
    r"""Strings that end an answer; they are not part of it. On the command line \n is a new line, \t a tab."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end an answer, beside the tokenizer's own."""
    ignore_stop_ids: bool = False
    """Go on past the tokenizer's own end tokens."""

    def keywords(self) -> GenerationKeywords:
        """The options as keyword arguments of ``generate``."""
        return cast("GenerationKeywords", dict(vars(self)))

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        ids = (self.stop_ids,) if isinstance(self.stop_ids, int) else tuple(self.stop_ids or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_ids", ids)
        rules = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must not be negative": 0 <= self.temperature < float("inf"),
            "top_k must not be negative": self.top_k >= 0,
            "top_p must lie in 0 .. 1": 0 <= self.top_p <= 1,
            "min_p must lie in 0 .. 1": 0 <= self.min_p <= 1,
            "repetition_penalty must be above 0": 0 < self.repetition_penalty < float("inf"),
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
    seed: int
    stop: str | Sequence[str] | None
    stop_ids: int | Sequence[int] | None
    ignore_stop_ids: bool
