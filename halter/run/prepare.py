"""Everything that is known before the base is loaded: configuration, tokenizer, rows with labels, the plan of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np

from halter.adapters.sight import rules_of_methods
from halter.data.load import Loaded, RowSight, load_examples
from halter.data.options import DataOptions, Source
from halter.data.order import Plan, epoch_groups, epoch_rows, plan_epoch
from halter.data.sources import local_files
from halter.errors import HalterError, Refusal
from halter.files import yaml12
from halter.files.reading import read_json
from halter.files.runs import RunFolder
from halter.model.config import ModelConfig
from halter.model.pictures import PictureRules
from halter.pretrained.load import load_config, located
from halter.recipe import MethodChoice, Recipe
from halter.recipe.sections import BLANK_DATA, BLANK_MODEL
from halter.run.findings import Findings
from halter.telling import Say
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer
from halter.training import memory, objective
from halter.training.defaults import Default, at_width
from halter.training.loop import total_steps

SMALL_BYTES = 4 << 20
"""Data that is read although something else keeps the run from starting already."""


@dataclass(frozen=True)
class Job:
    """A recipe with everything that is known before the base is loaded."""

    recipe: Recipe
    """With every default in its place."""
    folder: Path
    """The base's, on this machine."""
    config: ModelConfig
    """The base's shape."""
    tokenizer: Tokenizer
    """The base's."""
    template: ChatTemplate | None
    """What writes turns around rows; None: they are plain text."""
    data: Loaded
    """Rows to train on and to hold out, as tokens with labels, and what became of the rest."""
    plan: Callable[[int], Plan]
    """An epoch, counted from 0, to its steps: rows of every micro-batch."""
    steps: int
    """Of the whole run."""
    micro_tokens: int
    """Tokens of a micro-batch at most, unless one row has more."""
    waived: Sequence[dict[str, str]] = ()
    """Refusals that the recipe waived, {id, text} each, for halter.json and the run folder."""

    @property
    def rules(self) -> PictureRules | None:
        """How the rows take pictures; None: nobody sees them."""
        return rules_of_methods(self.config, [choice.options for choice in self.recipe.methods])

    def largest_pass(self) -> int:
        """Tokens of the largest pass of the first epoch."""
        lengths = self.data.train.lengths
        return max((int(lengths[list(micro)].sum()) for step in self.plan(0) for micro in step), default=0)


def prepare(recipe: Recipe, say: Say = lambda _: None) -> Job:
    """Everything before the base is loaded: configuration, tokenizer, rows with labels, the plan of steps. Of a hub
    id no weights are fetched. The first problem is raised; run.preflight finds all of them, and more."""
    job = collect(recipe, say, Findings(strict=True))
    assert job is not None
    return job


@dataclass(frozen=True)
class Base:
    """What the base's folder says without its weights."""

    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer


def read_base(recipe: Recipe) -> Base:
    """Configuration and tokenizer. Refusals as files.hub.resolve's, ModelConfig's and the tokenizer's."""
    options = recipe.model
    if options.path == BLANK_MODEL:
        raise Refusal("blank", f"model.path is still {BLANK_MODEL}", fix="give a folder or a hub id: --model DIR")
    folder = located(options.path, options.revision, weights=False)
    if not (folder / "config.json").is_file():  # Meta's layout says its shape in its weights
        folder = located(options.path, options.revision)
    config = load_config(folder)
    return Base(folder, config, Tokenizer.from_folder(folder, config.to_hf()))


