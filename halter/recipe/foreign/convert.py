"""Which tool's recipe a file is, and what it means: every key told, nothing passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from halter.recipe.foreign import axolotl, llama_factory, mlx_lm, trl
from halter.recipe.foreign.tables import Absent, ForeignRecipe, Idle, Joint, Mapped, Tool, Unlike

TOOLS: tuple[Tool, ...] = (llama_factory.TOOL, axolotl.TOOL, trl.TOOL, mlx_lm.TOOL)
OURS = ("method", "checks")
"""Sections that no other tool's recipe has."""
SECTIONS = ("model", "data", "train")
FEWEST = 3


def recognise(data: Any) -> Tool | None:
    """The tool whose recipe this is; None for ours, and for what nobody's table knows."""
    if not isinstance(data, Mapping) or any(key in data for key in OURS):
        return None
    if any(isinstance(data.get(name), Mapping) for name in SECTIONS):
        return None

    def fits(tool: Tool) -> tuple[int, int]:
        return sum(key in tool.marks for key in data), sum(key in tool.keys for key in data)

    best = max(TOOLS, key=fits)
    marks, known = fits(best)
    if not marks or known < FEWEST or 2 * known < len(data):
        return None
    return best


def convert(tool: Tool, data: Mapping[str, Any], source: str) -> ForeignRecipe:
    """What another tool's recipe means here."""
    reading = ForeignRecipe(tool, source, {str(key): value for key, value in data.items()})
    joint = {key for key, entry in tool.keys.items() if isinstance(entry, Joint)}
    for key, value in reading.given.items():
        _one(reading, key, value)
    try:
        tool.together(reading)
    except Unlike as error:
        reading.lose("what stands on several keys", str(error), stops=True)
    _once(reading)
    for key in joint & reading.given.keys():
        if not _told(reading, key):
            reading.idle[key] = "empty" if reading.get(key) is None else "another key decides"
    if not reading.values["model"].get("path"):
        reading.need("model.path", "a checkpoint of a LLaMA: folder or hub id")
    if not reading.values["data"].get("train"):
        if "data.train" not in reading.needs:
            reading.need("data.train", "a file, folder or hub id of rows")
    return reading


def kinds(reading: ForeignRecipe) -> tuple[dict[str, str], ...]:
    """The lists in which a key may stand, of which it stands in one."""
    return reading.stops, reading.lost, reading.asked, reading.read, reading.idle


def _told(reading: ForeignRecipe, key: str) -> bool:
    return any(key in told for told in kinds(reading))


def _one(reading: ForeignRecipe, key: str, value: Any) -> None:
    entry = reading.tool.keys.get(key)
    if isinstance(entry, Mapped):
        if value is None:
            reading.idle[key] = "empty"
            return
        try:
            made = entry.convert(value)
        except Unlike as error:
            reading.lose(key, str(error))
            return
        if made is None:
            reading.idle[key] = "asks for what happens anyway"
        else:
            reading.take(key, entry.section, entry.key, made)
    elif isinstance(entry, Idle):
        reading.idle[key] = entry.why
    elif isinstance(entry, Absent):
        if any(value == one and type(value) is type(one) for one in entry.harmless):
            reading.idle[key] = "asks for what happens anyway"
        else:
            reading.lose(key, entry.why, entry.stops)
    elif entry is None:
        near = get_close_matches(key, reading.tool.keys, 1, cutoff=0.8)
        hint = f"; did you mean {near[0]}?" if near else ""
        reading.lose(key, f"not a key of {reading.tool.title} that is known here{hint}")


def _once(reading: ForeignRecipe) -> None:
    """A key is told in one place: what is lost by it before what must be given for it, that before what is read of it,
    and that before what is not needed."""
    listed = kinds(reading)
    for place, kind in enumerate(listed):
        for key in kind:
            for later in listed[place + 1 :]:
                later.pop(key, None)
