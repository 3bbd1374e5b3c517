"""From the recipe's data section to rows of tokens, with an account of everything that was dropped and why."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from halter.data import cache, formats
from halter.data.advice import numbers_learned, roles_guessed, roles_option
from halter.data.cache_key import files_of
from halter.data.choose import hold_out, without
from halter.data.encode import Encoder
from halter.data.examples import Builder, Examples
from halter.data.frames import for_long_rows
from halter.data.json_text import BROKEN
from halter.data.meaning import plain_name
from halter.data.misnamed import python_way
from halter.data.options import DataOptions, Source
from halter.data.report import DataReport
from halter.data.respelt import broken_way, python_lists, twice_encoded
from halter.data.row_files import EMPTY, Fault, as_utf8, opened
from halter.data.store import Store, joined
from halter.data.tokenise import DUPLICATE, NO_ROW, Account, Group, Tokenising, fitting, tools_fix
from halter.data.told import grouped, place
from halter.data.turns import UNANSWERED
from halter.data.workers import useful
from halter.errors import Refusal, Waivers
from halter.model.pictures import PictureRules
from halter.readers.named import readers_of
from halter.text.chat.conversations import ChatTemplate
from halter.text.chat.render import NO_TOOLS
from halter.text.tokenizer import Tokenizer

__all__ = ["DataReport", "Examples", "Loaded", "load_examples"]

TOO_LONG = "too long"
MORE_COLUMNS = re.compile(r"\d+ columns instead of \d+")
OTHER_KEYS = re.compile(r"missing key .*\(has ([^()?]+)\)$")
"""The fault of a row that lacks a key and whose others are these; one that may be misspelt is asked about."""
NOT_JSON = re.compile(r"wrong type of (\w+): not JSON")
MOST_UNANSWERED = 0.1
"""Share of rows with an empty answer from which on they are no accident."""

CountProgress = Callable[[int], None]


class RowSight(NamedTuple):
    """How the model of these rows takes pictures (None: it sees none), and what the user lets pass."""

    rules: PictureRules | None = None
    waivers: Waivers = Waivers()


@dataclass(frozen=True)
class Loaded:
    """Rows for training and for the held-out loss, and the account of them."""

    train: Examples
    validation: Examples
    report: DataReport


def load_examples(
    options: DataOptions,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    seed: int = 0,
    progress: CountProgress | None = None,
    system: str | None = None,
    context: int | None = None,
    sight: RowSight | None = None,
) -> Loaded:
    """Read, check, encode and split, or take what the cache has. ``progress`` is told the number of rows encoded so
    far, now and then; rows from the cache are not encoded. ``system``: the system message of every conversation.
    ``context``: the most tokens that the model reads. ``sight``: how it takes pictures, and what is waived.
    A source called ``-`` is standard input, read once.

    Refusals: ``bad-rows`` and ``long-rows`` name every culprit of all sources, ``no-rows``, ``data-changed``; and those
    of sources, formats, readers and the template.
    """
    readers_of(options.readers)  # what cannot read is refused before a row is read
    encoder = Encoder(options, tokenizer, template, system, context, *(sight or RowSight()))
    load = _Load(encoder, seed, progress)
    train = load.rows(options.sources, options.limit)
    held_out = _Load(encoder, seed, progress)
    validation = Examples()
    if isinstance(options.validation, str):
        validation = held_out.rows((Source(options.validation),), None)
    _refuse(encoder, [load.account, held_out.account])
    report = load.account.report
    read = train
    if isinstance(options.validation, float):
        train, validation = hold_out(train, options.validation, seed)
    else:
        rest = without(train, validation)
        report.overlap_dropped = len(train) - len(rest)
        train = rest
    report.faults += held_out.account.report.faults
    report.cached += held_out.account.report.cached
    report.count(train, validation)
    if not len(train):
        held = read if isinstance(options.validation, float) else None
        raise _nothing("no row is left to train on", report, encoder, held)
    if options.validation is not None and not len(validation):
        raise _nothing("no row is left for the held-out loss", held_out.account.report, encoder)
    return Loaded(train, validation, report)


class _Load:
    """The rows of some sources; each is a group of its own, so that another mixture of the same is not encoded anew."""

    def __init__(self, encoder: Encoder, seed: int, progress: CountProgress | None) -> None:
        self.encoder, self.seed, self.account = encoder, seed, Account()
        self._progress = progress

    def rows(self, sources: Sequence[Source], limit: int | None) -> Examples:
        """All rows that can be used, encoded."""
        numbered = list(enumerate(sources))
        groups = [Group([pair]) for pair in numbered] if limit is None else [Group(numbered, limit)]
        stores: list[Store] = []
        for group in groups:
            store, account = self._group(group, not any(map(len, stores)))
            stores.append(store)
            self.account.report.add(account.report)
            self.account.too_long += account.too_long
            self.account.refused += account.refused
        account = self.account
        if account.refused and len(account.refused) == len(account.report.faults) and not any(map(len, stores)):
            raise fitting(account.refused[0], self.encoder.tokenizer)
        return Examples.of(joined(stores))

    def _group(self, group: Group, first: bool) -> tuple[Store, Account]:
        before = self.account.report.rows
        progress = self._progress
        told = None if progress is None else lambda count: progress(before + count)

        size = sum(path.stat().st_size for path in files_of(group) or ())

        def fill(builder: Builder) -> Account:
            return Tokenising(self.encoder, self.seed, builder, told, first, useful(size)).run(group)

        found = cache.find_or_make(self.encoder, group, self.seed, fill) if self.encoder.options.cache else None
        if found is not None:
            return found
        builder = Builder()
        account = fill(builder)
        return builder.store(), account


def _nothing(what: str, report: DataReport, encoder: Encoder, held: Examples | None = None) -> Refusal:
    """Refusal ``no-rows``, with what became of the rows and what keeps them; ``held``: those of which the share of
    validation left none to train on."""
    tokenizer = encoder.tokenizer
    framed, shorter = for_long_rows(encoder, report) if report.long_dropped else ("", "")
    fates = (
        (
            report.overlap_dropped,
            "in data.validation too",
            "give another file, or a share of the rows: --validation 0.1",
        ),
        (0, "", "") if held is None else _all_held(held),
        (report.long_dropped, f"longer than {_most(encoder)}", shorter),
        (report.notes["rejected_dropped"], "marked as bad answers", "data.on_rejected=learn learns them all the same"),
        (len(report.faults), "not usable", way_out(report.faults, report.rows, tokenizer)),
    )
    found = [f"{count} of {report.rows} rows are {words}" for count, words, _ in fates if count]
    found += [framed] * bool(framed) + grouped(report.faults) + [line for line in report.said if NO_ROW in line]
    fixes = [fix for count, _, fix in fates if count]
    fix = fixes[0] if fixes else "" if report.rows else "give a file with rows"
    return Refusal("no-rows", what, found=found, fix=fix)


def _all_held(held: Examples) -> tuple[int, str, str]:
    """(how many rows the share of validation leaves no other of, what they are, what to do)."""
    rows, different = len(np.unique(held.documents)), len(np.unique(held.digests()))
    if different > 1:
        return rows, "in the share of validation", "take a smaller share, such as --validation 0.1"
    same = "the same row, which the share of validation has too" if rows > 1 else "in the share of validation"
    return rows, same, "give rows that differ, or leave data.validation (--validation) out"


def _most(encoder: Encoder) -> str:
    """The tokens of the longest row that is taken, with what bounds them where that is the model."""
    bound = " (this model's context)" if encoder.at_context else ""
    return f"{encoder.options.max_length} tokens{bound}"


def _refuse(encoder: Encoder, accounts: list[Account]) -> None:
    options, tokenizer = encoder.options, encoder.tokenizer
    faults = [fault for account in accounts for fault in account.report.faults]
    long = [fault for account in accounts for fault in account.too_long]
    empty = [Fault(origin, EMPTY) for account in accounts for origin in account.report.empty_at]
    rows = sum(account.report.rows for account in accounts)
    if stopping(faults, rows) and options.on_bad == "stop":
        raise Refusal(
            "bad-rows",
            f"{len(faults)} of {rows} rows cannot be used",
            found=faults + long + empty,
            groups=grouped([*faults, *(Fault(one.origin, TOO_LONG) for one in long), *empty]),
            fix=way_out(faults, rows, tokenizer),
        )
    if long:
        raise Refusal(
            "long-rows",
            f"{len(long)} of {rows} rows have more than {_most(encoder)}",
            found=long,
            groups=grouped([Fault(one.origin, TOO_LONG) for one in long]),
            fix=f"{'' if encoder.at_context else 'raise data.max_length, or '}data.on_long: drop, cut or split",
        )


def stopping(faults: Sequence[Fault], rows: int) -> bool:
    """Whether these faults keep a run from starting: answers left empty are skipped and counted, as every data set of
    some thousand rows has a few, unless there are so many that another column may hold the answers."""
    unanswered = sum(one.kind.startswith(UNANSWERED) for one in faults)
    return unanswered < len(faults) or unanswered > MOST_UNANSWERED * rows


def _of_other_layout(kind: str) -> bool:
    """Whether a row lacks a key because it is of another format than the first ones."""
    found = OTHER_KEYS.search(kind)
    with suppress(Refusal):  # columns of several formats
        return found is not None and formats.find({plain_name(key) for key in found[1].split(", ")}, "") != ""
    return False


def respelt_way(faults: Sequence[Fault]) -> str:
    """The way of the first row that is written in another program's spelling, or that is cut off or has a comma too
    many; '' where none is."""
    for fault in faults:
        path, line = place(fault.origin)
        column = NOT_JSON.fullmatch(fault.kind)
        way = python_way if fault.kind.startswith(f"{BROKEN}: Expecting prop") else None
        way = twice_encoded if fault.kind.startswith("str instead of an object") else way
        with suppress(OSError, EOFError, zlib.error, ValueError):
            if column is not None and (told := python_lists(path, fault.origin, column[1])):
                return told
            if way is not None:
                with opened(Path(path)) as file:
                    if told := way(path, next(islice(file, int(line) - 1, None), b"")):
                        return told
        if column is not None or way is twice_encoded:
            break  # one look: a large file is not read again for every row
    return broken_way(faults)


def way_out(faults: Sequence[Fault], rows: int, tokenizer: Tokenizer) -> str:
    """What to do where these of so many rows keep a run from starting: what keeps them first; leaving them out is a way
    only where others are left."""
    kinds = [fault.kind for fault in faults]
    roles = roles_guessed(kinds)
    ways = [f"say who speaks: {roles_option(roles)}"] if roles else []
    if respelt := respelt_way(faults):
        ways.append(respelt)
    elif len(faults) >= rows and all(kind.startswith(BROKEN) for kind in kinds):
        ways.append("write one JSON object a line and nothing between them")
    if numbers := numbers_learned(kinds):
        ways.append(numbers)
    if any(MORE_COLUMNS.fullmatch(kind) for kind in kinds):
        ways.append("put fields that hold commas into double quotes (csv writers do)")
    if any(map(_of_other_layout, dict.fromkeys(kinds))):
        ways.append("put the rows of each layout into a file of their own and give each: --data A --data B")
    ways += ["correct the key in the file"] if any("did you mean its" in kind for kind in kinds) else []
    ways += ["data.id_column=null keeps rows whose ids repeat"] if any(k.startswith(DUPLICATE) for k in kinds) else []
    ways += [tools_fix(tokenizer)] if any(NO_TOOLS in kind for kind in kinds) else []
    broken = [place(fault.origin)[0] for fault in faults if fault.kind.startswith("invalid UTF-8")]
    ways += [way for name in list(dict.fromkeys(broken))[:1] if (way := as_utf8(Path(name)))]
    if len(faults) < rows:
        ways.append("data.on_bad=skip leaves them out and counts them")
    return "; ".join(ways) or "correct the rows in the file: there is none that can be used"
