"""What is asked of the engine: one prompt with its options and its adapter, and how a user's list becomes such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from halter.adapters.adapter import Adapter
from halter.adapters.ready import Ready
from halter.adapters.sight import rules_of
from halter.adapters.stacked import Stacked
from halter.errors import Refusal
from halter.generation.grammars.forms import AnswerForm, Schema
from halter.generation.grammars.grammar import Grammar, grammar_of
from halter.generation.options import GenerationOptions
from halter.generation.prompts import (
    EncodedPrompt,
    Prompts,
    as_list,
    as_template,
    encode_prompt,
    tell_of_template,
    told_of_files,
    told_of_marks,
)
from halter.generation.seeing import Seeing
from halter.kinds import Worded
from halter.model.config import ModelConfig
from halter.readers.named import readers_of
from halter.telling import tell
from halter.text.tokenizer import Tokenizer

One = Adapter | Stacked | Ready | None
Adapters = Annotated[One | Sequence[One], Worded("an adapter, None, or a list with one for each prompt")]


@dataclass(frozen=True)
class Party:
    """For whom a request is worked on, and by which adapters: rows of one party take turns, and read what was kept of
    earlier ones; those of others never read it."""

    tenant: str = ""
    adapters: tuple[tuple[str, float], ...] = ()
    """(digest, weight) of each; (): the base."""
    template: str = ""
    """Digest of the template in which it is asked."""


NOBODY = Party()


@dataclass(frozen=True)
class Request:
    """One prompt with its own options and adapter. ``draws`` names it in its random draws, beside the seed of its
    options: what is drawn depends on these two and never on when a request comes or what is answered beside it.
    ``grammar``: the form that its answer is held to."""

    prompt: EncodedPrompt
    options: GenerationOptions = field(default_factory=GenerationOptions)
    adapter: One = None
    draws: int = 0
    grammar: Grammar | None = None
    party: Party | None = None
    """None: nothing of it is kept when it has ended, and nothing that was kept is read."""


def requests_of(
    tokenizer: Tokenizer,
    prompts: Prompts,
    adapter: Adapters,
    given: dict[str, Any],
    config: ModelConfig | None = None,
) -> list[Request]:
    """The requests that ``generate`` makes of its arguments, ``n`` a prompt: those of the first prompt, ...

    ``given``: AnswerKeywords without ``max_rows``; ``config``: the model's, which may see pictures where the adapters
    do not. Refusals of GenerationOptions, of halter.generation.prompts, ``adapter-count`` and ``schema-unusable``.
    """
    template = as_template(given.pop("template", None))
    fetch = given.pop("fetch_pictures", False)
    readers = readers_of(given.pop("readers", ()))
    date, prefill, n = given.pop("template_date", None), given.pop("prefill", ""), given.pop("n", 1)
    schema = given.pop("json_schema", None)
    chosen = GenerationOptions.of(**given).told()
    _check_count(n, chosen)
    asked = as_list(prompts)
    for odd in filter(None, (told_of_marks(asked, template), told_of_files(asked))):
        tell(odd)
    tell_of_template(asked, template, adapter)
    adapters = one_per_prompt(adapter, len(asked))
    sights = [Seeing(None if config is None else rules_of(config, one), fetch, readers=readers) for one in adapters]
    each = zip(asked, sights, strict=True)
    encoded = [encode_prompt(tokenizer, prompt, template, date, prefill, seeing=seeing) for prompt, seeing in each]
    grammar = None if schema is None else grammar_of(tokenizer, AnswerForm(Schema(schema)))
    both = enumerate(zip(encoded, adapters, strict=True))
    return [
        Request(p, chosen, a, draws=number + (again << 32), grammar=grammar)
        for number, (p, a) in both
        for again in range(n)
    ]


def _check_count(n: int, options: GenerationOptions) -> None:
    """Refusal ``generation-options`` where ``n`` answers are none, or all the same."""
    if n < 1:
        raise Refusal("generation-options", f"n, the answers to a prompt, is {n}", expected="1 or more", fix="n=1")
    if n > 1 and options.temperature == 0:
        what = f"the {n} answers to each prompt would all be the same: the temperature is 0"
        raise Refusal("generation-options", what, fix="set temperature above 0, e.g. 0.8, or n to 1")


def one_per_prompt(adapter: Adapters, prompts: int) -> list[One]:
    """The adapter of each prompt. Refusal ``adapter-count`` where a list does not match the prompts."""
    if adapter is None or isinstance(adapter, Adapter | Stacked | Ready):
        return [adapter] * prompts
    if len(adapter) != prompts:
        raise Refusal(
            "adapter-count",
            f"{len(adapter)} adapters for {prompts} prompts",
            expected="one adapter, or one a prompt",
            fix="give one adapter for all, or a list as long as that of the prompts",
        )
    return list(adapter)


def check_tokens(options: GenerationOptions, vocab_size: int) -> None:
    """Refusal ``generation-options`` where options name token ids that a model of so many has not."""
    for name in ("stop_ids", "logit_bias"):
        beyond = [id for id in getattr(options, name) if not 0 <= id < vocab_size]
        if beyond:
            what = f"{name} names ids that are not in the vocabulary"
            known, fix = f"0 to {vocab_size - 1}", "give ids of this model's tokenizer"
            raise Refusal("generation-options", what, found=beyond, expected=known, fix=fix)
