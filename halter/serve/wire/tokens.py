"""Tokens as the wire has them: a word and bytes for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from halter.generation.streaming import TokenLogprob
from halter.text.tokenizer import Tokenizer

LEAST = -9999.0
"""OpenAI's word for a log-probability of minus infinity, which JSON has not."""


def word_of(tokenizer: Tokenizer, id: int) -> str:
    """What a token is called: its text, the bytes of one that is no whole character, and of one without either its
    number. No two words of one place are the same where their bytes differ."""
    data = tokenizer.piece(id)
    if not data:
        return f"token_id:{id}"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def number(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(LEAST, logprob)


def chat_logprobs(tokenizer: Tokenizer, told: Iterable[TokenLogprob]) -> dict[str, Any]:
    """As chats have them."""
    return {"content": [_entry(tokenizer, one) for one in told], "refusal": None}


def _entry(tokenizer: Tokenizer, told: TokenLogprob) -> dict[str, Any]:
    top = [_token(tokenizer, id, logprob) for id, logprob in told.top]
    return {**_token(tokenizer, told.token, told.logprob), "top_logprobs": top}


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.piece(id)
    return {"token": word_of(tokenizer, id), "logprob": number(logprob), "bytes": [*data] or None}


class CompletionLogprobs:
    """As completions have them, a piece after the other; ``offset`` goes on in the answer's text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._offset = tokenizer, 0

    def of(self, tokens: Sequence[int], told: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """Of these tokens; None is told of a prompt's first, which nothing predicts."""
        words = [word_of(self._tokenizer, id) for id in tokens]
        offsets = []
        for id, word in zip(tokens, words, strict=True):
            offsets.append(self._offset)
            self._offset += len(word) if self._tokenizer.piece(id) else 0
        return {
            "tokens": words,
            "token_logprobs": [None if one is None else number(one.logprob) for one in told],
            "top_logprobs": [None if one is None else self._top(one) for one in told],
            "text_offset": offsets,
        }

    def _top(self, told: TokenLogprob) -> dict[str, float]:
        """{word: log-probability} of the likeliest and of the token itself, whose number is the same float in both."""
        top: dict[str, float] = {}
        for id, logprob in dict([*told.top, (told.token, told.logprob)]).items():
            word = word_of(self._tokenizer, id)
            top[word if word not in top else f"token_id:{id}"] = number(logprob)
        return top
