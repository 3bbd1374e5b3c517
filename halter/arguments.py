"""What a Python function is called with, held to the types that it declares, once a call, before anything is done.

There is no list of arguments here: the annotations of the function, the keywords that its TypedDict names, and the
fields of a dataclass of options say what each takes. What a type cannot say (a rank above 0) is judged where it is
used.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from math import isfinite
from numbers import Integral, Real
from typing import Any, TypeVar

from halter import kinds
from halter.elsewhere import LOADED, meant_of, peft_call, refuse_unknown
from halter.errors import Refusal

F = TypeVar("F", bound=Callable[..., Any])
MOST_TOLD = 4
PAIR = ["Decoder", "Tokenizer"]
NOT_LOADED = "is given by its folder or name, not loaded"
WRITE_ROWS = "write the rows to a file"
AMOUNTS = ("memory",)
"""Arguments that are texts which hold a number and a unit."""
MAKES = {
    "Decoder": LOADED,
    "Tokenizer": LOADED,
    "Adapter": 'halter.load_adapter("runs/mine", model) reads one, halter.adapt(model, "lora") makes a fresh one',
    "Callback": "an object of a class derived from halter.Callback",
}
"""{class: what gives an object of it}."""


def checked(call: str) -> Callable[[F], F]:
    """Hold a function to its annotations; ``call`` is a right call of it, for those who need one.

    Refusals ``wrong-argument``, which names every argument of another kind and every one that is missing, and
    ``unknown-option`` for names that the function does not have.
    """

    def wrap(function: F) -> F:
        signature = inspect.signature(function)
        name = f"halter.{function.__name__}"

        @functools.cache
        def hints() -> dict[str, Any]:
            return typing.get_type_hints(function, include_extras=True)

        def keywords() -> dict[str, Any]:
            free = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
            return _named(hints().get(free[0])) if free else {}

        @functools.wraps(function)
        def held(*args: Any, **given: Any) -> Any:
            _bindable(name, signature, args, given, call, keywords())
            bound = signature.bind(*args, **given)
            wrong: dict[str, tuple[Any, Any]] = {}
            for argument, value in bound.arguments.items():
                hint = hints().get(argument, Any)
                if signature.parameters[argument].kind is inspect.Parameter.VAR_KEYWORD:
                    wrong |= strange(_named(hint), value)
                    continue
                if isinstance(value, Iterator) and _lists(hint):
                    value = bound.arguments[argument] = list(value)
                wrong |= strange({argument: hint}, {argument: value})
            if wrong:
                raise refusal(name, wrong, call)
            return function(*bound.args, **bound.kwargs)

        return typing.cast(F, held)

    return wrap


def bound(name: str, call: str) -> Callable[[F], F]:
    """The refusals of ``checked`` for names and numbers of arguments alone, for what is called so often that a look at
    every call would be felt: Python's own TypeError is looked at. ``name`` is what the function is called as."""

    def wrap(function: F) -> F:
        signature = inspect.signature(function)
        own = signature.replace(parameters=[*signature.parameters.values()][1:])  # without self

        @functools.wraps(function)
        def held(*args: Any, **given: Any) -> Any:
            try:
                return function(*args, **given)
            except TypeError as error:
                wrong = error
            _bindable(name, own, args[1:], given, call)
            raise wrong

        return typing.cast(F, held)

    return wrap


def check_options(whose: str, options: type[Any], given: Mapping[str, Any], call: str = "") -> None:
    """Refusal ``wrong-argument`` where values are not what the fields of the dataclass ``options`` are declared as, or
    no number that a recipe would take: infinite, not a number, whole and negative."""
    wrong = strange(_fields(options), given)
    if wrong:
        raise refusal(whose, wrong, call)
    off = [f"{name}: {value!r}" for name, value in given.items() if _beyond(value)]
    if off:
        expected = "finite numbers, whole ones from 0 on"
        raise Refusal(
            "wrong-argument", "no option is such a number", where=whose, found=off, expected=expected, fix=call
        )


def with_unit(number: str) -> str:
    """An amount of memory, positive, with the unit that it is most likely meant in."""
    return f"{number}{'GB' if float(number) < 1024 else 'MiB'}"


