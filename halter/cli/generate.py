"""`halter generate`: answers of a run, an adapter or a model, to one prompt or to a file of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from halter.cli.flags import with_options
from halter.cli.progress import CountLine
from halter.data.options import DataOptions
from halter.errors import HalterError, Refusal, Waivers
from halter.files import folders, writing
from halter.generation.engine import stream
from halter.generation.inputs import PromptRow, asks_nothing, read_prompts
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt, encode_prompt, told_of_marks, too_long, with_system
from halter.generation.seeing import Seeing
from halter.generation.streaming import AnswersFailed, Generation, TokenLogprob
from halter.readers.reader import PictureReader
from halter.run.opening import Opened, OpenOptions, Subject, find, open_subject
from halter.run.words import data_options, readers_for, subject_and_keys
from halter.telling import tell


@dataclass(frozen=True)
class Asking:
    """How prompts are put, and how many answers each gets."""

    image: tuple[str, ...] = ()
    """Files of pictures that stand ahead of every --prompt; once for each."""
    reader: tuple[str, ...] = ()
    """What reads the pictures, so that a text of each stands ahead of it, or in its place where the model sees none:
    ocr, caption, with options as in ocr:language=deu,layout=3; none: nothing. Not given: as in the run's training."""
    system: str | None = None
    """System message ahead of every prompt; needs a chat template."""
    prefill: str = ""
    """Words with which every answer begins; printed answers leave them out."""
    n: int = 1
    """Answers to each prompt; more than one need a temperature above 0."""
    base: bool = False
    """Leave the adapter out."""
    columns: str | None = None
    """Where rows have their prompt, e.g. '{instruction: question, input: context}'; not given: as in the run's
    training."""
    on_long: Literal["refuse", "skip", "cut"] = "refuse"
    """Prompts that do not fit into the model's context with max_new_tokens: refuse only those that leave no room at
    all, skip (counted), or cut their beginning (counted)."""


@with_options(asking=Asking(), options=GenerationOptions(), opening=OpenOptions())
def command(
    asking: Asking,
    options: GenerationOptions,
    opening: OpenOptions,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN data.KEY=VALUE",
            help="Run folder, adapter folder, or model; and how rows are read where not as in its training: "
            "data.roles=..., data.columns=..., data.row_template=...",
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="What to ask; may be given several times.")] = None,
    input: Annotated[
        str | None,
        typer.Option(
            help="File of prompts: jsonl, json, csv, parquet (prompt, messages, instruction), txt; - is standard input."
        ),
    ] = None,
    output: Annotated[str | None, typer.Option(help="New jsonl file for the answers; not given: the screen.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an answer.")] = False,
) -> None:
    """Answer prompts with a run, an adapter or a model. Text is printed as it is generated."""
    run, keys = subject_and_keys(words, "--input", input, opening.model or opening.adapter, prompt or ())
    if not prompt and input is None:
        raise Refusal("nothing-asked", "no prompt was given", fix='give --prompt "...", --input FILE, or --input -')
    if output is not None:
        folders.refuse_unwritable(output)
        if not output.lower().endswith(LINES):
            tell(f"note: {output} will hold one JSON object a line, whatever its name says: .jsonl is usual")
    asked = _typed(prompt or (), asking.image)
    if output is None and not as_json and (unshown := options.unshown("the screen")):
        tell(unshown)
    subject = find(run, model=opening.model, adapter=opening.adapter)
    asked += _rows_of(input, subject, keys, asking)
    tell_empty(asked)
    readers = readers_for(asking.reader, subject, any(one.pictured for one in asked))
    opened = open_subject(subject, tell, opening)
    if marked := told_of_marks([one.prompt for one in asked], opened.template):
        tell(marked)
    rows = _fitting(opened, _encoded(opened, asked, asking, readers), asking, options)
    adapter = None if asking.base else opened.adapter
    if len(rows) == asking.n == 1 and not rows[0][0].later and output is None and not as_json:
        _print_as_it_comes(opened, rows[0][1], options, adapter)
        return
    answers = _answers(opened, [ids for _, ids in rows], asking, options, adapter)
    each = [one for one, _ in rows for _ in range(asking.n)]
    talks = list(zip(each, ([answer] for answer in answers), strict=True))
    _later_turns(opened, talks, asking, options, readers)
    _show(opened, talks, asking, output, as_json)
    _raise_failed(talks)


def _show(opened: Opened, talks: Talks, asking: Asking, output: str | None, as_json: bool) -> None:
    """Print the answers, or write them to the file ``output``."""
    if output is None and not as_json:
        for place, (one, said) in enumerate(talks):
            which = f" ({place % asking.n + 1}/{asking.n})" if asking.n > 1 else ""
            for turn, answer in enumerate(said, 1):
                head = f"--- {one.origin}{which}" + (f", turn {turn}" if one.later else "")
                print(f"{head}\n{answer.text}" + (f" [cut off: {answer.cut_off}]" if answer.cut_off else ""))
        return
    lines = [json.dumps(_record(opened, one, said), ensure_ascii=False, default=_no_json) for one, said in talks]
    text = "".join(f"{line}\n" for line in lines)
    if output is None:
        sys.stdout.write(text)
        return
    writing.write_text(output, text)
    tell(f"{output}: {len(lines)} answers")


