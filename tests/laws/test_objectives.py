"""Laws that every file in halter/training/objectives obeys, and toys of every need that are dropped in beside them.

No objective is named by a law: a new file is tested without an edit. A law asks take_step, which is what a run takes;
gradients are seen where they arrive, in an optimizer that only writes them down. The laws' oracle is the value itself,
by finite differences; the toys have formulas of their own, row by row over whole logits, through float64 autograd.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from toy_pieces import Gated, Scores

import halter.training.objectives as folder
from halter.adapters.adapter import adapt
from halter.data.example import Example
from halter.data.pack import Batch, pack
from halter.errors import HalterError, Refusal
from halter.methods.lora import Lora
from halter.model.passes import Pass
from halter.model.reports import listening
from halter.model.segments import Segments
from halter.training import head, step
from halter.training.objective import Objective, find, make, names
from halter.training.schedule import make as make_schedule
from halter.training.splitting import Splitter
from halter.training.step import take_step
from halter.training.trainee import Trainee

folder.__path__.append(str(Path(__file__).parent / "objectives"))
names.cache_clear()
find.cache_clear()
TOYS = ("balanced", "critic", "distil", "labelled", "margin", "reward", "shaped")
every_objective = pytest.mark.parametrize("name", names())
MODEL = tiny.decoder(dtype=torch.float64)
BEGINNING = 18


class Written(torch.optim.SGD):
    """Writes the gradients down and moves nothing."""

    def step(self, closure=None):  # type: ignore[no-untyped-def,override]
        self.seen = [None if p.grad is None else p.grad.clone() for g in self.param_groups for p in g["params"]]


def adapter_of(seed=0, dropout=0.0):
    methods = [Lora(r=2, dropout=dropout), Lora(r=2, target_modules=["lm_head"]), Scores(), Gated()]
    adapter = adapt(MODEL, methods, seed=seed)
    adapter.to(torch.float64)
    tiny.jitter(adapter, seed=seed + 1)
    return adapter


REFERENCE = adapter_of(seed=9)


def trainee(name, adapter, reference=REFERENCE):
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = Written(adapter.groups(1.0, 0.0), lr=1.0)
    schedule = make_schedule("constant", 10, 0)
    return Trainee(adapter, optimizer, schedule, scaler, 0.0, objective=make(name), reference=reference)


def rows(pairs=4, seed=0):
    """Pairs of rows that begin alike, so that beginnings are shared, with answers of different lengths."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for pair in range(pairs):
        beginning = torch.randint(3, 96, (BEGINNING,), generator=g)
        for label in (1.0, -1.0):
            length = int(torch.randint(2, 9, (1,), generator=g))
            tokens = torch.cat([beginning, torch.randint(3, 96, (length,), generator=g)]).int().numpy()
            learnt = torch.arange(len(tokens)).ge(BEGINNING).numpy()
            made.append(Example(tokens, learnt, f"{pair}{label:+.0f}", group=pair, label=label))
    return made


def batch(pairs=4, seed=0):
    """First all rows labelled 1, then the others, so that shared beginnings lay them otherwise than they came."""
    return pack(rows(pairs, seed), grouped=True).select([*range(0, 2 * pairs, 2), *range(1, 2 * pairs, 2)])


def taken(trainees, micros, checkpointing=False, splitter=None):
    """(values, gradients) of one step."""
    records = take_step(MODEL, trainees, micros, checkpointing, splitter)
    seen = [torch.cat([g.flatten() for g in one.optimizer.seen if g is not None]) for one in trainees]
    return [record.loss for record in records], seen