def collect(recipe: Recipe, say: Say, findings: Findings, base: Base | None = None) -> Job | None:
    """``prepare`` that goes on past every problem as far as it can; None where there is no base or are no rows."""
    base = base or findings.attempt(read_base, recipe)
    if base is None:
        findings.take(data_missing(recipe.data))
        return None
    config, tokenizer = base.config, base.tokenizer
    template = findings.attempt(choose_template, recipe, tokenizer)
    fitted = [findings.attempt(fit, choice, base) or choice for choice in recipe.methods]
    recipe = replace(recipe, methods=tuple(fitted))
    recipe = _dated(_at_width(recipe, config.dim), template)
    if recipe.data.max_length > config.context:  # positions beyond it were never trained
        if recipe.data.max_length != DataOptions().max_length:
            say(f"note: this base knows {config.context} positions, so data.max_length is {config.context}")
        recipe = replace(recipe, data=replace(recipe.data, max_length=config.context))
    if findings.problems and not _small(recipe.data):  # hours of tokens for a run that cannot start
        findings.take(data_missing(recipe.data))
        return None
    if not findings.problems:
        say("reading and tokenising the data ...")
    if template is None and recipe.data.template is not None:  # a problem already; the rows are looked at all the same
        fallback = tokenizer.chat_template or ChatTemplate.builtin("alpaca")
        data = load_rows(recipe, base, fallback, findings)
    else:
        data = load_rows(recipe, base, template, findings)
    if data is None:
        return None
    options = recipe.train
    micro = options.micro_tokens or memory.micro_tokens(config)
    if not recipe.data.packing:
        micro = min(micro, int(data.train.lengths.max()))
    plan = plan_of(recipe, data, micro)
    steps = total_steps(plan, options.num_train_epochs or 1.0, options.max_steps)
    return Job(recipe, base.folder, config, tokenizer, template, data, plan, steps, micro)


def with_passes(job: Job, micro: int, why: str) -> Job:
    """The same job in passes of at most ``micro`` tokens, as if the recipe had said so."""
    train = replace(job.recipe.train, micro_tokens=micro)
    defaults = {**job.recipe.defaults, "train.micro_tokens": Default(micro, why)}
    recipe = replace(job.recipe, train=train, defaults=defaults)
    return replace(job, recipe=recipe, micro_tokens=micro, plan=plan_of(recipe, job.data, micro))


def fit(choice: MethodChoice, base: Base) -> MethodChoice:
    """A method with its tokens' names as ids, checked against the base. Refusals as the method's own."""
    options = choice.options.named(base.tokenizer).equipped()
    options.check_new(base.config)
    return replace(choice, options=options)


def plan_of(recipe: Recipe, data: Loaded, micro: int) -> Callable[[int], Plan]:
    """{epoch: its steps}, passes of at most ``micro`` tokens; a pure function of the recipe's seed and the lengths.

    Where the objective learns from groups, the rows of one document are one: steps and passes are then counted in
    groups wherever the recipe counts them in rows.
    """
    options = recipe.train
    grouped = objective.make(options.objective).grouped

    @lru_cache(maxsize=4)
    def plan(epoch: int) -> Plan:
        starts = None
        if grouped:
            rows, starts = epoch_groups(data.train.documents, data.train.weights, options.seed, epoch)
        else:
            rows = epoch_rows(data.train.weights, options.seed, epoch)
        lengths, targets = data.train.lengths[rows], data.train.targets[rows]
        if starts is not None and len(rows):  # a group of which a row teaches nothing is left out whole
            lengths, targets = np.add.reduceat(lengths, starts[:-1]), np.minimum.reduceat(targets, starts[:-1])
        planned = plan_epoch(
            lengths,
            targets,
            seed=options.seed,
            epoch=epoch,
            rows_per_step=options.rows_per_step,
            tokens_per_step=None if options.rows_per_step else options.tokens_per_step,
            micro_rows=options.per_device_train_batch_size if options.gradient_accumulation_steps else None,
            micro_tokens=micro,
        )
        return planned.numbered(rows, starts)

    return plan


def data_missing(options: DataOptions) -> list[Refusal]:
    """The refusals of every source that is not there; nothing is read."""
    findings = Findings()
    for source in options.sources if options.train is not None else ():
        findings.attempt(_files, source.parts[0])
    if isinstance(options.validation, str):
        findings.attempt(_files, Source(options.validation).parts[0])
    return findings.problems