def _beyond(value: Any) -> bool:
    return value < 0 if isinstance(value, Integral) else isinstance(value, Real) and not isfinite(value)


def strange(hints: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (what it is declared as, value)} of every value of another kind."""
    return {n: (hints[n], value) for n, value in given.items() if n in hints and not kinds.fits(hints[n], value)}


def refusal(whose: str, wrong: Mapping[str, tuple[Any, Any]], call: str = "") -> Refusal:
    """The Refusal ``wrong-argument`` for {argument: (declared type, value)}."""
    told = dict(list(wrong.items())[:MOST_TOLD])
    swapped = _swapped(told)
    each = [_hint(name, *one) for name, one in told.items()]
    if swapped:  # which says already where a loaded model belongs
        each = [hint for hint in each if not hint.endswith(NOT_LOADED)]
    loaded = [hint for hint in each if hint.endswith(NOT_LOADED)]  # and what follows it is in another's place
    each = loaded or each
    hints = dict.fromkeys(filter(None, [*swapped, *each]))
    fix = "; ".join([*hints, *([f"such as {call}"] if call else [])])
    what = "an argument is" if len(wrong) == 1 else f"{len(wrong)} arguments are"
    return Refusal(
        "wrong-argument",
        f"{what} not what the function takes",
        where=whose,
        found=[one for name, (hint, value) in wrong.items() for one in _found(name, hint, value)],
        expected="; ".join(f"{name}: {kinds.words(hint)}" for name, (hint, _) in told.items()),
        fix=fix,
    )


def _bindable(
    name: str, signature: inspect.Signature, args: Sequence[Any], given: Mapping[str, Any], call: str, more: Any = ()
) -> None:
    """Refusals where names are unknown, arguments missing or too many, for which Python has a TypeError of its own.
    ``more``: names that its ``**options`` take, () where any are taken."""
    known = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    names = [*(p.name for p in known), *more]
    if more or len(known) == len(signature.parameters):
        refuse_unknown(given, names, name, call)
    places = [p.name for p in known if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    twice = [n for n in places[: len(args)] if n in given]
    missing = [p.name for p in known[len(args) :] if p.default is p.empty and p.name not in given]
    pairs = [arg for arg in args if isinstance(arg, tuple) and [type(one).__name__ for one in arg] == PAIR]
    if missing and pairs:
        what = "halter.load gives a pair, the model and the tokenizer, and here they are one argument"
        raise Refusal("wrong-argument", what, where=name, fix=f"{LOADED}; {call}")
    if twice:
        raise Refusal(
            "wrong-argument", "arguments are given twice, by place and by name", where=name, found=twice, fix=call
        )
    if missing:
        raise Refusal("wrong-argument", f"arguments are missing: {', '.join(missing)}", where=name, fix=call)
    if len(args) > len(places):
        what = f"{len(args)} arguments by place; the first {len(places)} are taken so, the others by name"
        more = args[len(places)]
        number = isinstance(more, Integral) and not isinstance(more, bool)  # which is most likely meant as the call's
        fix = re.sub(r"(\w+)=\d+\)", rf"\1={more})", call) if number else call
        raise Refusal("wrong-argument", what, where=name, expected=", ".join(names), fix=fix)


def _named(hint: Any) -> dict[str, Any]:
    """{keyword: type} of ``**options: Unpack[SomeTypedDict]``; {} where any is taken."""
    if typing.get_origin(hint) is not typing.Unpack:
        return {}
    return _fields(typing.get_args(hint)[0])


_KNOWN: dict[Any, dict[str, Any]] = {}


def _fields(kind: Any) -> dict[str, Any]:
    """{name: type} of a TypedDict or a dataclass."""
    if kind not in _KNOWN:
        hints = typing.get_type_hints(kind, include_extras=True)
        _KNOWN[kind] = hints if typing.is_typeddict(kind) else {f.name: hints[f.name] for f in fields(kind) if f.init}
    return _KNOWN[kind]


def _lists(hint: Any) -> bool:
    return any(typing.get_origin(arm) in kinds.LISTS for arm in kinds.arms_of(hint))


def _found(name: str, hint: Any, value: Any) -> list[str]:
    """What was given: of a list the items that are of another kind than the others."""
    off = kinds.misfits(hint, value)
    more = [f"and {len(off) - MOST_TOLD} more of them"] if len(off) > MOST_TOLD else []
    items = [f"{name}[{place}]: {kinds.shown(value[place])}" for place in off[:MOST_TOLD]]
    return [*items, *more] or [f"{name}: {kinds.shown(value)}"]


def _swapped(wrong: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A word where two arguments would each be right in the other's place."""
    pairs = [(a, b) for a in wrong for b in wrong if a < b]
    return [
        f"{a} and {b} are swapped"
        for a, b in pairs
        if kinds.fits(wrong[a][0], wrong[b][1]) and kinds.fits(wrong[b][0], wrong[a][1])
    ][:1]


