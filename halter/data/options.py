"""Where rows come from and how they become tokens, declared once: the recipe's `data` section."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from halter.errors import Refusal

PERCENT = re.compile(r"[0-9.]+ ?%")
ROLES = ("user", "assistant", "system", "tool", "function_call")


@dataclass(frozen=True)
class Source:
    """One of several sources that are mixed."""

    path: str
    """A file (jsonl, json, csv, parquet, txt), a folder of such files, or a hub id (org/name or
    org/name:configuration); name#500 takes 500 rows."""
    weight: float = 1.0
    """How often its rows come in an epoch: 2 has every row twice, 0.5 every second one, the rest in the next epoch."""
    limit: int | None = None
    """Rows taken at most, chosen by the seed."""

    def __post_init__(self) -> None:
        bad = []
        if not (math.isfinite(self.weight) and self.weight > 0):
            bad.append(f"weight: must be above 0, not {self.weight}")
        if self.limit is not None and self.limit < 1:
            bad.append(f"limit: must be above 0, not {self.limit}")
        if bad:
            raise Refusal(
                "data-options",
                "a source that cannot be used",
                where=self.path,
                found=bad,
                fix="give numbers above 0, or leave them out",
            )

    @property
    def parts(self) -> tuple[str, int | None]:
        """(path, rows asked for): "name#500" is ("name", 500), unless something of that very name exists."""
        name, mark, count = self.path.rpartition("#")
        if mark and count.isdecimal() and int(count) > 0 and not Path(self.path).exists():
            return name, int(count)
        return self.path, None


@dataclass(frozen=True)
class DataOptions:
    """Rows for training and for the held-out loss."""

    train: str | tuple[Source, ...] | None = None
    """A file (jsonl, json, csv, parquet, txt), a folder of such files, a hub id, or a list of {path, weight, limit};
    name#500 takes 500 rows."""
    validation: str | float | None = None
    """A file, folder or hub id like train, or a share below 1 that is taken out of train. Rows that are in both are
    taken out of train."""
    columns: dict[str, str] = field(default_factory=dict)
    """Your columns for the ones Halter knows, such as {prompt: question, completion: answer} (written as they are) or
    {instruction: question, output: answer} (written by the chat template). A text with {column} in it is filled in.
    Not given: found by the names of your columns, and told."""
    roles: dict[str, str] = field(default_factory=dict)
    """Speakers of your conversations for those that Halter knows (user, assistant, system, tool, and function_call,
    whose words are the assistant's call of a tool as JSON), such as {customer: user, agent: assistant}. Usual names
    (human, gpt, bot, ai, model and the like) are known."""
    row_template: str | None = None
    """How a row's columns make its prompt, such as "Q: {question} A:"; the completion comes from columns.completion."""
    max_length: int = 2048
    """Most tokens in a row."""
    packing: bool = True
    """Fill every micro-batch up to micro_tokens with rows that do not see one another; off: it holds no more tokens
    than the longest row."""
    template: str | None = None
    """Chat template: llama-2, llama-3, llama-3.1, llama-3.2-vision, llama-4, alpaca, vicuna, chatml, zephyr, or a Jinja
    file. Not given: the checkpoint's own."""
    template_date: str | None = None
    """The date (YYYY-MM-DD) that a template which asks for one is given, so that training and use agree."""
    on_long: Literal["drop", "cut", "split", "stop"] = "drop"
    """Rows above max_length: drop them; cut their end off (those that would lose their whole answer are dropped); split
    plain text and token rows into several, dropping others; or stop and name them. All of it is counted."""
    on_bad: Literal["stop", "skip"] = "stop"
    """Rows that cannot be read or have nothing to learn: stop before the model is loaded and name them all, or skip and
    count them. Rows whose answer is empty are skipped either way, where they are fewer than one in ten."""
    id_column: str | None = None
    """A column that must tell the rows of a file apart: a row that repeats an earlier one's value is bad. Not given:
    rows may repeat an id, which is counted and told."""
    image_folder: str | None = None
    """The folder in which rows' pictures lie whose paths are not whole. Not given: that of the rows' own file."""
    fetch_pictures: bool = False
    """Fetch pictures that rows name by an address of the web (http, https), once, when the rows are read. Off: such
    rows are refused, so that no row has Halter ask another machine for something."""
    readers: tuple[str, ...] = ()
    """What reads rows' pictures, in this order, so that a text of each stands ahead of it, or in its place where the
    model sees none: ocr (tesseract), caption (an endpoint named by HALTER_CAPTION_URL), with options as in
    ocr:language=deu,layout=3, or a reader of your own by its name. Such rows are not kept in the cache; what was read
    is."""
    on_rejected: Literal["drop", "learn", "stop"] = "drop"
    """Rows whose answer people marked as bad (a column such as label or kto_tag that is false): drop them, learn them
    all the same, or stop and name them. All of it is counted."""
    train_on: Literal["responses", "last_response", "all"] = "responses"
    """What is learned: every answer of the assistant with its end, the last one only, or every token."""
    reasoning: Literal["keep", "drop"] = "keep"
    """What answers think before they speak (<think>...</think>): keep learns it, also where the chat template leaves it
    out of past turns (each answer then follows the very prompt that generation gives); drop learns the answer alone."""
    limit: int | None = None
    """Rows taken at most, chosen by the seed."""
    cache: bool = True
    """Keep the tokenised rows of files below HALTER_CACHE (~/.cache/halter), at most HALTER_CACHE_GB of them (20), and
    take them from there next time; data larger than memory needs it."""

    def __post_init__(self) -> None:
        bad = []
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            bad.append(f"validation: a share lies between 0 and 1, not {self.validation}")
        asked = self.validation
        if isinstance(asked, str) and PERCENT.fullmatch(asked) and not Path(asked).exists():
            bad.append(f"validation: a share must be below 1 or a file, found the word {asked!r}")
        bad += [
            f"roles: {name} cannot be {role}, only {', '.join(ROLES)}"
            for name, role in self.roles.items()
            if role not in ROLES
        ]
        bad += [f"{name}: must be above 0" for name in ("max_length", "limit") if _below_one(getattr(self, name))]
        if bad:
            raise Refusal(
                "data-options",
                "data options that cannot be used",
                found=bad,
                fix="change these; halter init METHOD writes a recipe with every key explained",
            )

    @property
    def sources(self) -> tuple[Source, ...]:
        """What `train` means."""
        if self.train is None:
            raise Refusal("no-data", "no training data is given", fix="give data.train, or --data FILE")
        return (Source(self.train),) if isinstance(self.train, str) else self.train


def _below_one(value: int | None) -> bool:
    return value is not None and value < 1
