"""Joint training with disjoint groups: each group learns from its own rows alone, and does not move without them."""

from __future__ import annotations

import pytest
import sighted
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.data.pack import pack
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.training.apart import Apart, halves
from halter.training.schedule import make
from halter.training.splitting import Splitter
from halter.training.step import settled, take_step
from halter.training.trainee import Trainee

FORMS = {
    "early": {"fusion": "early", "adapter_len": 4, "adapter_layers": 2},
    "early in a layer with prompts": {"fusion": "early", "adapter_len": 4, "fusion_layer": 3},
    "late": {"fusion": "late", "adapter_len": 4, "query_len": 4, "branch_rank": 2},
}


@pytest.fixture(scope="module")
def model():
    """In float64, so that sums in another order are equal to far more than what is promised."""
    return tiny.decoder(tiny.config(layers=4), torch.float64)


@pytest.fixture(scope="module")
def rows(model):
    """Six rows: pictures, none, pictures, pictures, none, none."""
    sight, drawn = adapt(model, "excitor", encoder="playground").sight, torch.Generator().manual_seed(7)
    made = []
    for number, picture in enumerate((0, None, 1, 0, None, None)):
        tokens = torch.randint(3, 96, (9 + number,), generator=drawn).tolist()
        made.append(sighted.row(tokens, [at > 4 for at in range(len(tokens))], sight, picture))
    return made


def fresh(model, phase, form):
    adapter = adapt(model, "llama_adapter_v2", encoder="playground", v_depth=1, v_num_heads=4, phase=phase, **form)
    tiny.jitter(adapter, 0.05)
    return adapter.double()


def trainee(adapter, clip, decay=0.1):
    optimizer = torch.optim.AdamW(adapter.groups(1e-2, decay), lr=1e-2)
    return Trainee(
        adapter, optimizer, make("constant", 10, 0), torch.amp.GradScaler("cpu", enabled=False), max_grad_norm=clip
    )


def gradients(adapter):
    return {name: None if p.grad is None else p.grad.clone() for name, p in adapter.trainable().items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_each_group_has_the_gradient_the_normaliser_and_the_clip_of_its_own_rows(model, rows, form, clip):
    joint = fresh(model, "disjoint", FORMS[form])
    together = trainee(joint, clip)
    micros = [[pack(rows[:3])], [pack(rows[3:])]]  # both kinds in each micro-batch
    gathered, passes = settled(model, [together], micros, False, Splitter())
    assert len(passes) == 4
    whole = sum(int((m[0].targets >= 0).sum()) for m in micros)
    found = gradients(joint)
    sums = 0.0
    for group, own in (("pictures", True), ("texts", False)):
        alone = fresh(model, "all", FORMS[form])
        other = trainee(alone, 0.0)
        batch = pack([row for row in rows if bool(row.pictures) is own])
        its, _ = settled(model, [other], [[batch]], False, Splitter())
        sums += float(its.losses.sum()) * int((batch.targets >= 0).sum())
        mine = [name for name, learns in joint.row_groups().items() if learns == group]
        wanted = {name: alone.trainable()[name].grad for name in mine}
        norm = torch.nn.utils.get_total_norm(list(wanted.values()))
        share = min(1.0, clip / (float(norm) + 1e-6)) if clip else 1.0
        assert mine and (not clip or share < 1)
        for name in mine:
            assert found[name] is not None
            torch.testing.assert_close(found[name], wanted[name] * share, rtol=1e-9, atol=1e-9 * float(norm))
    assert set(joint.row_groups().values()) == {"pictures", "texts"}
    assert float(gathered.losses.sum()) == pytest.approx(sums / whole, rel=1e-9)  # the mean of all rows' tokens


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", [True, False])
def test_a_group_without_rows_in_a_step_does_not_move(model, rows, form, own):
    """Neither by decay, nor by the moments that an earlier step left."""
    adapter = fresh(model, "disjoint", FORMS[form])
    joint = trainee(adapter, 1.0)
    take_step(model, [joint], [[pack(rows)]])
    state = {p: {k: v.clone() for k, v in held.items()} for p, held in joint.optimizer.state.items()}
    before = {name: p.detach().clone() for name, p in adapter.trainable().items()}
    take_step(model, [joint], [[pack([row for row in rows if bool(row.pictures) is own])]])
    still = "texts" if own else "pictures"
    for name, learns in adapter.row_groups().items():
        parameter = adapter.trainable()[name]
        same = torch.equal(parameter, before[name])
        assert same is (learns == still), name
        if learns == still:
            after = joint.optimizer.state[parameter]
            assert all(torch.equal(after[key], value) for key, value in state[parameter].items())


def test_the_released_codes_runs_train_their_parts_and_the_second_takes_over_the_first(model, rows):
    from halter.adapters import warm

    first, second = (fresh(model, phase, FORMS["late"]) for phase in ("pretrain", "finetune"))
    assert not set(first.trainable()) & set(second.trainable())
    assert all(".context." in name for name in first.trainable())
    assert {*first.trainable(), *second.trainable()} == set(fresh(model, "all", FORMS["late"]).trainable())
    take_step(model, [trainee(first, 1.0)], [[pack(rows[:1])]])
    warm.begin(second, {0: ("first", first)}, model)
    for (name, slot, attribute), (_, other, _) in zip(second.named_tensors(), first.named_tensors(), strict=True):
        assert torch.equal(slot.tensor(attribute), other.tensor(attribute)), name
    assert Apart.of(first) is None and Apart.of(second) is None


def test_a_batch_is_cut_into_its_kinds(rows):
    both = halves(pack(rows))
    assert [len(one.lengths) for one in both] == [3, 3] and [one.pictures is None for one in both] == [False, True]
    assert [len(one.lengths) for one in halves(pack(rows[4:]))] == [2]
    assert [len(one.lengths) for one in halves(pack(rows[2:4]))] == [2]


def test_an_adapter_that_is_blind_learns_all_of_it_from_rows_without_pictures():
    for fusion in ("early", "late"):
        blind, seeing = (LlamaAdapterV2(phase="disjoint", fusion=fusion, encoder=one) for one in (None, "playground"))
        assert blind.learns_from("context", "prompt") == blind.learns_from("q_proj", "scale") == "texts"
        assert seeing.learns_from("context", "visual.weight") == "pictures"
