"""`halter merge`: an adapter folded into its base, as a model folder that any LLaMA tool opens."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from halter.cli.flags import with_options
from halter.errors import Refusal
from halter.export.foldable import refuse_unfoldable
from halter.export.merge import merge
from halter.export.requantise import merge_quantised
from halter.files.folders import refuse_unwritable
from halter.files.hub import resolve
from halter.files.nearby import no_adapter
from halter.methods.storage import planned
from halter.pretrained.load import load_config
from halter.run.opening import OpenOptions, find, open_subject
from halter.telling import tell

Kind = Literal["16bit", "int8", "nf4"]
KINDS: dict[str, Kind] = {"16bit": "16bit", "int8": "int8", "nf4": "nf4"}


@with_options(opening=OpenOptions())
def command(
    opening: OpenOptions,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Run folder or adapter folder.")] = None,
    output: Annotated[str | None, typer.Option(help="New folder for the merged model.")] = None,
    base: Annotated[
        Literal["original", "dequantised"],
        typer.Option(help="For an adapter trained on a quantised base: what it is merged into."),
    ] = "original",
    into: Annotated[
        str,
        typer.Option(
            metavar="<16bit|int8|nf4>",
            help="int8 and nf4 write 8-bit and 4-bit weights, and say how much of the update is lost. For GGUF merge "
            "into 16bit and give the folder to llama.cpp's convert_hf_to_gguf.py.",
        ),
    ] = "16bit",
    allow_gap: Annotated[
        bool, typer.Option("--allow-gap", help="Write the folder even if it differs from base + adapter.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Merge an adapter into 16-bit weights, and prove that the merged model answers as base + adapter does."""
    if output is None:
        raise Refusal("usage", "merge needs a folder to write", fix="--output FOLDER")
    if into not in KINDS:
        gguf = f"leave --into out; llama.cpp's convert_hf_to_gguf.py makes GGUF of {output}"
        raise Refusal("usage", f"--into {into}: merge writes no such weights", expected=", ".join(KINDS),
                      fix=gguf if into.lower() == "gguf" else "name one of these")  # fmt: skip
    kind = KINDS[into]
    subject = find(run, model=opening.model, adapter=opening.adapter)
    if subject.adapter is None:
        if run is not None:
            raise no_adapter(Path(run))
        raise Refusal(
            "nothing-to-merge", "no adapter is named", fix="give a run folder, an adapter folder or --adapter"
        )
    refuse_unwritable(output, folder=True)  # before the base is read, which may take minutes
    shape = load_config(subject.base, subject.revision)
    refuse_unfoldable(planned(subject.adapter, shape, opening.allow))
    opened = open_subject(subject, tell, opening)
    assert opened.adapter is not None
    source = resolve(subject.base, subject.revision)
    tell(f"merging into {output} ...")
    if kind != "16bit":
        survival = merge_quantised(opened.model, opened.adapter, output, kind, base=base, source=source)
        record: dict[str, object] = {**asdict(survival), "folder": output, "survival": survival.mean}
        words = str(survival)
    else:
        report = merge(opened.model, opened.adapter, output, base=base, source=source, allow_gap=allow_gap)
        record, words = {**asdict(report), "folder": output}, str(report)
    print(json.dumps(record, indent=2) if as_json else f"{words}\nmerged model: {output}")
