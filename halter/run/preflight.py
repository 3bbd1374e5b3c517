"""All checks of a run before its base is loaded, and every problem that they find, in one go.

What costs least comes first: the recipe, the machine, the place for the result; then configuration, tokenizer and
rows; then, of a hub id, the weights are fetched, unless something is wrong already, and a few rows of them looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from halter.adapters import folder_files, loading, warm
from halter.adapters.adapter import Adapter, refuse_trained_layers
from halter.errors import WAIVABLE, Refusal, Waivers, together
from halter.files.checkpoint import ModelFolder, dtype_of, open_checkpoint
from halter.files.hub import resolve
from halter.files.nearby import kind_of
from halter.files.runs import RunFolder
from halter.model.decoder import Decoder
from halter.planning.dry import dry_adapter
from halter.pretrained.bnb import storing
from halter.pretrained.device import choose_device, streams
from halter.pretrained.digest import BaseIdentity
from halter.recipe import MethodChoice, Recipe, load_tolerant
from halter.run import beside, checks_data, checks_machine, checks_shapes, estimate, same_data
from halter.run.cautions import rate_problem
from halter.run.findings import Findings
from halter.run.held import computed_in
from halter.run.output import as_begun, open_run, refuse_unusable
from halter.run.prepare import Base, Job, collect, data_missing, fit, read_base, with_passes
from halter.run.seen_rows import most_pictures
from halter.telling import Say
from halter.text.chat.conversations import ChatTemplate

RecipeSource = str | Path | Mapping[str, Any] | Recipe | None


@dataclass(frozen=True)
class Examination:
    """What came of it: ``problems`` that keep the run from starting, those that were ``waived`` as {id, text}, and the
    job, None where a problem left nothing to look at."""

    recipe: Recipe
    job: Job | None
    problems: tuple[Refusal, ...]
    waived: tuple[dict[str, str], ...]
    looked: tuple[str, ...] = ()
    """Everything that was looked at, in words."""


def ready(
    source: RecipeSource, overrides: Sequence[str] = (), *, resume: bool = False, say: Say = lambda _: None
) -> Job:
    """The job, everything about it checked. Raises what is wrong, several things as one Refusal ``preflight``."""
    found = examine(source, overrides, resume=resume, say=say)
    if found.problems:
        whole = together(found.problems)
        whole.folder = Path(found.recipe.output_dir) if found.recipe.output_dir else None
        raise whole
    for waived in found.waived:
        say(f"waived, {waived['id']}: {waived['text']}")
    assert found.job is not None  # or there was a problem
    return found.job


def examine(
    source: RecipeSource,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    say: Say = lambda _: None,
    planned: bool = False,
) -> Examination:
    """Every check there is. Refusals of a recipe that cannot be read at all (``yaml``, ``file-missing``) are raised.

    ``planned``: the plan of a step is made and told even where a bound says that there is room in plenty.
    """
    recipe, refusal = load_tolerant(source, overrides)
    recipe = as_begun(recipe) if resume else recipe
    recipe = _with_adapters_of_runs(recipe)
    for note in recipe.notes:
        say(f"note: {note}")
    findings = Findings(Waivers(id for id in recipe.checks.allow if id in WAIVABLE))
    if refusal is not None:
        findings.add(refusal)
    findings.attempt(Waivers, recipe.checks.allow)
    findings.attempt(checks_machine.repeatable_workspace, recipe)
    findings.take(checks_machine.machine(recipe))
    files = [(f"method.init_from ({choice.name})", choice.init_from) for choice in recipe.methods]
    findings.take(checks_machine.missing_files(files))
    unusable = list(checks_machine.writable(recipe.output_dir or "runs"))
    findings.take(unusable)
    findings.looked += ["recipe", "this machine", "output folder"]
    if recipe.output_dir is not None and not unusable:  # before hours of tokens
        findings.attempt(refuse_unusable, RunFolder(recipe.output_dir), resume)
        if resume and findings.attempt(_whole_checkpoint, RunFolder(recipe.output_dir)) is None:
            return Examination(recipe, None, tuple(findings.problems), tuple(findings.waivers.facts()), ("checkpoint",))
    job = _looked_at(recipe, findings, say, planned)
    if not unusable:
        findings.attempt(open_run, recipe if job is None else job.recipe, resume, None if job is None else job.steps)
    if resume and job is not None:
        findings.take(same_data.changes(job, say))
    waived = tuple(findings.waivers.facts())
    job = None if job is None else replace(job, waived=waived)
    recipe = recipe if job is None else job.recipe
    problems = tuple(beside.told(problem, source) for problem in findings.problems)
    return Examination(recipe, job, problems, waived, tuple(findings.looked))


def _whole_checkpoint(run: RunFolder) -> bool:
    """Refusal ``damaged-checkpoint``, before rows and base are read for a run that cannot go on from it."""
    run.refuse_incomplete()
    return True


def _with_adapters_of_runs(recipe: Recipe) -> Recipe:
    """A finished run stands for its adapter, also where training starts from one."""
    return replace(recipe, methods=tuple(replace(choice, init_from=_adapter_of(choice)) for choice in recipe.methods))


def _adapter_of(choice: MethodChoice) -> str | None:
    place = Path(choice.init_from or "").expanduser()
    inner = place / "adapter"
    run = choice.init_from and kind_of(place) != "adapter" and kind_of(inner) == "adapter"
    return str(inner) if run else choice.init_from


def _looked_at(recipe: Recipe, findings: Findings, say: Say, planned: bool) -> Job | None:
    """The job, after every check that needs the base's folder."""
    base = findings.attempt(read_base, recipe) if recipe.model.path else None
    if base is None:
        named = Path(recipe.model.path).expanduser()
        if recipe.model.path and named.is_dir() and kind_of(named) == "model":  # what else is wrong with it
            findings.attempt(open_checkpoint, named)
        findings.take(data_missing(recipe.data))
        if recipe.data.template is not None:
            findings.attempt(ChatTemplate.named, recipe.data.template)
        return None
    findings.take(rate_problem(recipe, base.config.dim))
    job = collect(recipe, say, findings, base)
    adapter = _planned(recipe, base, findings)
    found = None
    if job is not None:
        found = checks_data.scan(job.data.train, job.tokenizer, job.config.table_rows)
        findings.take(checks_data.rows(found, job.tokenizer, job.config))
        findings.looked += ["tokenizer", f"data ({job.data.report.kept:,} rows)", "template"]
    if findings.problems and not Path(recipe.model.path).expanduser().is_dir():
        return job  # nothing large is fetched for a run that cannot start
    folder = findings.attempt(resolve, recipe.model.path, recipe.model.revision)
    checkpoint = None if folder is None else findings.attempt(open_checkpoint, folder)
    if checkpoint is None or folder is None:
        return job
    findings.take(checks_shapes.shapes(checkpoint, base.config))
    numbers = "names, shapes and numbers" if checks_shapes.looks_at_values(checkpoint) else "names and shapes"
    findings.looked.append(f"{numbers} of the base's {len(checkpoint.names())} tensors")
    job = _check_sizes(recipe, base, checkpoint, adapter, job, findings, say, planned)
    others = _earlier(recipe, base, checkpoint, findings)
    if adapter is not None and len(adapter.methods) == len(recipe.methods):
        findings.attempt(_way_over, recipe, base, adapter)
    if job is not None and found is not None:
        job = replace(job, folder=folder)
        if job.recipe.data.template is not None and job.tokenizer.chat_template is not None:
            others["the checkpoint's own"] = job.tokenizer.chat_template
        date, asked = job.recipe.data.template_date, job.recipe.data.template
        if job.template is not None or asked is None:  # one that could not be read is told already
            findings.take(checks_data.templates(job.template, others, job.tokenizer, date))
        if job.template is not None:
            needed = checks_data.needed_tokens(found, job.tokenizer, job.config)
            findings.take(checks_data.untrained_tokens(checkpoint, job.config, job.tokenizer, needed, found, adapter))
    checkpoint.close()
    return job


