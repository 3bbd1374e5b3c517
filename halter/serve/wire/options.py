"""OpenAI's fields as Halter's options of an answer. docs/guide/serve.md has the table of their defaults."""

from __future__ import annotations

import secrets

from halter.generation.options import GenerationOptions
from halter.serve.wire.fields import ChatFields, CompletionFields, SamplingFields


def chat_options(asked: ChatFields, room: int) -> GenerationOptions:
    """Of a chat; ``room``: tokens that the context has left, which is the default length. Refusal
    ``generation-options``."""
    most = asked.max_completion_tokens or asked.max_tokens or max(1, room)
    return _options(asked, most, asked.top_logprobs or 0 if asked.logprobs else None)


def completion_options(asked: CompletionFields) -> GenerationOptions:
    """Of a completion. Refusal ``generation-options``.

    A prompt that is echoed with log-probabilities is scored: then the one token after it is told whatever it is, an end
    of text too, since clients (lm-eval) count entries. An answer of 0 tokens is one of 1 that is not told.
    """
    scored = asked.logprobs if asked.echo else None
    whole = scored is not None and asked.max_tokens <= 1
    return _options(asked, max(1, asked.max_tokens), asked.logprobs, scored, whole)


def _options(
    asked: SamplingFields, most: int, logprobs: int | None, prompt: int | None = None, whole: bool = False
) -> GenerationOptions:
    """``whole``: no token ends the answer. A seed that is not given is drawn, so that answers differ."""
    return GenerationOptions(
        max_new_tokens=most,
        temperature=asked.temperature,
        top_k=asked.halter.top_k,
        top_p=asked.top_p,
        min_p=asked.halter.min_p,
        repetition_penalty=asked.halter.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias={int(id): number for id, number in asked.logit_bias.items()},
        seed=secrets.randbits(62) if asked.seed is None else asked.seed,
        stop=asked.stop,  # type: ignore[arg-type]
        ignore_stop_ids=whole,
        logprobs=logprobs,
        prompt_logprobs=prompt,
    )
