"""TrainOptions refuses what makes no sense, all at once; the defaults table agrees with the methods it speaks of."""

from __future__ import annotations

from dataclasses import fields

import pytest

from halter.contract.method import LORA_TRAINING
from halter.contract.registry import find, names
from halter.errors import Refusal
from halter.training.defaults import PRESETS, trained_with, with_defaults
from halter.training.options import TrainOptions


def test_every_bad_value_is_named_in_one_refusal() -> None:
    with pytest.raises(Refusal) as refusal:
        TrainOptions(learning_rate=-1, max_steps=0, adam_beta2=1.0, eval_steps=1.5, gradient_accumulation_steps=2)
    named = {wrong.split(":")[0] for wrong in refusal.value.found}
    assert named == {"learning_rate", "max_steps", "adam_beta2", "eval_steps", "gradient_accumulation_steps"}


@pytest.mark.parametrize(
    "values", [{"learning_rate": 0}, {"warmup_steps": 0.03}, {"warmup_steps": 10}, {"save_total_limit": None}]
)
def test_edges_are_accepted(values: dict[str, float]) -> None:
    TrainOptions(**values)


def test_a_step_is_given_in_rows_or_in_tokens() -> None:
    rows = TrainOptions(per_device_train_batch_size=4, gradient_accumulation_steps=8)
    assert rows.rows_per_step == 32 and TrainOptions().rows_per_step is None
    with pytest.raises(Refusal, match="keep one"):
        TrainOptions(per_device_train_batch_size=4, tokens_per_step=100)


def test_defaults_fill_only_what_was_not_given() -> None:
    filled, taken = with_defaults(TrainOptions(learning_rate=0.5), "lora")
    assert filled.learning_rate == 0.5 and "learning_rate" not in taken
    assert filled.tokens_per_step == LORA_TRAINING["tokens_per_step"].value
    assert set(taken) == {"num_train_epochs", "tokens_per_step", "warmup_steps"}
    assert all(default.source for default in taken.values())


def test_rows_and_max_steps_keep_their_rivals_away() -> None:
    filled, _ = with_defaults(TrainOptions(per_device_train_batch_size=2, max_steps=7), "lora")
    assert filled.tokens_per_step is None and filled.num_train_epochs is None and filled.rows_per_step == 2


def test_a_method_without_a_row_says_whose_defaults_it_got() -> None:
    _, taken = with_defaults(TrainOptions(), "dora")
    assert all("LoRA's, for want of one for dora" in d.source for d in taken.values())


def test_the_table_speaks_of_real_fields_and_true_values() -> None:
    train = {f.name for f in fields(TrainOptions)}
    for method in map(find, names()):
        row = trained_with(method)
        assert set(row) <= train and all(getattr(TrainOptions(), name) is None for name in row)
        assert set(method.sources) <= {f.name for f in fields(method)} and method.note and method.agreement
    for preset in PRESETS.values():
        assert preset["method"]["name"].value in names() and set(preset["train"]) <= train
        TrainOptions(**{name: d.value for name, d in preset["train"].items()})


def test_each_field_is_documented() -> None:
    import ast
    import inspect

    body = ast.parse(inspect.getsource(TrainOptions)).body[0].body
    for at, node in enumerate(body):
        if isinstance(node, ast.AnnAssign):
            after = body[at + 1]
            assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), node.target.id


def test_a_rate_that_nobody_chose_fits_the_width():
    from halter.training.defaults import Default, at_width

    table = Default(3e-4, "a run on 7B")
    assert at_width(table, 4096) == table
    assert at_width(table, 64).value == pytest.approx(3e-4 * 64**0.78, rel=0.05)
    assert "a run on 7B" in at_width(table, 64).source