def _planned(recipe: Recipe, base: Base, findings: Findings) -> Adapter | None:
    """The adapter of those methods whose options are good."""
    good = []
    for choice in recipe.methods:
        try:
            good.append(fit(choice, base).options)
        except Refusal:  # said already
            continue
    return findings.attempt(dry_adapter, base.config, good) if good else None


def _width(recipe: Recipe, checkpoint: ModelFolder, base: Base) -> int:
    """Bytes of a number that the base is held in."""
    said = any(checkpoint.config.get(key) for key in ("torch_dtype", "dtype"))
    stored = getattr(torch, base.config.dtype, torch.float32) if said else dtype_of(checkpoint)
    return computed_in(recipe, base.config, _device(recipe), stored=stored).itemsize


def _device(recipe: Recipe) -> torch.device:
    try:
        return choose_device(recipe.model.device)
    except Refusal:  # said already
        return torch.device("cpu")


def _check_sizes(
    recipe: Recipe,
    base: Base,
    checkpoint: ModelFolder,
    adapter: Adapter | None,
    job: Job | None,
    findings: Findings,
    say: Say,
    planned: bool,
) -> Job | None:
    """Memory and disk; the job, with smaller passes where its own do not fit."""
    held = findings.attempt(storing, checkpoint, recipe.model.quantize)
    device = _device(recipe)
    apart = streams(recipe.model.offload, device, lambda _: None)
    if recipe.model.offload == "layers" and adapter is not None:
        findings.attempt(refuse_trained_layers, adapter)
    longest = (2048, ()) if job is None else (job.data.report.longest, most_pictures(job))
    need = estimate.sizes(recipe, base.config, adapter, _width(recipe, checkpoint, base), held, apart, longest)
    kept, best = (
        recipe.train.save_total_limit,
        recipe.data.validation is not None and recipe.train.load_best_model_at_end,
    )
    findings.take(checks_machine.disk_space(recipe.output_dir or "runs", need.checkpoint, kept, best))
    row = ("a row", 1)
    if job is not None:
        row = (job.data.report.longest_origin, job.data.report.longest)
    findings.take(estimate.memory_problem(need, device, row))
    findings.looked.append("disk")
    job = None if job is None else _in_passes_that_fit(job, need, device, findings, say)
    if job is not None and planned and not findings.problems:
        findings.looked.append(estimate.in_words(need, device, row[1], job.largest_pass()))
    return job


