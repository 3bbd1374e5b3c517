"""A whole Llama 4 against transformers on random weights: pictures among the text, cut anyhow, adapted anywhere."""

from __future__ import annotations

import json
from dataclasses import replace

import bounds
import pytest
import tiny
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tiny_llama4 import (
    LEAD,
    config,
    least_lead,
    logits,
    made,
    peer,
    peers_logits,
    picture,
    pixels_of,
    row,
    segments_of,
    state_of,
    tower,
)
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.adapters.mixed import Mixed
from halter.contract.registry import find, names
from halter.errors import HalterError, Refusal
from halter.export.merge import merge
from halter.methods.full import Full
from halter.methods.lora import Lora
from halter.methods.norm_tuning import NormTuning
from halter.model import llama4_config, llama4_seeing
from halter.model.cache import Cache
from halter.model.decoding import for_decoding
from halter.model.families import read_config
from halter.model.layout import LINEAR, NORM, PARAMETER, TEXT
from halter.model.linear import Linear
from halter.model.llama4_vision import VISION, rotations
from halter.model.passes import Pass
from halter.model.pictures import Picture
from halter.model.places import Act
from halter.model.segments import Segments
from halter.planning.dry import base_bytes, dry_adapter, dry_base
from halter.pretrained.load import load_config, load_model
from halter.pretrained.save import save_model
from halter.training.step import Learnt, one_pass

CONFIG = config()
G = torch.Generator().manual_seed(0)
ROWS = [row(CONFIG, grids, G) for grids in ([(1, 1), (2, 1)], [], [(1, 2)])]
LENGTHS = [len(tokens) for tokens, _ in ROWS]
TOWER = CONFIG.layout.stack(VISION)


def same(got, want, rtol=1e-9, atol=1e-9):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def moved(model, seed=1, method="lora", **options):
    options = {"r": 2, "alpha": 6.0} | options if method == "lora" else options
    adapter = adapt(model, method, seed=seed, **options)
    tiny.jitter(adapter, seed=seed)
    return adapter


def shifted(pictures, by):
    """The pictures of a row as a later pass has them, that begins ``by`` tokens on."""
    return tuple(replace(one, start=one.start - by) for one in pictures or ()) or None


shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(2, 4),
        "step": st.sampled_from([1, 2]),
        "chunk": st.integers(4, 16),
        "experts": st.integers(2, 8),
        "seen": st.builds(
            lambda layers, heads, patch, side, fold, out: tower(
                layers=layers,
                heads=heads,
                dim=16,
                ffn_dim=16 * fold**2,
                patch=patch,
                image=patch * side * fold,
                fold=fold,
                out_dim=out,
            ),
            st.integers(1, 3),
            st.sampled_from([1, 2, 4]),
            st.integers(1, 3),
            st.integers(1, 2),
            st.integers(1, 3),
            st.sampled_from([8, 24]),
        ),
    }
)
pictures_of_rows = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), max_size=3)


@pytest.mark.parametrize("examples", [14, pytest.param(200, marks=pytest.mark.nightly)])
def test_logits_equal_transformers_whole_and_token_by_token(examples):
    """fp32 within 1e-4 over the shapes, tiles and pictures, where no router's choice hangs on rounding; then again with
    the row cut in two anywhere and the rest token by token."""
    drawn, left, worst = [0], [0], [0.0, 0.0]

    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate]
    )  # the shapes are small as drawn
    @given(shapes, pictures_of_rows, st.integers(0, 99))
    def check(sizes, grids, seed):
        shape, generator = config(**sizes), torch.Generator().manual_seed(seed)
        model, one = made(shape, torch.float32, seed), row(shape, grids, generator, words=4)
        want, lead = peers_logits(peer(model), one, torch.float32)
        drawn[0] += 1
        if lead < LEAD:
            left[0] += 1
            return
        with torch.no_grad():
            (got,) = logits(model, [one])
            first = int(torch.randint(1, len(one[0]), (1,), generator=generator))
            piecewise = in_pieces(model, one, [first, *[1] * min(12, len(one[0]) - first)])
        worst[0] = max(worst[0], float((got - want[0]).abs().max()))
        worst[1] = max(worst[1], float((piecewise - want[0, : len(piecewise)]).abs().max()))
        assert float(want.abs().max()) > 0.5 and max(worst) < 1e-4

    check()
    print(f"largest differences {worst[0]:.2g}, {worst[1]:.2g}; {left[0]} of {drawn[0]} draws left out")
    assert left[0] <= drawn[0] // 4