def _hint(name: str, hint: Any, value: Any) -> str:
    """What would have been right, where the kind that was given tells."""
    arms = kinds.arms_of(hint)
    if str in arms and (way := peft_call(value) or _rows_hint(name, hint, value)):
        return way
    listed = [str(one) for arm in arms if typing.get_origin(arm) is typing.Literal for one in typing.get_args(arm)]
    if listed and (meant := meant_of(str(value), listed) or (listed[0] if value is True else "")):
        return f"{name}={meant!r}"
    wanted = {getattr(arm, "__name__", "") for one in arms for arm in (one, *typing.get_args(one))}
    if isinstance(value, str):
        for kind in (int, float):
            try:
                if kind in arms:
                    return f"{name}={kind(value)}, without quotes"
            except ValueError:
                continue
        if any(typing.get_origin(a) in kinds.LISTS and typing.get_args(a)[:1] == (str,) for a in arms):
            return f"{name}={_names(value[: 2 * kinds.LONGEST])}"
        if any(typing.get_origin(a) in kinds.LISTS and typing.get_args(a)[:1] == (int,) for a in arms):
            return f"{name}=[{value}]" if re.fullmatch(r"\d+(\s*,\s*\d+)*", value) else ""
    if str in arms and isinstance(value, int | float) and not isinstance(value, bool):
        if name in AMOUNTS and 0 < value < 10**6:
            return f'{name}="{with_unit(f"{value!r:.{kinds.LONGEST}}")}", with its unit'
        return f'{name}="{value!r:.{kinds.LONGEST}}", a text'
    if held := kinds.within(hint, value):
        return f"{name}={held}"
    made = dict.fromkeys(MAKES[one] for one in MAKES if one in wanted)
    if made and isinstance(value, tuple) and {"Decoder", "Tokenizer"} <= {type(one).__name__ for one in value}:
        return f"halter.load gives two: {LOADED}"
    if made:
        return "; ".join(made)
    return f"{name} {NOT_LOADED}" if type(value).__name__ in MAKES and str in arms else ""


def _names(text: str) -> list[str]:
    """Names that one text holds with commas between; the text itself where it is none of that."""
    return re.split(r"\s*,\s*", text) if re.fullmatch(r"[\w./=-]+(\s*,\s*[\w./=-]+)+", text) else [text]


def _rows_hint(name: str, hint: Any, value: Any) -> str:
    """How rows in memory, or what they are asked from, are given to an argument that takes texts."""
    rows, asks = kinds.rows_in(value), kinds.fits(hint, [{"role": "user"}])  # what is asked, not a file's name
    if rows and not asks:
        recipe = any(typing.get_origin(arm) is Mapping for arm in kinds.arms_of(hint))
        given = '{"model": "DIR", "data": "rows.jsonl"}' if recipe else f'{name}="rows.jsonl"'
        return f"{WRITE_ROWS}: {rows.writes}; then {given}"
    if asks and isinstance(value, os.PathLike):
        file = f"open({os.fspath(value)!r})"
        lines = f"[json.loads(line) for line in {file}]" if "json" in str(value) else f"{file}.read().splitlines()"
        return f"{name}={lines}"
    first = value[0] if isinstance(value, list | tuple) and value else value
    if asks and type(first).__name__ == "Generation":
        return f"{name}=[answer.text for answer in answers]"
    return f"{name}={rows.asks}" if rows else ""
