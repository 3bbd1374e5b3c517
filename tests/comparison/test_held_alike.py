"""What train, compare, its measurement of memory and plan hold the base in is alike, whatever a recipe says of it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from halter import recipe as recipes
from halter.adapters.adapter import adapt
from halter.comparison import probe, training_runs
from halter.comparison.runner import Runner
from halter.comparison.setup import ComparedMethod, set_up
from halter.errors import Refusal
from halter.model.decoder import Decoder
from halter.run import course, held, planned, session, settings
from halter.run.held import load_base
from halter.run.prepare import prepare
from halter.training import memory
from halter.training.callbacks import StopTraining
from halter.training.options import TrainOptions
from halter.training.terms import Terms, recomputes
from tests.comparison import small

DTYPES = ("auto", "float32", "bfloat16", "float16")
PRECISIONS = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SAID = [(d, p) for d in DTYPES for p in PRECISIONS if "auto" in (d, p) or PRECISIONS[p] == d]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe whose base is stored in this dtype."""
    made = small.source(tmp_path_factory.mktemp(request.param))
    config = Path(made["model"]["path"], "config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "torch_dtype": request.param}))
    return made


def asking(source: dict[str, Any], dtype: str, precision: str, quantize: str | None = None) -> dict[str, Any]:
    model = {**source["model"], "quantize": quantize, "dtype": dtype}
    return {**source, "model": model, "train": {**source["train"], "precision": precision}}


@pytest.mark.parametrize(("dtype", "precision"), [pair for pair in product(DTYPES, PRECISIONS) if pair not in SAID])
def test_a_recipe_that_names_two_is_refused(dtype: str, precision: str) -> None:
    said = {"model": {"path": "m", "dtype": dtype}, "data": {"train": "rows"}, "train": {"precision": precision}}
    with pytest.raises(Refusal, match=f"is {precision} and model.dtype is {dtype}.*: leave one of the two out"):
        recipes.load(said)


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize(("dtype", "precision"), SAID)
def test_what_a_recipe_says_of_the_base_holds_everywhere(
    source: dict[str, Any], dtype: str, precision: str, quantize: str | None, tmp_path: Path
) -> None:
    said = asking(source, dtype, precision, quantize)
    wanted = {name for name in (dtype, PRECISIONS[precision]) if name != "auto"}
    row = ComparedMethod("lora", {"name": "lora"}, quantize or "auto")
    setup = set_up(said, row.method, small.options(tmp_path), tmp_path / "out", lambda _: None)
    job = setup.job_for(row, None, 0, setup.tokens)
    recipe = recipes.load({**said, "method": row.method})
    trained = load_base(prepare(recipe, lambda _: None), lambda _: None).dtype
    if wanted:
        assert {str(trained).removeprefix("torch.")} == wanted
    found = [setup.load_base(row.precision).dtype, Runner(setup, print, print)._dtype(job)]
    assert [*found, planned.from_recipe(recipe).dtype] == [trained] * 3
    assert load_base(job).dtype == trained, "the row's recipe, run by itself"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_that_names_its_own_dtype_has_it(source: dict[str, Any], precision: str, tmp_path: Path) -> None:
    said = asking(source, "auto", precision)
    for name in ("float32", "bfloat16"):
        row = ComparedMethod("lora", {"name": "lora"}, name)
        setup = set_up(said, row.method, small.options(tmp_path), tmp_path / "out", lambda _: None)
        job = setup.job_for(row, None, 0, setup.tokens)
        wanted = getattr(torch, name)
        assert load_base(job).dtype == wanted
        assert [setup.load_base(name).dtype, Runner(setup, print, print)._dtype(job)] == [wanted] * 2


def test_memory_is_measured_in_what_is_trained(
    source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    plain = held.load_model

    def watched(*given: Any, **named: Any) -> Decoder:
        model = plain(*given, **named)
        seen.append(model.dtype)
        return model

    monkeypatch.setattr(held, "load_model", watched)
    recipe = {**asking(source, "auto", "fp32"), "method": {"name": "lora"}}
    path = tmp_path / "recipe.yaml"
    path.write_text(recipes.dump(recipes.load({**recipe, "train": {**recipe["train"], "max_steps": 1}})))
    probe.measure(str(path))
    assert seen == [torch.float32]


def test_results_of_another_precision_are_not_taken(source: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for precision in ("auto", "fp32", "bf16"):
        said = asking(source, "auto", precision)
        setup = set_up(said, {"name": "lora"}, small.options(tmp_path), tmp_path / "out", lambda _: None)
        job = setup.job_for(ComparedMethod("lora", {"name": "lora"}, "auto"), None, 0, setup.tokens)
        made = Runner(setup, print, print)
        found += [json.dumps(made.define(kind, "auto", asked)) for kind, asked in (("base", None), ("run", job))]
    assert len(set(found)) == len(found)


TIGHT, AMPLE = 1 << 10, 1 << 40


@pytest.mark.parametrize("free", [TIGHT, AMPLE])
@pytest.mark.parametrize("asked", ["on", "off", "auto"])
def test_what_a_recipe_says_of_the_passes_holds_everywhere(
    source: dict[str, Any], asked: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recomputed layers and kept memory: in train, in compare, and in the plan that compare records."""
    train = {**source["train"], "activation_checkpointing": asked}
    row = ComparedMethod("lora", {"name": "lora"}, "auto")
    setup = set_up({**source, "train": train}, row.method, small.options(tmp_path), tmp_path / "out", lambda _: None)
    job = setup.job_for(row, None, 0, setup.tokens)
    taken: list[Terms] = []

    def recorded(*given: Any, **named: Any) -> None:
        taken.extend(one for one in given if isinstance(one, Terms))
        raise StopTraining

    for place in (memory, settings):
        monkeypatch.setattr(place, "free_memory_bytes", lambda device: free)
    for place in (course, training_runs):
        monkeypatch.setattr(place, "train", recorded)
    planned_so = Runner(setup, print, print)._setting(row, job).checkpointing
    with pytest.raises(StopTraining):
        training_runs.train_runs(load_base(job), [job], 1)
    monkeypatch.setattr(session, "ready", lambda *given, **named: job)
    session.train(recipes.with_output(job.recipe, str(tmp_path / "run")), say=lambda _: None)
    assert len(taken) == 2 and taken[0] == taken[1]
    wanted = {"on": True, "off": False, "auto": free == TIGHT}[asked]
    assert taken[0].checkpointing == planned_so == wanted and taken[0].keep_freed == (free == AMPLE)


@pytest.mark.parametrize("methods", [1, 3])
def test_adapters_count_where_layers_are_recomputed(methods: int) -> None:
    """Halter compare left out the adapters' own activations, of which several at once have several."""
    model = tiny.decoder()
    adapters = [adapt(model, "lora", r=64) for _ in range(methods)]
    options, tokens = TrainOptions(activation_checkpointing="auto"), 64
    free = 2 * memory.activation_bytes(model.config, tokens, 4) + 12 * sum(a.num_trainable for a in adapters)
    beside = sum(2 * memory.OWN_BYTES * memory.own_numbers(a) * tokens for a in adapters)
    given = options, model.config, tokens, 4, model.device, adapters
    assert recomputes(*given, free) and recomputes(*given, free + beside - 2) and not recomputes(*given, free + beside)