def _files(path: str) -> None:
    """Refusal ``blank`` of the name that ``halter init`` writes where only the user knows, and those of local_files."""
    if path == BLANK_DATA and not Path(path).exists():
        raise Refusal("blank", f"data.train is still {BLANK_DATA}", fix="give your own file of rows: --data my.jsonl")
    local_files(path)


def load_rows(recipe: Recipe, base: Base, template: ChatTemplate | None, findings: Findings) -> Loaded | None:
    """The rows, and where some cannot be used or found, those that can."""
    options, seed, tokenizer, context = recipe.data, recipe.train.seed, base.tokenizer, base.config.context
    sight = RowSight(rules_of_methods(base.config, [choice.options for choice in recipe.methods]), findings.waivers)
    lost = data_missing(options)
    findings.take(lost)
    if not findings.strict:
        there = tuple(s for s in options.sources if not _lost(s.parts[0])) if options.train is not None else ()
        if not there:
            return None
        held = options.validation
        held = None if isinstance(held, str) and _lost(Source(held).parts[0]) else held
        options = replace(options, train=there, validation=held) if lost else options
    try:
        return load_examples(options, tokenizer, template, seed, context=context, sight=sight)
    except Refusal as refusal:
        findings.add(refusal)
        if refusal.id not in ("bad-rows", "long-rows"):
            return None
    long = "drop" if options.on_long == "stop" else options.on_long
    with suppress(Refusal):  # what follows from the first
        options = replace(options, on_bad="skip", on_long=long)
        return load_examples(options, tokenizer, template, seed, context=context, sight=sight)
    return None


def _small(options: DataOptions) -> bool:
    """Whether the data is read in a blink, so that what is wrong with it can be told with everything else."""
    sources = [*(options.sources if options.train is not None else ())]
    sources += [Source(options.validation)] if isinstance(options.validation, str) else []
    size = 0
    for path in (source.parts[0] for source in sources):
        if not _lost(path):
            files = local_files(path)
            if files is None:  # of a hub
                return False
            size += sum(file.stat().st_size for file in files)
    return size <= SMALL_BYTES


def _lost(path: str) -> bool:
    try:
        local_files(path)
    except Refusal:
        return True
    return False


def _dated(recipe: Recipe, template: ChatTemplate | None) -> Recipe:
    """A template that asks what day it is gets today's date, or the one that this run folder began with, as if it had
    been given: training, resuming and use must agree."""
    key = "data.template_date"
    if template is None or recipe.data.template_date is not None or not template.asks_date:
        return recipe
    today, source = date.today().isoformat(), "the day of this run; the template asks for a date"
    for choice in recipe.methods:
        if choice.init_from is not None and (told := _told_date(Path(choice.init_from))) is not None:
            today, source = told, f"the adapter that {choice.name} starts from"
    if recipe.output_dir is not None and (run := RunFolder(recipe.output_dir)).begun:
        with suppress(HalterError, KeyError, TypeError):
            began = yaml12.read(run.recipe).data["data"]["template_date"]
            today, source = (began, "this run folder's recipe") if isinstance(began, str) else (today, source)
    data = replace(recipe.data, template_date=today)
    return replace(recipe, data=data, defaults={**recipe.defaults, key: Default(today, source)})


def _told_date(folder: Path) -> str | None:
    """The date that an adapter's template was told in its training."""
    with suppress(HalterError, OSError, AttributeError):
        told = read_json(folder / "halter.json").get("template_date")
        return told if isinstance(told, str) else None
    return None


def _at_width(recipe: Recipe, dim: int) -> Recipe:
    """A learning rate that nobody chose fits the model's width."""
    key = "train.learning_rate"
    if key not in recipe.defaults:
        return recipe
    rate = at_width(recipe.defaults[key], dim)
    train = replace(recipe.train, learning_rate=rate.value)
    return replace(recipe, train=train, defaults={**recipe.defaults, key: rate})


def choose_template(recipe: Recipe, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The recipe's template, else the checkpoint's own. Refusal ``template-unknown``."""
    name = recipe.data.template
    if name is None:
        return tokenizer.chat_template
    return ChatTemplate.named(name)