def _no_json(value: Any) -> str:
    """What stands in an answer's record for what a row has and JSON has not: the bytes of a picture."""
    return f"({len(value):,} bytes)" if isinstance(value, bytes) else str(value)


def _raise_failed(talks: Talks) -> None:
    """HalterError where an answer failed: it is shown with the others, and the exit code says that not all is well."""
    failed = [(one, said[-1]) for one, said in talks if said[-1].finish_reason == "error"]
    if failed:
        what = f"{len(failed)} of {len(talks)} answers failed; the first, of {failed[0][0].origin}"
        raise HalterError(f"{what}: {failed[0][1].error}")


def _typed(prompts: Sequence[str], pictures: Sequence[str]) -> list[PromptRow]:
    """What was asked by flags. Refusal ``usage`` for pictures that nothing is asked about."""
    if pictures and not prompts:
        fix = '--prompt "What is in the picture?"; rows of a file name their own pictures, in a column images'
        raise Refusal("usage", "--image goes ahead of a --prompt, and there is none", found=[*pictures], fix=fix)
    parts = [{"type": "image", "path": str(Path(file).expanduser().absolute())} for file in pictures]
    named = {"images": [*pictures]} if pictures else {}
    return [
        PromptRow(
            f"--prompt {i}",
            {"prompt": text, **named},
            [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}] if parts else text,
        )
        for i, text in enumerate(prompts, 1)
    ]


def _rows_of(path: str | None, subject: Subject, keys: list[str], asking: Asking) -> list[PromptRow]:
    """The prompts of a file, read as in the subject's training but for ``keys``."""
    keys = keys if asking.columns is None else [*keys, f"data.columns={asking.columns}"]
    if path is not None:
        trained = subject.recipe.data if subject.recipe is not None else DataOptions()
        named = any(word in key.partition("=")[0] for key in keys for word in ("columns", "row_template"))
        return read_prompts(path, data_options(keys, trained, of=READ), named)
    if keys:
        raise Refusal("usage", "these words say how rows are read, and there are none", found=keys, fix="--input FILE")
    return []


def tell_empty(asked: Sequence[PromptRow]) -> None:
    """Say which prompts ask nothing, as what is answered to them comes of the model alone."""
    empty = [one.origin for one in asked if asks_nothing(one.prompt)]
    if empty:
        places = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        which = f"{len(empty)} of {len(asked)} prompts are empty ({places})"
        which = "the prompt is empty" if len(asked) == 1 else which
        tell(f"note: {which}: what is answered comes from the model's own beginning, not from a question")


LINES = (".jsonl", ".ndjson")
READ = ("columns", "roles", "row_template", "image_folder", "fetch_pictures")
"""Keys of the data section that say how prompts are read."""
AskedRow = tuple[PromptRow, EncodedPrompt]
Talks = Sequence[tuple[PromptRow, list[Generation]]]


def _encoded(
    opened: Opened, asked: Sequence[PromptRow], asking: Asking, readers: tuple[PictureReader, ...]
) -> list[AskedRow]:
    """Every prompt as token ids, in the template and with the system message that it is asked in."""
    rows: list[AskedRow] = []
    faults: list[str] = []
    seeing = Seeing(opened.rules, waivers=Waivers(opened.allow), readers=readers)
    for one in asked:
        prompt = one.prompt if asking.system is None else with_system(one.prompt, asking.system, opened.template)
        how = (opened.template, opened.template_date, asking.prefill)
        try:
            rows.append((one, encode_prompt(opened.tokenizer, prompt, *how, tools=one.tools, seeing=seeing)))
        except Refusal as refusal:
            if refusal.id != "picture-unusable":
                raise
            faults += [f"{one.origin}: {fault}" for fault in refusal.found]
    if faults:
        fix = "correct the paths, or save the pictures as PNG or JPEG"
        raise Refusal("picture-unusable", "pictures of these prompts cannot be used", found=faults, fix=fix)
    return rows


