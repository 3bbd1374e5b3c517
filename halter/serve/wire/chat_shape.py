"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halter.generation.requests import Request
from halter.generation.streaming import Delta, Generation
from halter.serve.wire.fields import ChatFields
from halter.serve.wire.forms import grammar_for
from halter.serve.wire.options import chat_options
from halter.serve.wire.prompts import chat_prompt
from halter.serve.wire.shapes import FINISH, AnswerStream, ServedBase, Who
from halter.serve.wire.tokens import chat_logprobs


class ChatShape:
    """A conversation, answered ``n`` times."""

    route, prefix = "/v1/chat/completions", "chatcmpl-"
    fields = ChatFields

    def requests(self, base: ServedBase, who: Who, asked: ChatFields) -> list[Request]:
        prompt = chat_prompt(base.tokenizer, asked.messages, who.speaking)
        options = chat_options(asked, base.model.config.context - len(prompt.tokens))
        grammar = grammar_for(base.tokenizer, asked)
        return [Request(prompt, options, who.adapter, again << 32, grammar, who.party) for again in range(asked.n)]

    def body(
        self, base: ServedBase, asked: ChatFields, head: dict[str, Any], answers: Sequence[Generation]
    ) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            told = None if answer.logprobs is None else chat_logprobs(base.tokenizer, answer.logprobs)
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            finish = FINISH[answer.finish_reason]
            choices.append({"index": index, "message": message, "logprobs": told, "finish_reason": finish})
        return {**head, "object": "chat.completion", "choices": choices}

    def stream(self, base: ServedBase, asked: ChatFields, head: dict[str, Any]) -> AnswerStream:
        return ChatStream(base, asked, head)


class ChatStream:
    """Chunks: a role for each choice, pieces of text, and for each choice its end."""

    def __init__(self, base: ServedBase, asked: ChatFields, head: dict[str, Any]) -> None:
        self._tokenizer, self._asked = base.tokenizer, asked
        self.head = {**head, "object": "chat.completion.chunk"}

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._asked.n)]

    def piece(self, place: int, delta: Delta) -> list[dict[str, Any]]:
        chunks = []
        if delta.text or delta.logprobs:
            chunks.append(self._chunk(place, {"content": delta.text}, delta))
        if delta.result is not None:
            chunks.append(self._chunk(place, {}, finish=FINISH[delta.result.finish_reason]))
        return chunks

    def _chunk(
        self, index: int, delta: dict[str, Any], told: Delta | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = chat_logprobs(self._tokenizer, told.logprobs) if told is not None and self._asked.logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self.head, "choices": [choice]}