def _in_passes_that_fit(job: Job, need: estimate.Sizes, device: torch.device, findings: Findings, say: Say) -> Job:
    """The job, in smaller passes where its own do not fit and nobody chose them."""
    smaller = estimate.smaller_pass(need, device, job.data.report.longest, job.largest_pass())
    if smaller is None:
        return job
    most, what = smaller
    if job.recipe.train.micro_tokens is not None and device.type == "cpu":
        findings.add(Refusal("row-memory", what, fix=f"--micro-tokens {most}; the step stays the same", waivable=True))
        return job
    say(f"note: {what}; train.micro_tokens is {most}, the step stays the same")
    return with_passes(job, most, "what fits into the memory that was free when the run began")


def _earlier(recipe: Recipe, base: Base, checkpoint: ModelFolder, findings: Findings) -> dict[str, ChatTemplate | None]:
    """{whose: template} of the adapters that training starts from, after every check of them against the base."""
    templates: dict[str, ChatTemplate | None] = {}
    for choice in recipe.methods:
        if choice.init_from is not None and Path(choice.init_from).expanduser().exists():
            model = Decoder(base.config, torch.float32, device="meta")
            model.identity = BaseIdentity.of(checkpoint)
            facts = findings.attempt(_adapter_facts, choice, model, base, findings)
            kept = (facts or {}).get("template")
            if facts and "template" in facts and (kept is None or isinstance(facts.get("template_source"), str)):
                name = "given" if kept is None else str(kept.get("name"))
                whose = f"the adapter {choice.init_from}"
                templates[whose] = None if kept is None else _kept_template(facts["template_source"], name)
    return templates


def _way_over(recipe: Recipe, base: Base, adapter: Adapter) -> None:
    """Refusal ``init-from-differs``; whatever else is wrong with the folders is told already."""
    model = Decoder(base.config, torch.float32, device="meta")
    folders = {n: choice.init_from for n, choice in enumerate(recipe.methods) if choice.init_from is not None}
    try:
        paths = {name: Path(name).expanduser() for name in set(folders.values())}
        read = {name: loading.load_adapter(path, model, say=_unsaid) for name, path in paths.items()}
    except (Refusal, NotImplementedError, RuntimeError):
        return
    warm.match(adapter, {n: (name, read[name]) for n, name in folders.items()})


def _unsaid(text: str) -> None:
    """What reading an adapter has to say is said where it is read for good."""


def _kept_template(source: str, name: str) -> ChatTemplate:
    return ChatTemplate.from_source(source, name)


def _adapter_facts(choice: MethodChoice, model: Decoder, base: Base, findings: Findings) -> dict[str, Any]:
    """halter.json of an adapter that fits the model, which is on meta. Refusals as methods.loading.load_adapter's, and
    ``tokenizer-differs``."""
    folder = Path(str(choice.init_from)).expanduser()
    facts = folder_files.checked_facts(folder)
    try:
        loading.load_adapter(folder, model, say=_unsaid)
    except Refusal as refusal:
        findings.add(refusal)
    except (
        NotImplementedError,
        RuntimeError,
    ):  # vocabulary matrices beside the adapter, compared when the base is there
        pass
    trained_on = facts.get("tokenizer")
    digest = trained_on.get("digest") if isinstance(trained_on, dict) else None
    if digest not in (None, base.tokenizer.digest):
        findings.add(
            Refusal(
                "tokenizer-differs",
                "init_from names an adapter that was trained with another tokenizer",
                where=str(folder),
                found=[f"its SHA-256 is {str(digest)[:16]}..., this one's {base.tokenizer.digest[:16]}..."],
                fix="give the base that it was trained on",
                waivable=True,
            )
        )
    return facts