def same(found, wanted, bound=1e-6):
    # weights of token losses are float32, whatever the model: that is the bound
    (values, gradients), (others, theirs) = found, wanted
    assert values == pytest.approx(others, rel=bound)
    for a, b in zip(gradients, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < bound


def test_the_file_name_is_the_registry():
    files = {path.stem for place in folder.__path__ for path in Path(place).glob("*.py")} - {"__init__"}
    assert files == set(names()) and set(TOYS) < files
    assert all(find(name).name() == name for name in names())
    with pytest.raises(Refusal, match="did you mean margin") as caught:
        find("margn")
    assert caught.value.id == "unknown-objective" and "sft" in str(caught.value)
    assert make({"name": "margin", "beta": 2.0}).beta == 2.0
    for wrong, kind in (({"beat": 1.0}, "unknown-option"), ({"beta": "x"}, "wrong-argument")):
        with pytest.raises(Refusal) as caught:
            make({"name": "margin", **wrong})
        assert caught.value.id == kind


@every_objective
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradient_is_that_of_the_value(name, dropout):
    """By finite differences in three directions; with dropout, the value and its weights come from the same masks."""
    micros = [[batch(3)], [batch(2, seed=1)]]
    adapter = adapter_of(dropout=dropout)
    (_, (gradient,)) = taken([one := trainee(name, adapter)], micros)
    parameters = [p for p, g in zip(adapter.parameters(), one.optimizer.seen, strict=True) if g is not None]
    g = torch.Generator().manual_seed(4)
    for _ in range(3):
        directions = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in parameters]
        values = []
        for reach in (1e-5, -2e-5):
            with torch.no_grad():
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter += reach * direction
            values.append(taken([trainee(name, adapter)], micros)[0][0])
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        along = float(gradient @ torch.cat([d.flatten() for d in directions]))
        assert slope == pytest.approx(along, rel=1e-5, abs=1e-5 * float(gradient.norm()))


@every_objective
def test_how_a_step_is_cut_changes_nothing(name):
    """Whole, group by group, and halved by the out-of-memory splitter; also with nothing shared between rows."""
    whole = taken([trainee(name, adapter_of())], [[batch()]])
    groups = [[batch().select(unit)] for unit in batch().units()]
    same(taken([trainee(name, adapter_of())], groups), whole)
    same(taken([trainee(name, adapter_of())], [[batch()]], splitter=Splitter(halvings=1)), whole)
    same(taken([trainee(name, adapter_of())], [[batch()]], checkpointing=True), whole, 1e-12)


@every_objective
def test_chunks_and_beginnings_change_nothing(name, monkeypatch):
    whole = taken([trainee(name, adapter_of())], [[batch()]])
    with monkeypatch.context() as small:
        small.setattr("halter.numerics.losses.chunk_rows", lambda *_: 3)
        same(taken([trainee(name, adapter_of())], [[batch()]]), whole)
    monkeypatch.setattr(step, "share_beginnings", lambda batch, _: batch)
    same(taken([trainee(name, adapter_of())], [[batch()]]), whole)


@every_objective
@pytest.mark.parametrize("other", names())
def test_two_objectives_in_one_step_are_each_alone(name, other):
    """Each with its own adapter and its own reference, the base or another adapter."""
    data = [batch(seed=1), batch(2, seed=2)]
    both = [(name, 0, REFERENCE), (other, 4, None)]
    together = taken([trainee(one, adapter_of(seed), given) for one, seed, given in both], [data])
    for place, (one, seed, given) in enumerate(both):
        alone = taken([trainee(one, adapter_of(seed), given)], [[data[place]]])
        same(([together[0][place]], [together[1][place]]), alone)


@every_objective
def test_the_head_runs_again_only_where_weights_depend_on_the_losses(name, monkeypatch):
    """Head passes over all learned tokens, those of the reference beside them."""
    ran = []
    monkeypatch.setattr(head, "head_loss", lambda *a, real=head.head_loss: ran.append(len(a[3])) or real(*a))
    taken([trainee(name, adapter_of())], [[batch()]])
    needs = find(name).needs
    times = 2 if "losses" in needs else int("tokens" in needs)
    assert ran == [int((batch().targets != -100).sum())] * (times + ("reference" in needs))


def test_known_weights_of_several_trainees_are_one_head_pass(monkeypatch):
    """sft pays nothing for the seam: the head runs once over the tokens of all, straight on the states of the pass."""
    ran = []
    monkeypatch.setattr(head, "head_loss", lambda *a, real=head.head_loss: ran.append(len(a[3])) or real(*a))
    taken([trainee("sft", adapter_of()), trainee("labelled", adapter_of(4))], [[batch(seed=1), batch(2)]])
    assert ran == [sum(int((data.targets != -100).sum()) for data in (batch(seed=1), batch(2)))]


@every_objective
def test_a_group_is_never_torn(name, monkeypatch):
    """Memory that runs out halves passes by groups, down to one group, whose rows are then named."""
    objective, seen = make(name), []
    data = batch() if objective.grouped else pack(rows())

    def failing(model, trainees, micro, *rest):
        seen.append(micro[0])
        raise MemoryError

    monkeypatch.setattr(step, "_accumulate", failing)
    said = []
    with pytest.raises(HalterError) as caught:
        take_step(MODEL, [trainee(name, adapter_of())], [[data]], splitter=Splitter(said.append))
    assert len(said) == (2 if objective.grouped else 3)
    assert ("2 rows that belong together" in str(caught.value)) == objective.grouped
    for part in seen if objective.grouped else []:
        assert all(part.groups.count(group) == 2 for group in part.groups)


