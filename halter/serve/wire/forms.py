"""The form that a request asks of its answers."""

from __future__ import annotations

from halter.generation.grammars.forms import JSON_OBJECT, NOTHING, AnswerForm, Function, Schema, unusable
from halter.generation.grammars.grammar import Grammar, grammar_of
from halter.serve.wire.errors import bad
from halter.serve.wire.fields import ChatFields, FunctionField, NamedChoice, ObjectFormat, SchemaFormat
from halter.text.tokenizer import Tokenizer


def grammar_for(tokenizer: Tokenizer, asked: ChatFields) -> Grammar | None:
    """None: answers are free. Refusals ``schema-unusable``, ``extra-missing``."""
    form = _form(asked)
    return None if form is None else grammar_of(tokenizer, form)


def refuse_unknown_choice(asked: ChatFields) -> None:
    """Failure where tool_choice names what is no tool."""
    if isinstance(asked.tool_choice, NamedChoice) and not asked.callable:
        raise bad("tool_choice names a function that is not among the tools", "tool_choice")


def _form(asked: ChatFields) -> AnswerForm | None:
    """Free answers may still turn out to be calls (calls.py); those that must be calls are held to be some."""
    must = asked.tool_choice == "required" or isinstance(asked.tool_choice, NamedChoice)
    answer = None if must else _answer(asked)
    if not must and answer is None:
        return None
    several = asked.parallel_tool_calls is not False and not isinstance(asked.tool_choice, NamedChoice)
    return AnswerForm(answer, tuple(_function(at, one) for at, one in asked.callable), several)


def _answer(asked: ChatFields) -> Schema | None:
    wanted = asked.response_format
    if isinstance(wanted, SchemaFormat):
        return Schema(wanted.json_schema.schema_, "response_format.json_schema.schema")
    return Schema(JSON_OBJECT, "response_format") if isinstance(wanted, ObjectFormat) else None


def _function(at: int, function: FunctionField) -> Function:
    """A function with what it takes, an object; nothing where that is not said."""
    where = f"tools.{at}.function.parameters"
    given = NOTHING if function.parameters is None else {**JSON_OBJECT, **function.parameters}
    if given["type"] != "object":
        raise unusable(where, "its type is not object")
    return Function(function.name, Schema(given, where))
