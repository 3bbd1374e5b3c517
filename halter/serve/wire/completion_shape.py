"""POST /v1/completions: texts or ids, continued, and scored where their log-probabilities are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halter.generation.requests import Request
from halter.generation.streaming import Delta, Generation
from halter.serve.wire.errors import UNSUPPORTED, bad
from halter.serve.wire.fields import CompletionFields
from halter.serve.wire.options import completion_options
from halter.serve.wire.prompts import completion_prompt
from halter.serve.wire.shapes import FINISH, AnswerStream, ServedBase, Who
from halter.serve.wire.tokens import CompletionLogprobs
from halter.text.tokenizer import Tokenizer


class CompletionShape:
    """Prompts, each continued ``n`` times; choice number prompt * n + k."""

    route, prefix = "/v1/completions", "cmpl-"
    fields = CompletionFields

    def requests(self, base: ServedBase, who: Who, asked: CompletionFields) -> list[Request]:
        if asked.stream and asked.echo and asked.logprobs is not None:
            raise bad("echo with logprobs is not supported in a stream", "stream", UNSUPPORTED)
        options = completion_options(asked)
        prompts = [completion_prompt(base.tokenizer, prompt) for prompt in asked.prompt]
        return [
            Request(prompt, options, who.adapter, number + (again << 32), party=who.party)
            for number, prompt in enumerate(prompts)
            for again in range(asked.n)
        ]

    def body(
        self, base: ServedBase, asked: CompletionFields, head: dict[str, Any], answers: Sequence[Generation]
    ) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            text = echoed(base.tokenizer, asked, index) + ("" if asked.silent else answer.text)
            told = None if asked.logprobs is None else _logprobs(base.tokenizer, asked, answer)
            finish = "length" if asked.silent else _finish(base.tokenizer, answer)
            choices.append({"index": index, "text": text, "logprobs": told, "finish_reason": finish})
        return {**head, "object": "text_completion", "choices": choices}

    def stream(self, base: ServedBase, asked: CompletionFields, head: dict[str, Any]) -> AnswerStream:
        return CompletionStream(base, asked, head)


class CompletionStream:
    """Chunks: the prompts where they are echoed, pieces of text, and for each choice its end."""

    def __init__(self, base: ServedBase, asked: CompletionFields, head: dict[str, Any]) -> None:
        self._tokenizer, self._asked = base.tokenizer, asked
        self.head = {**head, "object": "text_completion"}
        count = len(asked.prompt) * asked.n
        self._told = [CompletionLogprobs(base.tokenizer) for _ in range(count)]

    def opening(self) -> list[dict[str, Any]]:
        if not self._asked.echo:
            return []
        return [self._chunk(at, echoed(self._tokenizer, self._asked, at)) for at in range(len(self._told))]

    def piece(self, place: int, delta: Delta) -> list[dict[str, Any]]:
        chunks = []
        if (delta.text or delta.logprobs) and not self._asked.silent:
            chunks.append(self._chunk(place, delta.text, self._logprobs(place, delta)))
        if delta.result is not None:
            finish = "length" if self._asked.silent else FINISH[delta.result.finish_reason]
            chunks.append(self._chunk(place, "", finish=finish))
        return chunks

    def _logprobs(self, place: int, delta: Delta) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        return self._told[place].of([one.token for one in delta.logprobs], delta.logprobs)

    def _chunk(
        self, index: int, text: str, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**self.head, "choices": [choice]}


def echoed(tokenizer: Tokenizer, asked: CompletionFields, index: int) -> str:
    """The prompt of that choice as text, where it is to be said again."""
    if not asked.echo:
        return ""
    prompt = asked.prompt[index // asked.n]
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


def _logprobs(tokenizer: Tokenizer, asked: CompletionFields, answer: Generation) -> dict[str, Any]:
    """Of the answer's tokens, behind those of an echoed prompt: an entry each, which clients count."""
    tokens = () if asked.silent else answer.tokens
    told = [*(answer.prompt_logprobs or ()), *(answer.logprobs or ())[: len(tokens)]]
    return CompletionLogprobs(tokenizer).of([*(answer.prompt_tokens if asked.echo else ()), *tokens], told)


def _finish(tokenizer: Tokenizer, answer: Generation) -> str:
    """Its reason; where no token could end it (options.completion_options), what the last one would have done."""
    ended = answer.finish_reason == "length" and answer.tokens[-1] in tokenizer.stop_ids
    return "stop" if ended else FINISH[answer.finish_reason]
