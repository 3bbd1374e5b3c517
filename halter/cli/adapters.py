"""`halter adapters`: adapter folders listed, shown, compared, combined, compressed and converted."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from halter.adapters.importing.taking import ImportOptions
from halter.cli.differences import differences, said
from halter.cli.flags import with_options
from halter.cli.strays import percent
from halter.errors import Refusal
from halter.export.combine import CombineOptions
from halter.export.compress import CompressOptions
from halter.files.folders import refuse_unwritable
from halter.telling import tell

MISTAKES = 2
ONLY_HALTER = "only Halter reads this folder; for other programs: halter adapters convert FOLDER --to peft --output NEW"

Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]
Model = Annotated[
    str | None, typer.Option(help="Base model (folder or hub id), where the adapter does not say, or it is elsewhere.")
]
Output = Annotated[str | None, typer.Option(help="New folder to write.")]


def command() -> None:
    """Adapter folders: what they are, how they differ, and new ones made of them. Bases' weights are not read."""


def list_(
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="Adapters, runs, or folders of them.")],
    as_json: Json = False,
) -> int:
    """Method, numbers, rank, base and size of every adapter; exit code 2 if one cannot be read."""
    from halter.adapters.describing import describe
    from halter.run import adapter_folders

    rows: list[dict[str, Any]] = []
    for place in adapter_folders.adapters_in(folders):
        try:
            rows.append(describe(place))
        except Refusal as refusal:
            rows.append({"folder": str(place), "problem": refusal.id, "text": refusal.paragraph()})
    print(json.dumps(rows, indent=2, ensure_ascii=False) if as_json else _table(rows))
    return MISTAKES if any("problem" in row for row in rows) else 0


def show(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Adapter or run folder.")],
    as_json: Json = False,
) -> None:
    """Everything that an adapter folder says of itself."""
    from halter.adapters.describing import describe
    from halter.run import adapter_folders

    found = describe(adapter_folders.adapter_place(folder))
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for key, value in found.items():
        if key == "methods":
            for method in value:
                options = ", ".join(
                    f"{k} {v}" for k, v in method.items() if k != "name" and v not in (None, [], {}, ())
                )
                print(f"{'options':<12}{method['name']}: {options}")
        elif value not in ("", [], {}):
            print(f"{key:<12}{said(value)}")


def diff(
    a: Annotated[str, typer.Argument(metavar="FOLDER", help="Adapter or run folder.")],
    b: Annotated[str, typer.Argument(metavar="OTHER", help="The one that it is compared with.")],
    model: Model = None,
    as_json: Json = False,
) -> None:
    """How two adapters differ: options, and tensor by tensor norms and cosines."""
    from halter.run import adapter_folders

    found = adapter_folders.difference(adapter_folders.adapter_place(a), adapter_folders.adapter_place(b), model)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else differences(found))