def alone(adapter, tokens):
    """(log-probabilities [T, V], final states [T, dim], reports) of one row, through the model's own forward."""
    logits = MODEL(tokens[None], adapter=adapter)[0]
    segments = Segments.packed([len(tokens)])
    with listening() as heard:
        states = MODEL.hidden(Pass(tokens, segments, adapter.bind(MODEL, segments) if adapter else None))
    return logits.log_softmax(-1), states, sum(heard)


def formula(name, adapter, data: Batch, reference):
    """The toy's value by its formula, row by row and not one line of the objective's own."""
    scores = next(slot.piece for slot in adapter.slots if slot.place == "score").weight[0]
    value, margin, count = 0.0, {}, 0
    for tokens, targets, label, group in zip(
        data.tokens.split(data.lengths), data.targets.split(data.lengths), data.labels, data.groups, strict=True
    ):
        at = (targets != -100).nonzero()[:, 0]
        own, states, heard = alone(adapter, tokens)
        with torch.no_grad():
            other = alone(reference, tokens)[0][at]
        own, wanted = own[at], targets[at, None]
        nll, count = -own.gather(1, wanted)[:, 0], count + len(at)
        match name:
            case "sft":
                value = value + nll.sum()
            case "shaped":
                value = value + (nll**2).sum()
            case "labelled":
                value = value + label * nll.sum() / len(data.lengths)
            case "distil":
                value = value + F.kl_div(own, other, log_target=True, reduction="sum")
            case "critic":
                value = value + nll.sum() + ((states[at] @ scores - label) ** 2).sum()
            case "balanced":
                value = value + nll.sum() + 0.25 * heard
            case "margin":
                log_ratio = (-nll - other.gather(1, wanted)[:, 0]).sum()
                margin[group] = margin.get(group, 0.0) + 0.5 * label * log_ratio
            case "reward":
                margin[group] = margin.get(group, 0.0) + label * (states[-1] @ scores)
    if margin:
        return -sum(F.logsigmoid(one) for one in margin.values()) / len(margin)
    return value if name == "labelled" else value / count


@pytest.mark.parametrize("reference", [REFERENCE, None], ids=["an adapter", "the base"])
@pytest.mark.parametrize("name", ["sft", *TOYS])
def test_a_toy_is_its_formula_through_float64_autograd(name, reference):
    adapter, data = adapter_of(), batch()
    wanted = formula(name, adapter, data, reference)
    given = torch.autograd.grad(wanted, list(adapter.parameters()), allow_unused=True)
    one = trainee(name, adapter, reference)
    (value,), _ = taken([one], [[data]])
    assert value == pytest.approx(wanted.item(), rel=1e-12)
    apart = torch.cat([(a - b).flatten() for a, b in zip(one.optimizer.seen, given, strict=True) if b is not None])
    whole = torch.cat([b.flatten() for b in given if b is not None])
    assert float(apart.norm() / whole.norm()) < 1e-7
    for a, b in zip(one.optimizer.seen, given, strict=True):
        assert b is not None or a is None or not bool(a.any())
    print(
        f"{name}: value within {abs(value / wanted.item() - 1):.0e}, gradient {float(apart.norm() / whole.norm()):.0e}"
    )


def test_an_adapter_without_scores_is_refused():
    adapter = adapt(MODEL, "lora", r=2).to(torch.float64)
    with pytest.raises(Refusal, match="no-score-head"):
        take_step(MODEL, [trainee("reward", adapter)], [[batch()]])


def test_nothing_is_heard_outside_a_pass_that_listens():
    adapter, data = adapter_of(), batch()
    with listening() as heard:
        taken([trainee("sft", adapter)], [[data]])
    assert len(heard) == MODEL.config.layers  # of the pass, which nobody else listens to
    with listening(False) as silent:
        alone(adapter, data.tokens[:5])
    assert silent == []


def test_sft_asks_for_nothing():
    assert find("sft")().plain and find("sft")().weights(None) is None and isinstance(find("sft")(), Objective)
