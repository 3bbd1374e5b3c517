"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halter.generation.requests import Request
from halter.generation.streaming import Delta, Generation, TokenLogprob
from halter.serve.wire.calls import CallReader, FunctionCall, calls_in
from halter.serve.wire.fields import ChatFields
from halter.serve.wire.forms import grammar_for, refuse_unknown_choice
from halter.serve.wire.options import chat_options
from halter.serve.wire.prompts import chat_prompt
from halter.serve.wire.shapes import FINISH, AnswerStream, ServedBase, Who
from halter.serve.wire.tokens import chat_logprobs


class ChatShape:
    """A conversation, answered ``n`` times."""

    route, prefix = "/v1/chat/completions", "chatcmpl-"
    fields = ChatFields

    def requests(self, base: ServedBase, who: Who, asked: ChatFields) -> list[Request]:
        refuse_unknown_choice(asked)
        told = asked.tools if asked.tool_choice != "none" else ()
        prompt = chat_prompt(base.tokenizer, asked.messages, who.speaking, told)
        options = chat_options(asked, base.model.config.context - len(prompt.tokens))
        grammar = grammar_for(base.tokenizer, asked)
        return [Request(prompt, options, who.adapter, again << 32, grammar, who.party) for again in range(asked.n)]

    def body(
        self, base: ServedBase, asked: ChatFields, head: dict[str, Any], answers: Sequence[Generation]
    ) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(answers):
            told = None if answer.logprobs is None else chat_logprobs(base.tokenizer, answer.logprobs)
            calls = calls_in(answer.text, _names(asked))
            message: dict[str, Any] = {"role": "assistant", "content": None if calls else answer.text, "refusal": None}
            if calls:
                message["tool_calls"] = [call.wire for call in calls]
            finish = _finish(answer, calls)
            choices.append({"index": index, "message": message, "logprobs": told, "finish_reason": finish})
        return {**head, "object": "chat.completion", "choices": choices}

    def stream(self, base: ServedBase, asked: ChatFields, head: dict[str, Any]) -> AnswerStream:
        return ChatStream(base, asked, head)


class ChatStream:
    """Chunks: a role for each choice, pieces of text or of calls, and for each choice its end. What may still become a
    call is held back, with what is told of its tokens."""

    def __init__(self, base: ServedBase, asked: ChatFields, head: dict[str, Any]) -> None:
        self._tokenizer, self._asked = base.tokenizer, asked
        self.head = {**head, "object": "chat.completion.chunk"}
        names = _names(asked)
        self._begun: dict[str, Any] = {"role": "assistant", "content": None if names else ""}
        self._readers = [CallReader(names) for _ in range(asked.n)]
        self._untold: list[list[TokenLogprob]] = [[] for _ in range(asked.n)]

    def opening(self) -> list[dict[str, Any]]:
        return [self._chunk(index, self._begun) for index in range(self._asked.n)]

    def piece(self, place: int, delta: Delta) -> list[dict[str, Any]]:
        reader = self._readers[place]
        untold = self._untold[place]
        untold += delta.logprobs
        text = reader.push(delta.text)
        calls: list[FunctionCall] = []
        if delta.result is not None:
            calls, rest = reader.end()
            text += rest
        deltas: list[dict[str, Any]] = [
            {"tool_calls": [one]} for index, call in enumerate(calls) for one in call.deltas(index)
        ]
        if text or (untold and not calls and not reader.holding):
            deltas = [{"content": text}]
        chunks = []
        for one in deltas:
            chunks.append(self._chunk(place, one, untold))
            untold.clear()
        if delta.result is not None:
            chunks.append(self._chunk(place, {}, finish=_finish(delta.result, calls)))
        return chunks

    def _chunk(
        self, index: int, delta: dict[str, Any], told: Sequence[TokenLogprob] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = chat_logprobs(self._tokenizer, told) if told is not None and self._asked.logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self.head, "choices": [choice]}


def _names(asked: ChatFields) -> tuple[str, ...]:
    return tuple(function.name for _, function in asked.callable)


def _finish(answer: Generation, calls: Sequence[FunctionCall]) -> str:
    """Calls that came to their end; what was cut is told as that, whatever it is."""
    finish = FINISH[answer.finish_reason]
    return "tool_calls" if calls and finish == "stop" else finish