def in_pieces(model, one, counts, adapter=None):
    """The logits of one row that is read into a cache in pieces of so many tokens."""
    cache, done, parts = Cache(model.config, 1, sum(counts), model.dtype), 0, []
    for count in counts:
        segments = replace(cache.segments([count]), features=[shifted(one[1], done)])
        acts = None if adapter is None else adapter.bind(model, segments)
        asked = Pass(one[0][done : done + count], segments, acts, cache)
        parts.append(model.head(model.hidden(asked), acts))
        done += count
    return torch.cat(parts)


@torch.no_grad()
def test_a_picture_may_be_cut_anywhere_and_a_tile_goes_through_the_tower_where_it_is_seen():
    """Pieces of five tokens cut tiles and separators; with memory and virtual tokens ahead as well."""
    model = made(CONFIG)
    one, whole = ROWS[0], LENGTHS[0]
    counts = [5] * (whole // 5) + [whole % 5] * (whole % 5 > 0)
    for method in (None, "prefix_tuning", "prompt_tuning", "lora"):
        adapter = None if method is None else moved(model, method=method)
        same([in_pieces(model, one, counts, adapter)], logits(model, [one], adapter), 1e-6, 1e-6)
    seen = []
    hook = model.layers[TOWER[1]].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    in_pieces(model, one, [3, whole - 3])
    in_pieces(model, (ROWS[1][0], None), [1] * LENGTHS[1])
    hook.remove()
    assert seen == [4 * 17]  # four tiles of 16 patches and a class token, in the piece that has them


@torch.no_grad()
def test_packed_rows_are_rows_alone_and_a_row_goes_on_from_anothers_end():
    model = made(CONFIG)
    alone = [logits(model, [one])[0] for one in ROWS]
    same(logits(model, ROWS), alone)
    blind = logits(model, [(tokens, None) for tokens, _ in ROWS])
    assert float((blind[0] - alone[0]).abs().max()) > 1e-3 and torch.equal(blind[0][:5], logits(model, ROWS)[0][:5])
    same([blind[1]], [alone[1]])
    # The second row begins where the first ends, in the middle of a picture of its own.
    cut = 11
    first, second = (ROWS[0][0][:cut], ROWS[0][1]), (ROWS[0][0][cut:], shifted(ROWS[0][1], cut))
    rows = [first, ROWS[2], second]
    shared = segments_of(rows, continues=[None, None, 0])
    got = logits(model, rows, segments=shared)
    same([torch.cat((got[0], got[2]))], [alone[0]])
    # What the first layer makes of them, as a run keeps it, has its pictures.
    asked = Pass(torch.cat([tokens for tokens, _ in ROWS]), segments_of(ROWS))
    entered = (1, model.hidden(replace(asked, stop=1)))
    same([model.head(model.hidden(replace(asked, entered=entered)))], [torch.cat(alone)])
    tokens = torch.tensor([2, 9, LENGTHS[0] - 1])
    part = model.head(model.hidden(Pass(torch.cat([one for one, _ in ROWS]), segments_of(ROWS), wanted=tokens)))
    same([part], [torch.cat(alone)[tokens]])


@torch.no_grad()
def test_pictures_that_are_not_their_grids_are_refused():
    model, (tokens, seen) = made(CONFIG), ROWS[0]
    for wrong in (
        replace(seen[0], tiles=seen[0].tiles.repeat(2, 1, 1, 1)),
        replace(seen[0], tiles=seen[0].tiles[..., 1:]),
        replace(seen[1], length=seen[1].length + 1),
        replace(seen[1], grid=(1, 1)),
    ):
        with pytest.raises(ValueError, match="tiles has"):
            logits(model, [(tokens, (wrong,))])


def test_the_towers_rotation_turns_by_column_and_row():
    """cos and sin of (column + 1) f and (row + 1) f, f = theta^(-2i / (head_dim / 2)), nothing for the class token."""
    shape = tower(heads=2, dim=16, image=6, patch=2, theta=50.0, fold=1, ffn_dim=16)
    cosine, sine = rotations(shape, 2, torch.device("cpu"))
    assert cosine.shape == sine.shape == (20, 1, 4)
    for tile in range(2):
        for at in range(9):
            line, column = divmod(at, 3)
            angle = torch.tensor([(edge + 1) * 50.0 ** (-i / 2) for edge in (column, line) for i in range(2)])
            torch.testing.assert_close(cosine[10 * tile + at, 0], angle.cos(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(sine[10 * tile + at, 0], angle.sin(), rtol=1e-5, atol=1e-6)
        assert torch.equal(cosine[10 * tile + 9, 0], torch.ones(4)) and not sine[10 * tile + 9].any()


# Adapters


def test_gradients_of_lora_are_those_of_transformers():
    """At every linear place of tower, projector and text, through autograd in transformers' own model; recomputed and
    streamed they are the same to the bit."""
    model, one = made(CONFIG), row(CONFIG, [(1, 1), (1, 2)], torch.Generator().manual_seed(3))
    adapter = moved(model)
    other = peer(model).requires_grad_(False)
    weights, pairs = dict(other.named_parameters()), {}
    for slot in adapter.slots:
        a, b = (getattr(slot.piece, name).detach().double().requires_grad_() for name in ("a", "b"))
        pairs[slot.path] = (a, b)
        weights[f"{slot.path}.weight"] = weights[f"{slot.path}.weight"] + 6.0 / 2 * b @ a
    given_ = {"input_ids": one[0][None], "pixel_values": pixels_of([one], torch.float64)}
    theirs = torch.func.functional_call(other, weights, (), given_).logits[0]
    weigh = torch.randn(theirs.shape, dtype=torch.float64, generator=G)
    (theirs * weigh).sum().backward()
    assert {slot.at.group for slot in adapter.slots} == {"language", "vision", "projector"}
    grads, times = [], dict.fromkeys(("plain", "recomputed", "streamed"), 0)
    for way in times:
        if way == "streamed":
            model.stream_layers()
        adapter.zero_grad()
        heard = model.layers[TOWER[1]].register_forward_pre_hook(lambda *_: times.update({way: times[way] + 1}))  # noqa: B023
        (ours,) = logits(model, [one], adapter, checkpointing=way != "plain")
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        (ours * weigh).sum().backward()
        heard.remove()
        grads.append([parameter.grad.clone() for parameter in adapter.parameters()])
    assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(*grads, strict=True))
    assert times == {"plain": 1, "recomputed": 2, "streamed": 2}
    for slot in adapter.slots:
        for name, want in zip(("a", "b"), pairs[slot.path], strict=True):
            got, most = getattr(slot.piece, name).grad, float(want.grad.abs().max())
            assert most > 0, slot.path
            torch.testing.assert_close(got.double(), want.grad, rtol=1e-4, atol=1e-4 * most, msg=slot.path)


def test_a_step_learns_what_the_whole_pass_says():
    model = made(CONFIG)
    adapter = moved(model)
    tokens, segments = torch.cat([one for one, _ in ROWS]), segments_of(ROWS)
    index = torch.arange(len(tokens) - 1)
    learnt = Learnt(index, tokens[1:], torch.ones(len(index)))
    each = one_pass(model, tokens, segments, adapter.bind(model, segments), learnt, checkpointing=True)
    want = -torch.cat(logits(model, ROWS, adapter)).log_softmax(-1)[index, tokens[1:]]
    torch.testing.assert_close(each.double(), want.detach(), rtol=1e-5, atol=1e-5)
    got = [parameter.grad for parameter in adapter.parameters()]
    for one, other in zip(got, torch.autograd.grad(want.sum(), list(adapter.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", [{"r": 3, "alpha": 9.0}, {"method": "full"}, {"method": "prompt_tuning"}], ids=["lora", "full", "prompt"]
)
def test_rows_of_one_batch_have_their_own_adapters_in_the_tower_too(kind):
    model = made(CONFIG)
    one, other = moved(model, 1), moved(model, 2, **kind)
    for owners in ([0, 1, -1], [1, 0, 1], [-1, -1, 0]):
        alone = [logits(model, ROWS, {0: one, 1: other, -1: None}[owner])[at] for at, owner in enumerate(owners)]
        same(logits(model, ROWS, Mixed([one, other], owners)), alone, 1e-7, 1e-7)


def paths(adapter):
    return {slot.path for slot in adapter.slots}


def test_parts_of_the_model_are_chosen_by_their_names():
    model = made(CONFIG)
    places = list(CONFIG.layout)
    of = {group: {p.path for p in places if p.group == group and p.kind == LINEAR} for group in CONFIG.layout.groups}
    assert list(of) == ["language", "vision", "projector"]
    assert (
        "vision_model.patch_embedding.linear" in of["vision"] and "vision_model.vision_adapter.mlp.fc1" in of["vision"]
    )
    assert of["projector"] == {"multi_modal_projector.linear_1"}
    assert all(path.startswith("language_model.model.layers.") for path in of["language"])
    for group, wanted in of.items():
        assert paths(adapt(model, "lora", r=2, target_modules=group)) == wanted
        assert paths(adapt(model, "lora", r=2, exclude_modules=[group])) == set().union(*of.values()) - wanted
    assert paths(adapt(model, "lora", r=2, target_modules=["projector", "o_proj"])) == of["projector"] | {
        path for path in set().union(*of.values()) if path.endswith("o_proj")
    }
    assert paths(adapt(model, "lora", r=2, target_modules=r"vision_model\.model\.layers\.1\..*fc\d")) == {
        f"vision_model.model.layers.1.mlp.fc{n}" for n in (1, 2)
    }
    tuned = adapt(model, "norm_tuning", target_modules=["vision"])
    assert paths(tuned) == {p.path for p in places if p.kind == NORM and p.group == VISION}
    assert tuned.num_trainable == 2 * 16 * 6  # weights and biases
    whole = adapt(model, "full", target_modules=["vision"])
    held = [p for p in places if p.group == VISION and p.shape]
    assert paths(whole) == {p.path for p in held} and {p.kind for p in held} == {LINEAR, NORM, PARAMETER}
    assert whole.num_trainable == sum(t.numel() for n, t in state_of(model).items() if n.startswith("vision_model"))
    with pytest.raises(Refusal, match="parts of the model: language, vision, projector"):
        adapt(model, "lora", target_modules=["visoin"])


@torch.no_grad()
def test_an_adapter_of_a_part_is_saved_and_read_also_by_peft(tmp_path):
    peft, model = pytest.importorskip("peft"), made(CONFIG, torch.float32)
    adapter = moved(model, target_modules=["vision", "projector"])
    adapter.save(tmp_path / "a")
    stored = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert set(stored["target_modules"]) == paths(adapter)
    again = load_adapter(tmp_path / "a", model)
    got = logits(model, ROWS, adapter)
    assert all(torch.equal(x, y) for x, y in zip(got, logits(model, ROWS, again), strict=True))
    theirs = peft.PeftModel.from_pretrained(peer(model), tmp_path / "a").eval()
    want, _ = least_lead(theirs, input_ids=ROWS[0][0][None], pixel_values=pixels_of(ROWS[:1], torch.float32))
    bounds.assert_same(got[0], want[0])


@pytest.mark.parametrize("name", names())
def test_every_method_acts_or_says_where_it_cannot(name):
    """Those that speak of the text's blocks leave the tower as it is."""
    model = made(CONFIG, torch.float32)
    if find(name)().equipped().looks:
        with pytest.raises(Refusal, match="sees-already"):
            adapt(model, name)
        return
    adapter = adapt(model, name)
    stacks = {CONFIG.layout.blocks[slot.layer].stack for slot in adapter.slots if slot.layer is not None}
    assert adapter.methods[0].every_stack or stacks <= {TEXT}
    with torch.no_grad():
        if adapter.methods[0].starts_as_base:
            for one, other in zip(logits(model, ROWS, adapter), logits(model, ROWS), strict=True):
                bounds.assert_same(one, other)
        tiny.jitter(adapter)
        changed = torch.cat(logits(model, ROWS, adapter)) - torch.cat(logits(model, ROWS))
    assert changed.isfinite().all() and float(changed.abs().max()) > 0


CALLED: list[Act] = []


class Heard(Act):
    def act(self, x, y):
        CALLED.append(self)
        return y


@torch.no_grad()
def test_every_place_of_the_tower_is_called_once_in_the_order_of_its_record():
    model = made(CONFIG)
    bound = moved(model).bind(model, segments_of(ROWS))
    for layer in (*TOWER, *CONFIG.layout.stack("projector")):
        del CALLED[:]
        acts = {name: Heard() for name in model.bare[layer]._fields}
        layers = [type(bare)(**(acts if at == layer else {})) for at, bare in enumerate(model.bare)]
        asked = Pass(torch.cat([one for one, _ in ROWS]), segments_of(ROWS), bound._replace(layers=tuple(layers)))
        model.hidden(asked)
        assert [next(n for n, act in acts.items() if act is one) for one in CALLED] == list(acts)


def test_what_is_bound_in_the_tower_sees_the_rows_of_its_own_tokens():
    model, seen = made(CONFIG), {}
    adapter = moved(model)
    for slot in adapter.slots:
        slot.piece.bind = lambda site, s=slot, bind=slot.piece.bind: (seen.update({s.path: site}), bind(site))[1]
    logits(model, ROWS, adapter, segments_of(ROWS, rows=[7, 3, 5]))
    assert all(site.segments.rows.tolist() == [7, 3, 5] for site in seen.values())
    counts = {path: site.segments.query_lengths.tolist() for path, site in seen.items()}
    assert counts["vision_model.patch_embedding.linear"] == [4 * 16, 0, 3 * 16]
    assert counts["vision_model.model.layers.0.mlp.fc1"] == [4 * 17, 0, 3 * 17]
    assert counts["vision_model.vision_adapter.mlp.fc2"] == counts["multi_modal_projector.linear_1"] == [16, 0, 12]
    assert counts["language_model.model.layers.0.self_attn.q_proj"] == LENGTHS


def test_while_rows_are_decoded_the_tower_has_no_second_copies():
    model = made(CONFIG, torch.float32)
    with for_decoding(model, 1, 100):
        busy = {place.group for place, module in model.places() if isinstance(module, Linear) and module.decoding}
    assert busy == {"language"}


# Folders


def theirs_of(folder, one):
    other = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    return peers_logits(other, one, torch.float32)[0][0]


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_saved_it_is_transformers_and_read_and_merged_it_is_itself(tied, tmp_path):
    shape = config(tied=tied)
    model = made(shape, torch.float32)
    save_model(model, shape, tmp_path / "a")
    assert load_config(tmp_path / "a") == shape
    read = load_model(tmp_path / "a", "float32", device="cpu")
    got = logits(model, ROWS)
    assert all(torch.equal(*pair) for pair in zip(got, logits(read, ROWS), strict=True))
    bounds.assert_same(got[0], theirs_of(tmp_path / "a", ROWS[0]))
    adapter = moved(read)
    merge(read, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", "float32", device="cpu")
    bounds.assert_same(logits(merged, ROWS)[0], logits(read, ROWS, adapter)[0])
    (tmp_path / "a" / "preprocessor_config.json").write_text("{}")
    save_model(read, shape, tmp_path / "again", original=tmp_path / "a")
    assert (tmp_path / "again" / "preprocessor_config.json").is_file()
    blind = replace(read.config, tower=None)
    text = {n.removeprefix("language_model."): t for n, t in state_of(read).items() if n.startswith("language_model.")}
    save_model(text.items(), blind, tmp_path / "text", original=tmp_path / "a")
    assert not (tmp_path / "text" / "preprocessor_config.json").exists()


@torch.no_grad()
def test_what_trains_weights_biases_and_parameters_of_the_tower_merges(tmp_path):
    model = made(CONFIG, torch.float32)
    save_model(model, CONFIG, tmp_path / "a")
    read = load_model(tmp_path / "a", "float32", device="cpu")
    whole = Full(target_modules=["layernorm_pre", "class_embedding", "positional_embedding_vlm", "fc1"])
    adapter = adapt(read, [Lora(r=2, target_modules=["vision"]), whole, NormTuning(target_modules=["layernorm_pre"])])
    tiny.jitter(adapter)
    merge(read, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", "float32", device="cpu")
    bounds.assert_same(logits(merged, ROWS)[0], logits(read, ROWS, adapter)[0])
    for name in ("class_embedding", "layernorm_pre.bias", "positional_embedding_vlm"):
        assert not torch.equal(*(state_of(one)[f"vision_model.{name}"] for one in (merged, read)))


@torch.no_grad()
@pytest.mark.parametrize("place", ["vision_model.model.layers.0.mlp.fc2", "multi_modal_projector.linear_1"])
def test_a_fold_that_is_wrong_in_the_tower_is_no_merge(place, tmp_path, monkeypatch):
    """What is compared on has a picture."""
    model = made(CONFIG, torch.float32)
    adapter = moved(model, target_modules=["vision", "projector"])
    fold = adapter.fold
    wrong = lambda name, weight, bias: (weight * 1.5, bias) if name == place else fold(name, weight, bias)  # noqa: E731
    monkeypatch.setattr(adapter, "fold", wrong)
    with pytest.raises(HalterError, match="merge gap"):
        merge(model, adapter, tmp_path / "merged")


@torch.no_grad()
@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_in_few_bits_the_towers_linear_layers_are_quantised_and_nothing_else_there(how, tmp_path):
    save_model(made(CONFIG, torch.float32), CONFIG, tmp_path / "base")
    small = load_model(tmp_path / "base", "float32", how, "cpu")
    held = {p.path for p, module in small.places() if isinstance(module, Linear) and module.storage == how}
    of_tower = {p.path for p in CONFIG.layout if p.group != "language"}
    assert held & of_tower == {p.path for p in CONFIG.layout.of(LINEAR)} & of_tower
    assert base_bytes(small) == base_bytes(dry_base(CONFIG, torch.float32, how))
    plain = made(CONFIG, torch.float32)
    for place, module in small.places():
        plain.set_tensor(place.weight_name, module.weight().clone())
    for got, want in zip(logits(small, ROWS), logits(plain, ROWS), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert all(part.isfinite().all() for part in logits(small, ROWS, moved(small)))


@torch.no_grad()
def test_what_transformers_quantises_with_bitsandbytes_is_read(tmp_path):
    shape = config(dim=64, ffn_dim=64, dense_dim=64, head_dim=16, seen=tower(dim=64, ffn_dim=256, out_dim=64))
    save_model(made(shape, torch.float32), shape, tmp_path / "16")
    rule = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "16", quantization_config=rule, device_map="cpu")
    theirs.save_pretrained(tmp_path / "4")
    read = load_model(tmp_path / "4", "float32", device="cpu")
    own = load_model(tmp_path / "16", "float32", "nf4", "cpu", double_quant=False)
    for (place, one), (_, other) in zip(read.places(), own.places(), strict=True):
        if place.kind == LINEAR:
            assert type(one) is type(other), place.path
            torch.testing.assert_close(one.weight(), other.weight(), rtol=1e-6, atol=1e-7)


def test_the_published_sizes_have_their_parameters():
    for name, total in (("llama-4-scout", 108_641_793_536), ("llama-4-maverick", 401_583_781_376)):
        shape = llama4_seeing.published(name)
        assert shape.num_parameters == total and read_config(shape.to_hf()) == shape
        parts = dict.fromkeys(shape.layout.groups, 0)
        for place in shape.layout:
            parts[place.group] += sum(size.numel() for size in place.tensors().values())
        assert (parts["vision"], parts["projector"]) == (850_960_896, 20_971_520)
        assert parts["language"] == llama4_config.published(name).num_parameters
        assert base_bytes(dry_base(shape, torch.bfloat16, None)).total == 2 * total
    assert dry_adapter(CONFIG, [Lora(r=2)]).num_trainable == moved(made(CONFIG)).num_trainable


STRANGE = (None, -1, 0, 1.5, "x", True, [], {}, [1], [None], 10**5000, [[[]]], {"a": 1})
VISION_KEYS = [*CONFIG.tower.to_hf(), "boi_token_index", "image_token_index", "tile_x_token_index", "vision_config"]


def test_whatever_a_config_says_of_the_tower_it_is_read_or_refused():
    stored = CONFIG.to_hf()
    for key in VISION_KEYS:
        for value in STRANGE:
            said = {**stored, "vision_config": dict(stored["vision_config"])}
            (said["vision_config"] if key in said["vision_config"] else said)[key] = value
            try:
                shape = read_config(said)
            except Refusal as refusal:
                assert refusal.id == "model-unsupported" and refusal.found
            else:
                assert shape.layout.blocks and (shape.tower is None) == (said["vision_config"] is None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_act": "relu", "num_channels": 1}, ["hidden_act 'relu'", "num_channels 1"]),
        ({"pixel_shuffle_ratio": 0.4}, ["pixel_shuffle_ratio 0.4"]),
        ({"num_attention_heads": 3}, ["3 heads of hidden_size 16"]),
        ({"image_size": 10}, ["image_size 10 in patches of 2"]),
        ({"intermediate_size": 32}, ["intermediate_size 32, and 64"]),
        ({"vision_output_dim": 7}, ["vision_output_dim 7, and projector_output_dim 24"]),
    ],
    ids=str,
)
def test_a_tower_that_is_not_computed_is_refused_with_all_that_is_wrong(changes, told):
    stored = CONFIG.to_hf()
    stored["vision_config"] |= changes
    stored["text_config"] |= {"floor_scale": 0}
    with pytest.raises(Refusal) as refused:
        read_config(stored, "here")
    assert refused.value.id == "model-unsupported"
    for part in [*told, "floor_scale 0"]:
        assert any(part in one for one in refused.value.found), refused.value.found


def test_a_vocabulary_without_tokens_for_pictures_takes_none():
    text = CONFIG.to_hf()["text_config"]
    assert read_config(CONFIG.to_hf() | {"text_config": text | {"vocab_size": 93}}).pictures is not None
    assert read_config(CONFIG.to_hf() | {"text_config": text | {"vocab_size": 92}}).pictures is None


def test_features_without_pictures_change_nothing():
    model, segments = made(CONFIG), Segments.packed([LENGTHS[1]])
    plain = model.head(model.hidden(Pass(ROWS[1][0], segments)))
    assert torch.equal(plain, logits(model, ROWS[1:2])[0])
    past: Picture = picture(CONFIG, (1, 1), -99, G)
    assert torch.equal(plain, logits(model, [(ROWS[1][0], (past,))])[0])
