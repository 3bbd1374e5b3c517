"""A run in which nothing, or not everything, moved says so at its end: against the tensors that training began with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import seeing
import tiny
import tiny_llama4
import tiny_tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import halter
from halter.adapters.adapter import Adapter, adapt
from halter.adapters.loading import load_adapter
from halter.methods.lora import Lora
from halter.pretrained.load import load_model
from halter.pretrained.save import save_model
from halter.text.tokenizer import Tokenizer
from halter.training import schedule
from halter.training.trainee import Trainee
from halter.training.unmoved import Outset, mark

NOTHING, SOME = "warning: training changed nothing", "warning: training moved nothing at"
TALKS = [("What is it?", "red"), ("Say so.", "blue it is"), ("And this?", "green")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama 4 that sees, with rows about pictures and rows without."""
    folder = tmp_path_factory.mktemp("sighted")
    files = tiny_tokenizers.llama4(folder / "tokens")
    known = Tokenizer.from_folder(files)
    ids, ends = tiny_llama4.ids_of(known)
    shape = tiny_llama4.config(
        2, experts=12, vocab_size=known.vocab_size, chunk=64, seen=tiny_llama4.tower(**ids), **ends
    )
    save_model(tiny.decoder(shape), shape, folder / "model", sorted(files.iterdir()))
    (folder / "one.png").write_bytes(seeing.saved(seeing.pixels()))
    for name, lead, images in (("blind", "", []), ("seen", "<image>\n", ["one.png"])):
        rows = [[{"role": "user", "content": lead + q}, {"role": "assistant", "content": a}] for q, a in TALKS * 2]
        lines = "\n".join(json.dumps({"images": images, "messages": one}) for one in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def ran(base: Path, output: Path, rows: str = "blind", resume: bool = False, **changes: Any) -> tuple[Path, list[str]]:
    """(the run folder, what was said)."""
    said: list[str] = []
    calls = changes.pop("callbacks", ())
    method = {"name": "lora"} | changes.pop("method", {})
    recipe = {
        "model": {"path": str(base / "model"), "device": "cpu", "dtype": "float32"},
        "method": method | ({"r": 2} if method["name"] == "lora" else {}),
        "data": {"train": str(base / f"{rows}.jsonl")},
        "train": {"per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-2, "save_steps": 2} | changes,
        "output_dir": str(output),
    }
    run = halter.train(recipe, callbacks=calls, resume=resume, say=said.append)
    assert run is not None
    return run, said


def told(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith((NOTHING, SOME))]


def logged(run: Path) -> list[list[str]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["unmoved"] for line in lines if "unmoved" in line]


def still(base: Path, run: Path) -> tuple[list[str], Adapter]:
    """The places at which the run's adapter is what a fresh one is, from its folder."""
    model = load_model(base / "model", "float32", device="cpu")
    now = load_adapter(run / "adapter", model)
    fresh = adapt(model, list(now.methods), seed=0)
    pairs = zip(now.slots, fresh.slots, strict=True)
    return [
        one.path
        for one, other in pairs
        if all(torch.equal(a, b) for a, b in zip(one.piece.parameters(), other.piece.parameters(), strict=True))
    ], now


@pytest.mark.parametrize(("rate", "name"), [(0.0, "lora"), (1e-12, "ia3")])
def test_a_run_whose_rate_moves_nothing_says_so_also_when_it_is_resumed(
    base: Path, rate: float, name: str, tmp_path: Path
):
    """A scale of 1 to which so little is added is 1."""

    class Stops(halter.Callback):
        def on_step(self, step: Any) -> None:
            if step.step == 2:
                raise halter.StopTraining

    given = {"learning_rate": rate, "method": {"name": name}}
    run, said = ran(base, tmp_path / "run", rows="seen", **given)
    paths, adapter = still(base, run)
    assert len(paths) == len(adapter.slots)
    assert told(said) == [
        f"{NOTHING}: after 4 steps every trained tensor is what it was at the start. The learning rate was at most "
        f"{rate:g} (train.learning_rate)"
    ]
    assert logged(run) == [paths]
    ran(base, tmp_path / "cut", rows="seen", callbacks=[Stops()], **given)
    run, said = ran(base, tmp_path / "cut", rows="seen", resume=True, **given)
    assert len(told(said)) == 1 and logged(run) == [paths]


def test_a_method_that_no_gradient_reaches_says_so(base: Path, tmp_path: Path):
    run, said = ran(base, tmp_path / "run", method={"target_modules": ["vision"]})
    paths, adapter = still(base, run)
    assert len(paths) == len(adapter.slots)
    assert told(said) == [
        f"{NOTHING}: after 4 steps every trained tensor is what it was at the start. No gradient reached any of them: "
        "what the method acts on takes no part in what these rows teach (vision_model.patch_embedding.linear, and "
        f"{len(paths) - 1} more places)"
    ]
    assert logged(run) == [paths]


def test_places_at_which_nothing_moved_are_named_where_others_moved(base: Path, tmp_path: Path):
    """Of rows without pictures the tower learns nothing."""
    run, said = ran(base, tmp_path / "run")
    paths, adapter = still(base, run)
    assert 0 < len(paths) < len(adapter.slots)
    assert all("vision" in path or "projector" in path for path in paths)
    assert told(said) == [
        f"{SOME} {len(paths)} of {len(adapter.slots)} adapted places, they are what they were at the start: vision "
        "linear, q_proj, k_proj, v_proj, o_proj, fc1, fc2; projector linear_1. These rows teach them nothing"
    ]
    assert logged(run) == [paths]
    run, said = ran(base, tmp_path / "seen", rows="seen")
    assert still(base, run)[0] == [] and told(said) == [] and logged(run) == []


def test_experts_that_no_token_reached_are_told_once(base: Path, tmp_path: Path):
    """In a line of their own, and as places in metrics.jsonl."""
    look = {"model": str(base / "model"), "data": str(base / "blind.jsonl"), "method": "lora"}
    use = halter.inspect(look | {"output_dir": str(tmp_path / "none")}, experts=True, say=lambda _: None).experts
    assert use is not None
    idle = list(use.counts[1]).index(0)
    targets = r"(vision.*layers\.0|language).*\.(q_proj|fc1)"
    run, said = ran(base, tmp_path / "run", method={"target_modules": targets, "experts": [idle]})
    paths, adapter = still(base, run)
    assert sum("experts" in path for path in paths) == 2 and len(paths) == 4 and len(adapter.slots) == 6
    lead = f"{SOME} 2 of 6 adapted places, they are what they were at the start: vision q_proj, fc1. "
    assert told(said)[0].startswith(lead) and logged(run) == [paths]
    assert any(line.startswith("experts that saw no token") for line in said)


def test_decay_alone_is_no_move():
    """A place that sees gradients of zero shrinks by weight decay, and learns nothing."""
    model = tiny.decoder()
    adapter = adapt(model, Lora(r=2, target_modules=("q_proj",), layers=(0,)))
    tiny.jitter(adapter)
    optimizer = torch.optim.AdamW(adapter.groups(1e-2, 0.1), lr=1e-2)
    trainee = Trainee(adapter, optimizer, schedule.make("constant", 4, 0), torch.amp.GradScaler("cpu", enabled=False))
    outset = Outset(adapter)
    for parameter in adapter.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in adapter.parameters()]
    optimizer.step()
    assert not all(torch.equal(*pair) for pair in zip(before, adapter.parameters(), strict=True))
    assert outset.unmoved(trainee.adapter, optimizer) == adapter.slots
    next(adapter.parameters()).grad.fill_(1.0)
    optimizer.step()
    assert outset.unmoved(trainee.adapter, optimizer) == []


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.data())
@settings(max_examples=100, deadline=None)
def test_a_mark_tells_any_changed_bit_and_any_two_exchanged_numbers(bits: list[int], data: st.DataObject):
    held = torch.tensor(bits, dtype=torch.int64).to(torch.int32)
    before = mark(held.view(torch.float32)).tolist()
    at, bit = data.draw(st.integers(0, len(bits) - 1)), data.draw(st.integers(0, 31))
    other = torch.tensor([*bits[:at], bits[at] ^ (1 << bit), *bits[at + 1 :]], dtype=torch.int64).to(torch.int32)
    assert mark(other.view(torch.float32)).tolist() != before
    assert mark(held.clone().view(torch.float32)).tolist() == before
    if len(set(bits)) > 1:
        turned = held.sort().values
        assert torch.equal(turned, held) or mark(turned.view(torch.float32)).tolist() != before