@with_options(options=CombineOptions())
def combine(
    options: CombineOptions,
    folders: Annotated[list[str], typer.Argument(metavar="FOLDER...", help="LoRA adapters (or runs) of one base.")],
    output: Output = None,
    weights: Annotated[
        str | None, typer.Option(help="One number each, such as 1,-0.5: negative ones subtract. Not given: 1 each.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """A weighted combination of LoRAs as one; of one alone: scaled (--weights), or at a lower rank (--mode svd)."""
    from halter.export.combine import combine as combined
    from halter.run import adapter_folders

    place = _needed(output, "combine")
    if weights is not None and (loose := [word for word in folders if _is_weight(word)]):
        one = ",".join(part for word in (weights, *loose) for part in word.split(",") if part)
        raise Refusal("usage", "weights are one word, with commas between", found=loose, fix=f"--weights {one}")
    numbers = [1.0] * len(folders) if weights is None else _numbers(weights)
    adapters = [adapter_folders.open_without_weights(folder, model) for folder in folders]
    made, report = combined(adapters, numbers, options, folders)
    made.facts["combined"]["of"] = [str(folder) for folder in folders]
    made.save(place)
    print(json.dumps({"folder": place, **asdict(report)}, indent=2) if as_json else f"{report}\nadapter: {place}")


@with_options(options=CompressOptions())
def compress(
    options: CompressOptions,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Adapter or run folder.")],
    output: Output = None,
    data: Annotated[str | None, typer.Option(help="Held-out rows: the loss before and after is measured.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows of --data taken at most.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """An adapter's file in 8, 4 or 1 bit, or with its important numbers only, and what that loses."""
    from halter.export.compress import compress as compressed
    from halter.run import adapter_folders

    place = _needed(output, "compress")
    opened, rows = _opened(folder, model, data, limit) if data is not None else (None, [])
    adapter = adapter_folders.open_without_weights(folder, model) if opened is None else opened.adapter
    smaller, report = compressed(adapter, place, options)
    record = {"folder": place, **asdict(report)}
    words = [str(report), ONLY_HALTER]
    if opened is not None:
        from halter.evaluation.score import held_out_loss

        sides = {"base": None, "before": adapter, "after": smaller}
        losses = {side: held_out_loss(opened.model, rows, one) for side, one in sides.items()}
        record["loss"] = losses
        words.append("held-out loss: " + ", ".join(f"{side} {loss:.4f}" for side, loss in losses.items()))
    print(json.dumps(record, indent=2) if as_json else "\n".join([*words, f"adapter: {place}"]))


@with_options(options=ImportOptions())
def convert(
    options: ImportOptions,
    source: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Adapter folder, or another program's .pth file (or files)."),
    ],
    output: Output = None,
    to: Annotated[
        Literal["halter", "peft", "lora"],
        typer.Option(help="halter: as it is; peft: as PEFT reads it; lora: plain LoRA, where it is a low-rank sum."),
    ] = "halter",
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Another layout of an adapter: from the LLaMA-Adapter authors' and litgpt's files, to PEFT's, to plain LoRA."""
    place = _needed(output, "convert")
    adapter, notes, told, kind = _read(source, model, options)
    if to == "lora":
        from halter.export.combine import combine as combined

        try:
            adapter, _ = combined([adapter], [1.0])
        except Refusal as refusal:
            if refusal.id != "not-low-rank":
                raise
            what = f"{kind} has no LoRA form: what it does at these places is no low-rank matrix added to a weight"
            peft = all("peft" in method.servable_by for method in adapter.methods)
            fix = "keep it as it is" + (", or --to peft writes it as PEFT reads it" if peft else "")
            raise Refusal("not-low-rank", what, found=refusal.found, fix=fix) from None
    elif to == "peft":
        from halter.adapters.for_peft import for_peft

        adapter, lost = for_peft(adapter)
        notes += lost
    adapter.save(place)
    for label, lines in (("lossy", notes), ("note", told)):
        for line in lines:
            tell(f"{label}: {line}")
    record = {"folder": place, "from": kind, "to": to, "lossy": notes, "notes": told}
    record["parameters"] = adapter.num_trainable
    print(json.dumps(record, indent=2) if as_json else f"{kind}, {adapter.num_trainable:,} numbers\nadapter: {place}")


def _read(source: list[str], model: str | None, options: ImportOptions) -> tuple[Any, list[str], list[str], str]:
    """(adapter, what was lost, what is told of its reading, what it was)."""
    from halter.adapters.importing.formats import import_adapter
    from halter.adapters.importing.whose import opened
    from halter.files.nearby import no_such_source, refuse_inside_adapter
    from halter.pretrained.load import load_config
    from halter.run import adapter_folders

    if len(source) == 1 and Path(source[0]).is_dir():
        if options != ImportOptions():
            raise Refusal(
                "usage",
                "options of imports belong to files, and this is a folder",
                where=source[0],
                fix="leave the options out, or name the file itself",
            )
        adapter = adapter_folders.open_without_weights(source[0], model)
        return adapter, [], adapter.notes, " + ".join(method.name() for method in adapter.methods)
    for name in source:
        if not os.path.lexists(name):
            raise no_such_source(Path(name))
        refuse_inside_adapter(Path(name))
    if model is None:
        opened([Path(name) for name in source])  # of no known format, no model would help
        raise Refusal("base-unknown", "a file of another program does not say its base", fix="give --model")
    made = import_adapter(source, load_config(model), options)
    made.adapter.facts["base"] = {"name": model} | (
        {"folder": str(Path(model).resolve())} if Path(model).is_dir() else {}
    )
    return made.adapter, list(made.notes), list(made.told), made.format


def _opened(folder: str, model: str | None, data: str, limit: int | None) -> tuple[Any, Any]:
    """The base with the adapter on it, and rows to score."""
    from halter.run.adapter_folders import adapter_place
    from halter.run.opening import OpenOptions, find, open_subject
    from halter.run.scored import Scoring, held_out_rows

    chosen = OpenOptions(model=model)
    opened = open_subject(find(adapter_place(folder), model=model), tell, chosen)
    return opened, held_out_rows(opened, data, Scoring(limit=limit))[0]


def _needed(output: str | None, word: str) -> str:
    if output is None:
        raise Refusal("usage", f"{word} needs a folder to write", fix="--output FOLDER")
    refuse_unwritable(output, folder=True)
    return output


def _is_weight(word: str) -> bool:
    """Whether a word among the folders is one of the weights, a space between it and the others."""
    return bool(re.fullmatch(r",?-?[0-9.]+(,-?[0-9.]+)*,?", word)) and not os.path.lexists(word)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        parts = re.findall(r"(-?[0-9.]+)( ?%)?", text)
        meant = ",".join(percent(number) if share else number for number, share in parts)
        rest = re.sub(r"-?[0-9.]+( ?%)?", "", text).strip(",;:/ ")
        fix = f"--weights {'1,-0.5' if rest or not parts else meant}"
        raise Refusal("usage", f"weights {text!r} are not numbers with commas between", fix=fix) from None


def _table(rows: list[dict[str, Any]]) -> str:
    head = ("method", "parameters", "rank", "bits", "bytes", "base", "folder")
    lines = [head]
    for row in rows:
        if "problem" in row:
            lines.append((f"[{row['problem']}]", "", "", "", "", "", row["folder"]))
            continue
        base = row["base"]
        known = base.get("digest") or base.get("fingerprint")
        told = f"{Path(base.get('name') or '?').name}" + (f" {known[:12]}" if known else "")
        cells = (row["method"], f"{row['parameters']:,}", row["rank"], str(row["bits"]), f"{row['bytes']:,}", told)
        lines.append((*cells, row["folder"]))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


COMMANDS = {
    "list": list_,
    "show": show,
    "diff": diff,
    "combine": combine,
    "compress": compress,
    "convert": convert,
}
