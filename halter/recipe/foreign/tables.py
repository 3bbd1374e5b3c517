"""What a table of another tool's keys is made of, and what reading a recipe by it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOTHING_GIVEN: tuple[Any, ...] = (None, False, "", [], {}, "none", "no")


class Unlike(ValueError):
    """A value that has no equal here; the text says what is lost."""


@dataclass(frozen=True)
class Mapped:
    """Read as section.key. ``convert`` raises Unlike; None from it where the value asks for what happens anyway."""

    section: str
    key: str
    convert: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Idle:
    """Not needed here, because."""

    why: str


@dataclass(frozen=True)
class Absent:
    """Has no equal here. Nothing is lost while the value is one of ``harmless``."""

    why: str
    harmless: tuple[Any, ...] = NOTHING_GIVEN
    stops: bool = False
    """Whether the training that was meant is another one altogether."""


@dataclass(frozen=True)
class Joint:
    """Read together with other keys, by the tool's own ``together``."""


KeyMeaning = Mapped | Idle | Absent | Joint


@dataclass
class ForeignRecipe:
    """A recipe of another tool, key by key."""

    tool: Tool
    source: str
    given: Mapping[str, Any]
    values: dict[str, dict[str, Any]] = field(default_factory=lambda: {"model": {}, "data": {}, "train": {}, "": {}})
    """{section: {key: value}} of the recipe here; '' holds output_dir."""
    methods: list[dict[str, Any]] = field(default_factory=lambda: [{"name": "lora"}])
    why: dict[tuple[str, str], str] = field(default_factory=dict)
    """{(section, key): where its value comes from, in words}."""
    read: dict[str, str] = field(default_factory=dict)
    idle: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    stops: dict[str, str] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    """{section.key of ours: what must be given}."""
    fallen: dict[str, str] = field(default_factory=dict)
    """{section.key of ours that has a default here: why it is no default of theirs}."""
    asked: dict[str, str] = field(default_factory=dict)
    """{their key: the section.key of ours that must be given for it}."""
    stated: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return Path(self.source).expanduser().parent

    def take(self, theirs: str, section: str, key: str, value: Any, remark: str = "") -> None:
        """``theirs`` is read as section.key. Of the method section the first method is meant."""
        place = self.methods[0] if section == "method" else self.values[section]
        place[key] = value
        full = f"{section}.{key}".lstrip(".")
        self.why[section, key] = f"{theirs}{': ' + remark if remark else ''}"
        for name in theirs.split(", "):
            if name in self.given:
                self.read[name] = full

    def state(self, section: str, key: str, value: Any, name: str) -> None:
        """The tool's own default, where its file says nothing."""
        place = self.methods[0] if section == "method" else self.values[section]
        if key not in place:
            place[key] = value
            self.why[section, key] = f"{self.tool.title}'s default of {name}"
            self.stated.append(name)

    def lose(self, theirs: str, why: str, stops: bool = False) -> None:
        (self.stops if stops else self.lost)[theirs] = why

    def need(self, ours: str, why: str, *theirs: str) -> None:
        """What must be given, beside what else must be for the same key; ``theirs`` are the keys that ask for it."""
        before = self.needs.get(ours, "")
        self.needs[ours] = f"{before}; {why}" if before else why
        self.asked.update({key: ours for key in theirs if key in self.given})

    def fall(self, ours: str, why: str) -> None:
        """What the file does not say and its tool has no default for: Halter's is taken unless another is given."""
        self.fallen[ours] = why

    def get(self, key: str, default: Any = None) -> Any:
        value = self.given.get(key)
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        """A number that may be written as a word, as YAML 1.1 reads 1e-4. Raises Unlike."""
        return number(self.get(key, default))


@dataclass(frozen=True)
class Tool:
    """Another tool: its name, what it is known by, and what its keys mean."""

    name: str
    title: str
    source: str
    """Where its keys and defaults are documented, and of when."""
    marks: frozenset[str]
    """Keys that tell its recipes from others'."""
    keys: Mapping[str, KeyMeaning]
    together: Callable[[ForeignRecipe], None]
    """Reads the Joint keys and states defaults."""
    commands: tuple[str, ...] = ()
    """How its command lines begin, such as "trl sft"."""


def number(value: Any) -> float:
    """Raises Unlike for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unlike("expected a number")
    try:
        made = float(value)
    except (ValueError, OverflowError):
        raise Unlike(f"expected a number, found the word {value!r}") from None
    if made != made or made in (float("inf"), float("-inf")):
        raise Unlike("expected a finite number")
    return made


def whole(value: Any) -> int:
    made = number(value)
    if made != int(made):
        raise Unlike("expected a whole number")
    return int(made)


def truth(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off", "1", "0"):
        return value.lower() in ("true", "yes", "on", "1")
    if value is None:
        return False
    if not isinstance(value, bool | int):
        raise Unlike("expected true or false")
    return bool(value)


def word(value: Any) -> str:
    if not isinstance(value, str):
        raise Unlike("expected a word")
    return value


def words(value: Any) -> list[str]:
    """Words in a list, or one text with commas between them. Raises Unlike."""
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise Unlike("expected words")
    return [item.strip() for item in listed if item.strip()]


def choice(table: Mapping[Any, Any], otherwise: str) -> Callable[[Any], Any]:
    """A converter by a table; a word's case does not matter."""

    def convert(value: Any) -> Any:
        known = value.lower() if isinstance(value, str) else value
        if isinstance(known, list | dict) or known not in table:
            raise Unlike(otherwise)
        return table[known]

    return convert


def entries(entry: KeyMeaning, names: str) -> dict[str, KeyMeaning]:
    """One entry for many names."""
    return dict.fromkeys(names.split(), entry)
