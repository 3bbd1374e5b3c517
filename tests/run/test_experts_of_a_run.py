"""Which experts rows use, against transformers' routers; runs that adapt the most used ones, from recipe to folder."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import seeing
import tiny
import tiny_llama4
import tiny_tokenizers
import torch

import halter
from halter.adapters.loading import load_adapter
from halter.cli import main
from halter.data.example import Example
from halter.errors import Refusal
from halter.inspection.text import Look, render
from halter.pretrained.load import load_model
from halter.pretrained.save import save_model
from halter.run.expert_choice import sample
from halter.text.tokenizer import Tokenizer
from halter.training.expert_use import ExpertUse, profile

EXPERTS = 12
WORDS = ["once upon a time", "the quick brown fox", "a little girl", "jumps over the dog"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(the folder of a random Llama 4 with twelve experts in each of two layers, rows)."""
    folder = tmp_path_factory.mktemp("base")
    tokens = tiny_tokenizers.llama3(folder / "tokens")
    shape = tiny.config(
        experts=EXPERTS,
        layers=3,
        moe_layers=(1, 2),
        rotated=(True, False, True),
        chunked=(True, False, True),
        vocab_size=640,
        bos_token_id=None,
        eos_token_ids=(),
    )
    save_model(tiny.decoder(shape), shape, folder / "model", sorted(tokens.iterdir()))
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": w, "output": w[::-1]}) + "\n" for w in WORDS * 2))
    return folder / "model", rows


def recipe(base, output, **method):
    model, rows = base
    return {
        "model": {"path": str(model), "device": "cpu", "dtype": "float32"},
        "method": {"name": "lora", "r": 2, "target_modules": [], **method},
        "data": {"train": str(rows)},
        "train": {"per_device_train_batch_size": 2, "max_steps": 4, "learning_rate": 1e-2, "save_steps": 2},
        "output_dir": str(output),
    }


def row_of(tokens, pictures=()):
    tokens = np.asarray(tokens, dtype=np.int32)
    return Example(tokens, np.ones(len(tokens), dtype=bool), pictures=tuple(pictures))


def by_transformers(other, rows, first=None):
    """({layer: tokens of each expert}, the least lead of a choice), heard at transformers' routers; of each row the
    ``first`` tokens count, where that is said. ``rows``: (tokens, the tiles of their pictures or None)."""
    counts, leads = {}, []
    ends = iter([None] * len(rows) if first is None else first)

    def hear(layer):
        def hook(_, __, out):
            best = out[1].sort(-1, descending=True)
            leads.append(float((best.values[:, 0] - best.values[:, 1]).min()))
            own = best.indices[:end, 0].bincount(minlength=out[1].shape[-1])
            counts[layer] = counts.get(layer, 0) + own

        return hook

    routers = ((name, module) for name, module in other.named_modules() if name.endswith(".router"))
    for name, module in routers:
        module.register_forward_hook(hear(int(name.split("layers.")[1].split(".")[0])))
    with torch.no_grad():
        for tokens, tiles in rows:
            end = next(ends)
            other(
                input_ids=torch.as_tensor(tokens, dtype=torch.int64)[None],
                **({} if tiles is None else {"pixel_values": tiles}),
            )
    return {layer: own.tolist() for layer, own in counts.items()}, min(leads)


