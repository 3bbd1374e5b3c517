"""`halter generate`: answers of a run, an adapter or a model, to one prompt or to a file of them."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from halter.cli.flags import with_options
from halter.cli.progress import Counter
from halter.errors import Refusal
from halter.files import disk, writing
from halter.files.hub import to_stderr
from halter.generation.engine import stream
from halter.generation.inputs import Asked, read_prompts
from halter.generation.options import GenerationOptions
from halter.generation.streaming import Generation
from halter.run.opening import Opened, OpenOptions, find, open_subject


@with_options(options=GenerationOptions(), opening=OpenOptions())
def command(
    options: GenerationOptions,
    opening: OpenOptions,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Run folder, adapter folder, or model.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to ask; may be given several times.")] = None,
    input: Annotated[
        str | None,
        typer.Option(help="File of prompts: jsonl, json, csv, parquet (prompt, messages or instruction), txt."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="New jsonl file for the answers; not given: the screen.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Leave the adapter out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an answer.")] = False,
) -> None:
    """Answer prompts with a run, an adapter or a model. Text is printed as it is generated."""
    if not prompt and input is None:
        raise Refusal("nothing-asked", "there is nothing to answer", fix='give --prompt "..." or --input FILE')
    if output is not None:
        disk.refuse_existing(output)
    asked = [Asked(f"--prompt {i}", {"prompt": text}, text) for i, text in enumerate(prompt or (), 1)]
    asked += read_prompts(input) if input is not None else []
    opened = open_subject(find(run, model=opening.model, adapter=opening.adapter), to_stderr, opening)
    if len(asked) == 1 and output is None and not as_json:
        _print_as_it_comes(opened, asked[0], options, base)
        return
    answers = _answers(opened, asked, options, base)
    if output is None and not as_json:
        for one, answer in zip(asked, answers, strict=True):
            print(f"--- {one.origin}\n{answer.text}" + (f" [cut off: {answer.cut_off}]" if answer.cut_off else ""))
        return
    lines = [json.dumps(_record(one, answer), ensure_ascii=False) for one, answer in zip(asked, answers, strict=True)]
    text = "\n".join(lines) + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    writing.write_text(output, text)
    to_stderr(f"{output}: {len(lines)} answers")


def _how(opened: Opened, options: GenerationOptions) -> dict[str, Any]:
    return {"template": opened.template, "template_date": opened.template_date, **vars(options)}


def _print_as_it_comes(opened: Opened, one: Asked, options: GenerationOptions, base: bool) -> None:
    adapter, cut = None if base else opened.adapter, ""
    for piece in stream(opened.model, opened.tokenizer, [one.prompt], adapter, **_how(opened, options)):
        sys.stdout.write(piece.text)
        sys.stdout.flush()
        cut = "" if piece.result is None else piece.result.cut_off
    print()
    if cut:
        to_stderr(f"(cut off: {cut})")


def _answers(opened: Opened, asked: list[Asked], options: GenerationOptions, base: bool) -> list[Generation]:
    adapter = None if base else opened.adapter
    prompts = [one.prompt for one in asked]
    results: dict[int, Generation] = {}
    with Counter("answers", len(asked)) as counter:
        for piece in stream(opened.model, opened.tokenizer, prompts, adapter, **_how(opened, options)):
            if piece.result is not None:
                results[piece.row] = piece.result
                counter.done(len(results))
    return [results[row] for row in range(len(asked))]


def _record(one: Asked, answer: Generation) -> dict[str, Any]:
    return {**one.row, "answer": answer.text, "finish_reason": answer.finish_reason, "tokens": len(answer.tokens)}
