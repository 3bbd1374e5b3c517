"""`halter merge`: an adapter folded into its base, as a model folder that any LLaMA tool opens."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from halter.cli.flags import with_options
from halter.errors import Refusal
from halter.export.requantise import Survival
from halter.run.merging import MergedAs, MergeOptions, merge_named

KINDS: dict[str, MergedAs] = {"16bit": "16bit", "int8": "int8", "nf4": "nf4"}


@with_options(opening=MergeOptions())
def command(
    opening: MergeOptions,
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
            help="16bit is any weights that are not quantised, whose dtype --dtype says; int8 and nf4 write 8-bit and "
            "4-bit ones, and say how much of the update is lost. For GGUF merge into 16bit and give the folder to "
            "llama.cpp's convert_hf_to_gguf.py.",
        ),
    ] = "16bit",
    allow_gap: Annotated[
        bool, typer.Option("--allow-gap", help="Write the folder even if it differs from base + adapter.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Merge an adapter into its base's weights, and prove that the merged model answers as base + adapter does."""
    if output is None:
        raise Refusal("usage", "merge needs a folder to write", fix="--output FOLDER")
    if into not in KINDS:
        gguf = f"leave --into out; llama.cpp's convert_hf_to_gguf.py makes GGUF of {output}"
        raise Refusal(
            "usage",
            f"--into {into}: merge writes no such weights",
            expected=", ".join(KINDS),
            fix=gguf if re.match("gguf|i?q[2-8]", into.lower()) else "name one of these",
        )
    report = merge_named(run, opening, output, base=base, into=KINDS[into], allow_gap=allow_gap)
    record: dict[str, object] = {**asdict(report), "folder": output}
    record |= {"survival": report.mean} if isinstance(report, Survival) else {}
    print(json.dumps(record, indent=2) if as_json else f"{report}\nmerged model: {output}")