def _fitting(opened: Opened, rows: list[AskedRow], asking: Asking, options: GenerationOptions) -> list[AskedRow]:
    """The prompts that are answered, and what became of the others. Refusal ``input-empty`` where none is left."""
    context = opened.model.config.context
    if asking.on_long == "skip":
        kept = [row for row in rows if not too_long(row[1], context)]
        if len(kept) < len(rows):
            tell(f"skipped: {len(rows) - len(kept)} of {len(rows)} prompts do not fit {context} tokens")
        if not kept:
            raise Refusal("input-empty", "no prompt is left: none fits the model's context", fix="--on-long cut")
        return kept
    if asking.on_long == "cut":
        room = max(1, context - options.max_new_tokens)
        cut = [row for row in rows if len(row[1].tokens) > room and not row[1].pictures]
        if whole := sum(len(ids.tokens) > room and bool(ids.pictures) for _, ids in rows):
            tell(f"not cut: {whole} of {len(rows)} prompts, which have pictures")
        if cut:
            tell(f"cut: {len(cut)} of {len(rows)} prompts to their last {room} tokens, BOS kept")
        return [(one, _cut(ids, room, opened.tokenizer.bos_id)) for one, ids in rows]
    return rows


def _cut(prompt: EncodedPrompt, room: int, bos: int | None) -> EncodedPrompt:
    if len(prompt.tokens) <= room or prompt.pictures:
        return prompt
    head = prompt.tokens[:1] if prompt.tokens[:1] == (bos,) else ()
    return replace(prompt, tokens=(*head, *prompt.tokens[len(prompt.tokens) - room + len(head) :]))


def _print_as_it_comes(opened: Opened, prompt: EncodedPrompt, options: GenerationOptions, adapter: Any) -> None:
    cut = ""
    for piece in stream(opened.model, opened.tokenizer, [prompt], adapter, **options.keywords()):
        sys.stdout.write(piece.text)
        sys.stdout.flush()
        cut = "" if piece.result is None else piece.result.cut_off
    print()
    if cut:
        tell(f"(cut off: {cut})")


def _answers(
    opened: Opened, prompts: Sequence[EncodedPrompt], asking: Asking, options: GenerationOptions, adapter: Any
) -> list[Generation]:
    """The answers in their order, those that failed among them; what makes all of them fail is raised."""
    results: dict[int, Generation] = {}
    with CountLine("answers", len(prompts) * asking.n) as counter, suppress(AnswersFailed):
        for piece in stream(opened.model, opened.tokenizer, prompts, adapter, n=asking.n, **options.keywords()):
            if piece.result is not None:
                results[piece.row] = piece.result
                counter.done(len(results))
    return [results[row] for row in range(len(results))]


def _later_turns(
    opened: Opened, talks: Talks, asking: Asking, options: GenerationOptions, readers: tuple[PictureReader, ...]
) -> None:
    """Ask what comes after the first answers, turn by turn, each talk with its own answers in it."""
    for turn in range(max((len(one.later) for one, _ in talks), default=0)):
        going = [
            (one, said) for one, said in talks if len(one.later) > turn and len(said) == turn + 1 and not said[-1].error
        ]
        put = []
        for one, said in going:
            whole = list(one.prompt) if isinstance(one.prompt, list) else []
            for answer, words in zip(said, one.later):
                whole += [{"role": "assistant", "content": asking.prefill + answer.text}]
                whole += [{"role": "user", "content": words}]
            put.append(replace(one, prompt=whole))
        once = replace(asking, n=1)
        rows = _fitting(opened, _encoded(opened, put, once, readers), once, options)
        kept = {id(one) for one, _ in rows}  # a talk whose next turn does not fit ends here
        adapter = None if asking.base else opened.adapter
        heard = iter(_answers(opened, [ids for _, ids in rows], once, options, adapter))
        for (_, said), one in zip(going, put, strict=True):
            if id(one) in kept:
                said.append(next(heard))


def _record(opened: Opened, one: PromptRow, said: Sequence[Generation]) -> dict[str, Any]:
    """The row with its answer; of several turns ``answers`` in their order, the last one also as ``answer``, whose
    log-probabilities are told where they were asked for."""
    several = {"answers": [answer.text for answer in said]} if one.later else {}
    last, tokens = said[-1], sum(len(answer.tokens) for answer in said)
    told = {"logprobs": last.logprobs, "prompt_logprobs": last.prompt_logprobs}
    likely = {name: [_likely(opened, token) for token in each] for name, each in told.items() if each is not None}
    failed = {"error": last.error} if last.error else {}
    outcome = {"answer": last.text, "finish_reason": last.finish_reason, "tokens": tokens}
    return {**one.row, **several, **outcome, **failed, **likely}


def _likely(opened: Opened, told: TokenLogprob | None) -> dict[str, Any] | None:
    """A token with its log-probability, and the likeliest in its place; None of the prompt's first."""
    if told is None:
        return None
    vocabulary = opened.tokenizer
    each = [  # a model may have more ids than its tokenizer
        {"id": id, "token": vocabulary.token(id) if id < vocabulary.vocab_size else None, "logprob": logprob}
        for id, logprob in ((told.token, told.logprob), *told.top)
    ]
    return {**each[0], **({"top": each[1:]} if told.top else {})}
