"""The form that a request asks of its answers."""

from __future__ import annotations

from halter.generation.grammars.forms import JSON_OBJECT, AnswerForm, Schema
from halter.generation.grammars.grammar import Grammar, grammar_of
from halter.serve.wire.fields import ChatFields, ObjectFormat, SchemaFormat
from halter.text.tokenizer import Tokenizer


def grammar_for(tokenizer: Tokenizer, asked: ChatFields) -> Grammar | None:
    """None: answers are free. Refusals ``schema-unusable``, ``extra-missing``."""
    form = _form(asked)
    return None if form is None else grammar_of(tokenizer, form)


def _form(asked: ChatFields) -> AnswerForm | None:
    wanted = asked.response_format
    if isinstance(wanted, SchemaFormat):
        return AnswerForm(Schema(wanted.json_schema.schema_, "response_format.json_schema.schema"))
    if isinstance(wanted, ObjectFormat):
        return AnswerForm(Schema(JSON_OBJECT, "response_format"))
    return None
