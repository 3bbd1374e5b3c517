"""A recipe of another tool, written as one of ours with every key told, and told in six lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from halter.errors import Refusal
from halter.files.yaml12 import flow
from halter.recipe.foreign.tables import ForeignRecipe
from halter.recipe.sections import BLANK_DATA, BLANK_MODEL, ORDER

SHOWN = 6
WRITTEN = "halter-recipe.yaml"


def as_data(reading: ForeignRecipe) -> dict[str, Any]:
    """The recipe as plain data; what must be given is left open with the words that `halter init` writes."""
    values = reading.values
    model = {"path": BLANK_MODEL} | values["model"]
    data = {"train": BLANK_DATA} | values["data"]
    method = reading.methods if len(reading.methods) > 1 else reading.methods[0]
    made: dict[str, Any] = {"model": model, "method": method, "data": data, "train": values["train"]}
    return made | ({"output_dir": values[""]["output_dir"]} if "output_dir" in values[""] else {})


def text(reading: ForeignRecipe) -> str:
    """The recipe as YAML: where each value comes from, and every key that has no place here with the reason."""
    title = reading.tool.title
    lines = [
        f"# Read from {_plain(reading.source)}, a recipe of {title}, by halter init --from.",
        f"# Values without a source of their own are {title}'s defaults ({reading.tool.source}).",
    ]
    made = as_data(reading)
    for section in ORDER:
        if section not in made:
            continue
        lines += ["", f"{section}:"]
        listed = made[section] if isinstance(made[section], list) else [made[section]]
        for number, values in enumerate(listed):
            several = len(listed) > 1
            for place, (key, value) in enumerate(_named_first(values)):
                lead = "  " if not several else "  - " if place == 0 else "    "
                name = section if number == 0 else f"{section}.{number}"
                lines.append(f"{lead}{key}: {flow(value)}{_source(reading, name, key)}")
    if "output_dir" in made:
        lines += ["", f"output_dir: {flow(made['output_dir'])}{_source(reading, '', 'output_dir')}"]
    said = "\n".join(lines)
    beside = {key: f"as {ours}" for key, ours in reading.read.items() if not re.search(rf"\b{re.escape(key)}\b", said)}
    needs = reading.needs | {key: f"with {ours}" for key, ours in reading.asked.items()}
    apart = {"Read beside these": beside, "You must give": needs, FALLEN[:1].upper() + FALLEN[1:]: reading.fallen}
    apart |= {"No equal here, so that results may differ": reading.lost, "Not needed here": reading.idle}
    for head, told in apart.items():
        if told:
            lines += ["", f"# {head}:", *(f"#   {_plain(key)}: {_plain(why)}" for key, why in told.items())]
    return "\n".join(lines) + "\n"


def _named_first(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(values.items(), key=lambda pair: pair[0] not in ("name", "path"))


def _source(reading: ForeignRecipe, section: str, key: str) -> str:
    why = reading.why.get((section, key), "")
    need = reading.needs.get(f"{section}.{key}", "")
    told = f"you must give it: {need}" if need else why
    return f"  # {_plain(told)}" if told else ""


def _plain(told: object) -> str:
    """One line of a comment, whatever was in it."""
    kept = "".join(c if c.isprintable() else " " for c in str(told))
    return kept if len(kept) <= 200 else f"{kept[:197]}..."


FALLEN = "not given, Halter's defaults are taken unless you give them"


def summary(reading: ForeignRecipe, defaults: bool = True) -> list[str]:
    """At most six lines: what was read as what, what has no meaning here, what is lost, what must or may be given."""
    read = [f"{key} as {ours}" for key, ours in reading.read.items()]
    lost = [f"{key} ({why})" for key, why in (reading.stops | reading.lost).items()]
    needs = [f"{key} ({why})" for key, why in reading.needs.items()]
    told = [
        ("read", read),
        ("not needed here", list(reading.idle)),
        ("no equal here, results may differ", lost),
        ("you must give", needs),
        (FALLEN, list(reading.fallen)),
        (f"{reading.tool.title}'s own defaults, written out", reading.stated if defaults else []),
    ]
    return [f"{head} ({len(items)}): {_some(items)}" for head, items in told if items]


def _some(items: Iterable[str]) -> str:
    listed = [_plain(item) for item in items]
    width = SHOWN if sum(map(len, listed[:SHOWN])) < 240 else 3
    more = f", and {len(listed) - width} more" if len(listed) > width else ""
    return ", ".join(listed[:width]) + more


def command(source: str, needs: Iterable[str] = ()) -> str:
    """The commands that write a recipe of ours from such a file and train it; ``needs``: what has to be filled in."""
    lacking = ", ".join(needs)
    between = f", fill in {lacking} there, then: " if lacking else " && "
    return f"halter init --from {shlex.quote(source)} {WRITTEN}{between}halter train {WRITTEN}"


def refusal(reading: ForeignRecipe) -> Refusal:
    """``foreign-recipe``: whose recipe it is, how it is read, and the command that writes ours from it; of another kind
    of training ``foreign-training``."""
    refuse_other_training(reading)
    return Refusal(
        "foreign-recipe",
        f"this is a recipe of {reading.tool.title}, whose defaults and keys mean other things than Halter's",
        where=reading.source,
        found=summary(reading, defaults=False),
        fix=command(reading.source, reading.needs),
    )


def refuse_other_training(reading: ForeignRecipe) -> None:
    """Refusal ``foreign-training`` where what the file asks for is no training that is there here."""
    if reading.stops:
        raise Refusal(
            "foreign-training",
            f"this recipe of {reading.tool.title} asks for training that Halter does not do",
            where=reading.source,
            found=[f"{_plain(key)}: {_plain(why)}" for key, why in reading.stops.items()],
            expected="single answers learned by LoRA, DoRA, PiSSA or all weights",
            fix="take these keys out of the file, or start anew: halter init lora",
        )
