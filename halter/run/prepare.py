"""Everything that is known before the base is loaded: configuration, tokenizer, rows with labels, the plan of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from halter.data.load import Loaded, load_examples
from halter.data.order import Step, epoch_rows, plan_epoch
from halter.data.progress import spoken
from halter.errors import Refusal
from halter.files.chat import ChatTemplate
from halter.files.hub import resolve
from halter.files.reading import read_text
from halter.files.tokenizer import Tokenizer
from halter.model.config import ModelConfig
from halter.pretrained.load import load_config
from halter.recipe import Recipe
from halter.training import memory
from halter.training.defaults import at_width
from halter.training.loop import total_steps

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A recipe with everything that is known before the base is loaded."""

    recipe: Recipe
    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None
    data: Loaded
    plan: Callable[[int], Sequence[Step]]
    steps: int
    micro_tokens: int


def prepare(recipe: Recipe, say: Say = lambda _: None) -> Job:
    """Everything before the base is loaded: configuration, tokenizer, rows with labels, the plan of steps."""
    folder = resolve(recipe.model.path, recipe.model.revision)
    config = load_config(folder)
    tokenizer = Tokenizer.from_folder(folder, config.to_hf())
    template = _template(recipe, tokenizer)
    for choice in recipe.methods:
        choice.options.check(config)
    if recipe.train.early_stopping_patience is not None and recipe.data.validation is None:
        raise Refusal(
            "no-validation",
            "train.early_stopping_patience watches a held-out loss, and there are no rows for one",
            fix="give data.validation, a file or a share such as 0.1",
        )
    recipe = _at_width(recipe, config.dim)
    if recipe.data.max_length > config.context:  # positions beyond it were never trained
        recipe = replace(recipe, data=replace(recipe.data, max_length=config.context))
    say("reading and tokenising the data ...")
    data = load_examples(recipe.data, tokenizer, template, recipe.train.seed, spoken(say))
    options = recipe.train
    micro = options.micro_tokens or _micro_tokens(config)
    if not recipe.data.packing:
        micro = min(micro, int(data.train.lengths.max()))

    @lru_cache(maxsize=4)
    def plan(epoch: int) -> Sequence[Step]:
        rows = epoch_rows(data.train.weights, options.seed, epoch)
        planned = plan_epoch(
            data.train.lengths[rows],
            data.train.targets[rows],
            seed=options.seed,
            epoch=epoch,
            rows_per_step=options.rows_per_step,
            tokens_per_step=None if options.rows_per_step else options.tokens_per_step,
            micro_rows=options.per_device_train_batch_size if options.gradient_accumulation_steps else None,
            micro_tokens=micro,
        )
        return planned.numbered(rows)

    steps = total_steps(plan, options.num_train_epochs or 1.0, options.max_steps)
    return Job(recipe, folder, config, tokenizer, template, data, plan, steps, micro)


def _at_width(recipe: Recipe, dim: int) -> Recipe:
    """A learning rate that nobody chose fits the model's width."""
    key = "train.learning_rate"
    if key not in recipe.defaults:
        return recipe
    rate = at_width(recipe.defaults[key], dim)
    train = replace(recipe.train, learning_rate=rate.value)
    return replace(recipe, train=train, defaults={**recipe.defaults, key: rate})


def _template(recipe: Recipe, tokenizer: Tokenizer) -> ChatTemplate | None:
    name = recipe.data.template
    if name is None:
        return tokenizer.chat_template
    path = Path(name)
    if path.is_file():
        return ChatTemplate.from_source(read_text(path), name=path.name)
    return ChatTemplate.builtin(name)


def _micro_tokens(config: ModelConfig) -> int:
    """Tokens of one pass where the recipe does not say: enough for the matrix products, bounded by activations."""
    per_token = memory.activation_bytes(config, 1, 4)
    return max(512, min(8192, (2 * 2**30) // per_token))


def describe(job: Job, say: Say) -> None:
    """What is about to happen, with the defaults that were not chosen by the user and where they come from."""
    recipe, report = job.recipe, job.data.report
    say(f"base: {job.folder} ({job.config.num_parameters:,} parameters{', nf4' if recipe.model.quantize else ''})")
    say(f"data: {report} (rows of at most {recipe.data.max_length} tokens)")
    rows = recipe.train.rows_per_step
    share = f"{rows} rows" if rows else f"{recipe.train.tokens_per_step} tokens"
    say(f"plan: {job.steps} steps of {share}, at most {job.micro_tokens} tokens in one pass")
    for choice in recipe.methods:
        say(f"method: {choice.name} {choice.options}")
    for key, default in recipe.defaults.items():
        say(f"default: {key} = {default.value} ({default.source})")