def test_what_is_counted_is_what_transformers_routers_choose(base):
    model = load_model(base[0], "float32", device="cpu")
    rows = [torch.randint(0, 640, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (9, 30, 4)]
    given, theirs = [row_of(row) for row in rows], [(row, None) for row in rows]
    assert profile(model, given).counts == by_transformers(tiny.peer(model), theirs)[0]
    assert (
        profile(model, given, most=35).counts == by_transformers(tiny.peer(model), [theirs[0], (rows[1][:26], None)])[0]
    )
    with pytest.raises(Refusal, match="no routed experts"):
        profile(tiny.decoder(), given)


@pytest.fixture(scope="module")
def sighted(tmp_path_factory):
    """(the folder of a random Llama 4 that sees, rows of one question about pictures of noise)."""
    folder = tmp_path_factory.mktemp("sighted")
    files = tiny_tokenizers.llama4(folder / "tokens")
    known = Tokenizer.from_folder(files)
    ids, ends = tiny_llama4.ids_of(known)
    seen = tiny_llama4.tower(image=16, **ids)
    shape = tiny_llama4.config(vocab_size=known.vocab_size, chunk=64, experts=EXPERTS, step=1, seen=seen, **ends)
    save_model(tiny.decoder(shape), shape, folder / "model", sorted(files.iterdir()))
    lines = []
    for n in range(5):
        (folder / f"{n}.png").write_bytes(seeing.saved(seeing.pixels(n, 16, 16 + 16 * (n % 2))))
        talk = [{"role": "user", "content": "<image>\nWhat is this?"}, {"role": "assistant", "content": WORDS[n % 4]}]
        lines.append(json.dumps({"images": [f"{n}.png"], "messages": talk}))
    talk = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "nothing"}]
    lines.append(json.dumps({"images": [], "messages": talk}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "model", folder / "rows.jsonl"


def test_pictures_count_as_transformers_routers_see_them(sighted, tmp_path):
    """From the folder and the rows' files, as `halter inspect --experts` and `experts: most-used K` count; and of a row
    that is cut inside a picture its beginning."""
    found = halter.inspect(recipe(sighted, tmp_path / "none", experts="all"), experts=True, say=lambda _: None)
    model = load_model(sighted[0], "float32", device="cpu")
    rows = [found.job.data.train[n] for n in sample(len(found.job.data.train))]
    theirs = []
    for row in rows:
        tiles = [model.config.pictures.prepare(one.place.decode().pixels)[0] for one in row.pictures]
        theirs.append((row.tokens, torch.cat(tiles) if tiles else None))
    assert sum(tiles is not None for _, tiles in theirs) == 5 and len(theirs) == 6
    want, lead = by_transformers(tiny_llama4.peer(model), theirs)
    assert lead > tiny_llama4.LEAD / 10 and list(want) == [0, 1, 2, 3]
    assert found.experts.counts == want
    blind = profile(model, [row_of(row.tokens) for row in rows])
    assert blind.counts != want and blind.chosen(3) != found.experts.chosen(3)
    whole, (one,) = rows[1], rows[1].pictures
    inside = len(rows[0].tokens) + one.start + one.length // 2
    cut = [len(rows[0].tokens), inside - len(rows[0].tokens)]
    assert profile(model, rows[:2], most=inside).counts == by_transformers(tiny_llama4.peer(model), theirs[:2], cut)[0]
    assert cut[1] < len(whole.tokens)
    run = halter.train(recipe(sighted, tmp_path / "run", experts="most-used 3"), say=lambda _: None)
    assert json.loads((run / "experts.json").read_text()) == {"methods": [found.experts.chosen(3)]}


def test_entropy_cover_and_choice_by_their_formulas():
    use = ExpertUse({1: [2, 6, 0, 6, 2], 4: [0, 0, 5, 0, 0], 5: [3, 3, 3, 3, 3]})
    shares = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    assert use.entropy(1) == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(5))
    assert use.entropy(4) == 0 and use.entropy(5) == pytest.approx(1)
    assert [use.covered(k, 1) for k in range(1, 6)] == [6 / 16, 12 / 16, 14 / 16, 1, 1]
    assert use.chosen(3) == {"1": [0, 1, 3], "4": [0, 1, 2], "5": [0, 1, 2]}
    assert use.record() == {"expert_entropy": round((use.entropy(1) + 1) / 3, 4), "expert_load": 1.0}


def test_the_most_used_experts_are_found_recorded_and_resumed(base, tmp_path):
    said: list[str] = []
    whole = halter.train(recipe(base, tmp_path / "whole", experts="most-used 3"), say=said.append)
    found = halter.inspect(recipe(base, tmp_path / "none", experts="all"), experts=True, say=lambda _: None).experts
    facts = json.loads((whole / "adapter" / "halter.json").read_text())
    assert facts["methods"][0]["experts"] == found.chosen(3)
    covered = [found.covered(3, layer) for layer in (1, 2)]
    told = f"experts: the 3 most used of each layer take {min(covered):.0%} to {max(covered):.0%} of the tokens"
    assert any(line.startswith(told) for line in said)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["expert_entropy"] <= 1 and 0 < line["expert_load"] <= 1 for line in lines if "loss" in line)

    class Stops(halter.Callback):
        def on_step(self, step):
            if step.step == 2:
                raise halter.StopTraining

    cut = halter.train(recipe(base, tmp_path / "cut", experts="most-used 3"), callbacks=[Stops()], say=lambda _: None)
    assert not (cut / "adapter").exists()
    again = halter.train(recipe(base, tmp_path / "cut", experts="most-used 3"), resume=True, say=lambda _: None)
    model = load_model(base[0], "float32", device="cpu")
    one, other = (load_adapter(run / "adapter", model) for run in (whole, again))
    assert one.methods == other.methods
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    assert json.loads((again / "experts.json").read_text()) == {"methods": [found.chosen(3)]}


def test_experts_without_a_token_are_named_at_the_end(base, tmp_path):
    said: list[str] = []
    run = halter.train(recipe(base, tmp_path / "run", experts="all"), say=said.append)
    model = load_model(base[0], "float32", device="cpu")
    adapter = load_adapter(run / "adapter", model)
    still = {}
    for slot in adapter.slots:
        for expert, piece in slot.piece.pieces.items():
            if not piece.b.any():  # as it began
                still.setdefault(slot.layer, set()).add(expert)
    assert still
    told = "; ".join(f"layer {layer}: {', '.join(map(str, sorted(own)))}" for layer, own in sorted(still.items()))
    line = f"experts that saw no token from which anything is learned, whose adapter is untrained: {told}"
    assert [one for one in said if one.startswith("experts that")] == [line]
    with pytest.raises(Refusal, match="data has to say"):
        halter.adapt(model, "lora", experts="most-used 2")


def test_inspect_shows_which_experts_rows_use(base, tmp_path, capsys):
    found = halter.inspect(recipe(base, tmp_path / "none", experts="all"), experts=True, say=lambda _: None)
    shown, use = render(found, Look(blocks=False)), found.experts
    for layer in (1, 2):
        assert (
            f"layer {layer}: entropy {use.entropy(layer):.3f}; the most used cover 1: {use.covered(1, layer):.0%}, 2:"
            in shown
        )
        busiest = use.most_used(1, layer)[0]
        assert f"  {busiest:>4}  " in shown and f"{use.counts[layer][busiest]:,}" in shown
    given = ["inspect", "--model", str(base[0]), "--data", str(base[1]), "--experts", "--json"]
    assert main.run(given) == 0
    assert json.loads(capsys.readouterr().out)["experts"] == found.as_dict()["experts"] == use.as_dict()
    assert halter.inspect(recipe(base, tmp_path / "none", experts="all"), say=lambda _: None).experts is None
