"""What all runs of a comparison have in common: base, tokenizer, encoded rows, budget; and the job of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from halter import recipe as recipes
from halter.adapters.sight import rules_of_methods, sight_of
from halter.comparison.options import CompareOptions
from halter.comparison.splits import Splits, split
from halter.data.example import Example
from halter.data.load import Loaded, RowSight, load_examples
from halter.errors import HalterError, Waivers
from halter.files.folders import discard
from halter.model.decoder import Decoder
from halter.model.pictures import PictureRules
from halter.model.storages import STORAGES
from halter.pretrained.digest import digest_base
from halter.run.held import load_base
from halter.run.prepare import Job, plan_of, prepare
from halter.telling import Say
from halter.training.defaults import at_width
from halter.training.loop import total_steps

MOST_STEP_TOKENS, STEPS = 8192, 60
"""A step's tokens where the recipe does not say: so many steps in the budget, but no larger ones than this."""
PASSES, MOST_TOKENS = 3, 300_000
"""Of a run, where the options do not say: passes over the rows, but no more tokens than this."""
_STEP = ("tokens_per_step", "per_device_train_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True)
class ComparedMethod:
    """One row of the comparison before it is run: a name, the recipe's method section, and how the base is held."""

    name: str
    method: Any
    precision: str


def held_as(precision: str) -> dict[str, Any]:
    """Keys of the model section for a row's precision: auto, a storage of model.quantize, or a dtype."""
    if precision in STORAGES:
        return {"quantize": precision}
    return {"quantize": None} if precision == "auto" else {"quantize": None, "dtype": precision}


@dataclass(frozen=True)
class Setup:
    """See the module. ``job`` is that of one contestant, who sees with the most tokens where any sees; its rows, with
    as many tokens as each needs for its pictures, and its tokenizer serve all."""

    options: CompareOptions
    folder: Path
    source: Mapping[str, Any]
    splits: Splits
    job: Job
    test: Sequence[Example]
    general: Sequence[Example]
    tokens: int
    step: Mapping[str, Any]
    """What makes a step, as keys of the train section; the same for all."""

    @cached_property
    def base_digest(self) -> str:
        return digest_base(self.job.folder).digest

    def data_section(self) -> dict[str, Any]:
        """The data section that every run has."""
        kept = {k: v for k, v in recipes.as_data(self.job.recipe)["data"].items() if k not in ("limit", "train")}
        named = {part: str(self.splits.files[part]) for part in ("train", "validation")}
        return {**kept, **named}

    def job_for(self, entry: ComparedMethod, rate: float | None, seed: int, tokens: int, beside: int = 1) -> Job:
        """The job of one run; ``rate`` None: the source's or the method's default. ``beside``: runs in each pass."""
        train = {**self.source.get("train", {}), **self.step, "seed": seed}
        train = {k: v for k, v in train.items() if k not in ("num_train_epochs", "max_steps")}
        if rate is not None:
            train["learning_rate"] = rate
        held = held_as(entry.precision)
        train = {k: v for k, v in train.items() if not ("dtype" in held and k == "precision")}  # the row's own counts
        model = {**recipes.as_data(self.job.recipe)["model"], **held}
        sections = {"model": model, "method": entry.method, "data": self.data_section(), "train": train}
        recipe = recipes.load({**sections, "checks": self.source.get("checks") or {}})
        if rate is None and "train.learning_rate" in recipe.defaults:  # else the source gives it, for all
            fitted = at_width(recipe.defaults["train.learning_rate"], self.job.config.dim).value
            recipe = replace(recipe, train=replace(recipe.train, learning_rate=fitted))
        methods = tuple(replace(choice, options=choice.options.equipped()) for choice in recipe.methods)
        recipe = replace(recipe, methods=methods)
        data = self._data(rules_of_methods(self.job.config, [choice.options for choice in methods]))
        micro = max(self.job.micro_tokens // beside, int(data.train.lengths.max()))
        plan = plan_of(recipe, data, micro)
        whole = float(data.train.lengths[data.train.targets > 0].sum())
        steps = max(1, round(tokens / (whole / max(1, len(plan(0))))))
        recipe = replace(recipe, train=replace(recipe.train, max_steps=steps, num_train_epochs=None))
        steps = total_steps(plan, 1.0, steps)
        return replace(self.job, recipe=recipe, data=data, plan=plan, steps=steps, micro_tokens=micro)

    def _data(self, rules: PictureRules | None) -> Loaded:
        """The rows for who sees by these rules; without their pictures where nobody does."""
        known: dict[str, Loaded] = self.__dict__.setdefault("_seen", {})
        name = repr(rules)
        if name not in known:
            data, same = self.job.data, name == repr(self.job.rules)
            both = {part: getattr(data, part).seen_by(rules) for part in ("train", "validation")}
            known[name] = data if same else replace(data, **both)
        return known[name]

    def load_base(self, precision: str) -> Decoder:
        """The base as the precision says."""
        recipe, held = self.job.recipe, held_as(precision)
        train = replace(recipe.train, precision="auto") if "dtype" in held else recipe.train
        recipe = replace(recipe, model=replace(recipe.model, **held), train=train)
        return load_base(replace(self.job, recipe=recipe))


def set_up(source: Mapping[str, Any], first: Any, options: CompareOptions, folder: Path, say: Say) -> Setup:
    """Read and encode everything once. ``source``: the recipe as a mapping, without `compare` and `method`; ``first``:
    a method section. Refusals as of the recipe, the data, the base's folder, and ``compare-data``; after one nothing is
    left of the data, so that the same folder is free for the next try."""
    fresh = not (folder / "data").exists()
    try:
        return _laid(source, first, options, folder, say)
    except HalterError:
        if fresh and (folder / "data").exists():
            discard(folder / "data")
        raise


def _laid(source: Mapping[str, Any], first: Any, options: CompareOptions, folder: Path, say: Say) -> Setup:
    recipe = recipes.load({**source, "method": first})
    splits = split(recipe.data, options, folder / "data", say)
    train, validation = (str(splits.files[part]) for part in ("train", "validation"))
    data = replace(recipe.data, train=train, validation=validation, limit=None)
    job = prepare(replace(recipe, data=data), say)

    def rows(part: str) -> Sequence[Example]:
        if part not in splits.files:
            return ()
        held = replace(job.recipe.data, train=str(splits.files[part]), validation=None)
        held = replace(held, on_long="drop" if held.on_long == "stop" else held.on_long)
        context, sight = job.config.context, RowSight(job.rules, Waivers(job.recipe.checks.allow))
        return load_examples(held, job.tokenizer, job.template, options.seed, context=context, sight=sight).train

    test, general = rows("test"), rows("general")
    if job.rules is not None or recipe.data.readers:
        shown = _shown(chain(job.data.train, job.data.validation, test, general), bool(recipe.data.readers))
        splits = replace(splits, digests={**splits.digests, "pictures": shown})
    whole = int(job.data.train.lengths.sum())
    tokens = options.tokens or min(PASSES * whole, MOST_TOKENS)
    given = {k: v for k, v in (source.get("train") or {}).items() if k in _STEP and v is not None}
    step = given or {"tokens_per_step": max(1, min(MOST_STEP_TOKENS, tokens // STEPS, whole))}
    source = {**source, "train": {k: v for k, v in (source.get("train") or {}).items() if k not in _STEP}}
    return Setup(options, folder, source, splits, job, test, general, tokens, step)


def most_seeing(source: Mapping[str, Any], entered: Sequence[ComparedMethod]) -> Any:
    """The method section of the contestant that has the most tokens for a picture; of the first where none sees."""

    def tokens(entry: ComparedMethod) -> int:
        recipe = recipes.load({**source, "method": entry.method})
        sight = sight_of([choice.options.equipped() for choice in recipe.methods])
        return -1 if sight is None else sight.tokens

    return max(entered, key=tokens).method


def _shown(rows: Iterable[Example], read: bool) -> str:
    """SHA-256, in hex, of all pictures in their order, and of what was ``read`` in them: a file may come to show
    another, and its row stays the same."""
    digest = sha256()
    for row in rows:
        if read:
            digest.update(len(row.tokens).to_bytes(8, "little") + row.tokens.tobytes())
        for picture in row.pictures:
            digest.update(picture.digest.encode())
    return digest.hexdigest()
