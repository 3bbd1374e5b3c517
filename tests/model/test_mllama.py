"""Llama 3.2 Vision against transformers on random weights, its two departures from Meta's corrected or reproduced."""

from __future__ import annotations

from dataclasses import replace

import bounds
import pytest
import seeing_mllama as tinies
import tiny
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from seeing_mllama import PICTURE, config, logits, made, packed, peer, row_of, seen_by_theirs

from halter.adapters.adapter import adapt
from halter.adapters.mixed import Mixed
from halter.model.cache import Cache
from halter.model.mllama_tower import PROJECTOR, TOWER
from halter.model.passes import Pass
from halter.model.pictures import canvases
from halter.model.rotation import RopeScaling
from halter.model.segments import Segments
from halter.pretrained.digest import digest_model
from halter.training.step import Learnt, one_pass

CONFIG = config()
ROWS = [
    row_of(CONFIG, 9, [(2, (1, 2), 1)], 1),
    row_of(CONFIG, 5, [], 2),
    row_of(CONFIG, 12, [(1, (2, 2), 2), (2, (1, 1), 3), (6, (1, 2), 1)], 3),
    row_of(CONFIG, 7, [(0, (3, 1), 4), (6, (1, 1), 5)], 4),
]
LENGTHS = [len(tokens) for tokens, _ in ROWS]


def same(got, want, rtol=1e-9, atol=1e-9):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def moved(model, seed=1, method="lora", **options):
    options = {"r": 2, "alpha": 6.0} | options if method == "lora" else options
    adapter = adapt(model, method, seed=seed, **options)
    tiny.jitter(adapter, seed=seed)
    return adapter


@st.composite
def cases(draw, most_rows=3):
    """(a shape, rows of it as ``row_of`` takes them): tiles, pictures and where they stand, blocks, groups of heads."""
    layers, vision = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    tiles = draw(st.sampled_from([1, 2, 4, 4]))
    shape = config(
        layers=layers,
        cross_layers=tuple(sorted(draw(st.sets(st.integers(0, layers - 1), min_size=1, max_size=3)))),
        kv_heads=draw(st.sampled_from([1, 2, 4])),
        vision_layers=vision,
        vision_global_layers=draw(st.integers(1, 2)),
        vision_heads=draw(st.sampled_from([1, 2, 4])),
        tapped=tuple(sorted(draw(st.sets(st.integers(0, vision - 1), min_size=1, max_size=3)))),
        tile=draw(st.sampled_from([14, 28, 42])),
        max_tiles=tiles,
        rope_scaling=draw(st.sampled_from([None, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)])),
    )
    rows = []
    for number in range(draw(st.integers(1, most_rows))):
        length = draw(st.integers(1, 14))
        places = sorted(draw(st.sets(st.integers(0, length - 1), max_size=min(3, length))))
        own = [(at, draw(st.sampled_from(canvases(tiles))), draw(st.integers(0, 3))) for at in places]
        rows.append((length, own, number))
    return shape, rows


@torch.no_grad()
def compare(shape, rows, seed, corrected):
    """The largest difference from transformers' logits, each of its rows going alone."""
    model = made(shape, torch.float32, seed)
    other, off = peer(model, corrected), 0.0
    for row, got in zip(rows, logits(model, rows), strict=True):
        want = other(**seen_by_theirs(shape, row, torch.float32)).logits[0]
        assert float(want.abs().max()) > 0.3
        off = max(off, float((got - want).abs().max()))
    assert off < 1e-4, off
    return off


@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "as it is"])
def test_logits_equal_transformers(corrected, examples):
    """fp32 within 1e-4 over the shapes; of transformers as it is where the switch says so."""
    worst = [compare(config(as_transformers=not corrected), ROWS, 0, corrected)]

    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate])
    @given(cases(), st.integers(0, 99))
    def check(case, seed):
        shape, rows = case
        rows = [row_of(shape, *row) for row in rows]
        worst[0] = max(worst[0], compare(replace(shape, as_transformers=not corrected), rows, seed, corrected))

    check()
    print(f"largest difference {worst[0]:.2g}")


@torch.no_grad()
def test_what_transformers_computes_otherwise_is_seen():
    """Both departures matter on their own; the switch takes both."""
    rows, plain = ROWS[:1], made(CONFIG)
    want = logits(plain, rows)[0]
    assert float((logits(made(config(as_transformers=True)), rows)[0] - want).abs().max()) > 1e-2
    ahead = want[:2]  # tokens that see no picture are what they are without any
    blank = logits(plain, [(rows[0][0], ())])[0]
    same([ahead], [blank[:2]])
    assert float((want[2:] - blank[2:]).abs().max()) > 1e-2


@torch.no_grad()
def test_without_pictures_blocks_with_cross_attention_do_nothing():
    model = made(CONFIG)
    blind = [(tokens, ()) for tokens, _ in ROWS]
    segments = Segments.packed(LENGTHS)
    asked = Pass(torch.cat([tokens for tokens, _ in ROWS]), segments)
    with_none = model.head(model.hidden(asked)).split(LENGTHS)
    same(with_none, logits(model, blind))
    for layer in CONFIG.cross_layers:
        model.layers[layer].o_proj.matrix.fill_(float("nan"))
        model.layers[layer].down_proj.matrix.fill_(float("nan"))
    same(logits(model, blind), with_none)
    other = peer(made(CONFIG))
    same(logits(made(CONFIG), blind), [other(row[0][None]).logits[0] for row in blind], 1e-5, 1e-5)


def steps_of(model, rows, counts, adapter=None):
    """Each row's logits, ``counts`` of its tokens a pass (the last count again and again), pictures with their pass."""
    cache = Cache(model.config, len(rows), 4, model.dtype)
    got, done, number = [[] for _ in rows], [0] * len(rows), 0
    while any(done[r] < len(rows[r][0]) for r in range(len(rows))):
        asked = counts[min(number, len(counts) - 1)]
        live = [r for r in range(len(rows)) if done[r] < len(rows[r][0])]
        sizes = [min(asked, len(rows[r][0]) - done[r]) for r in live]
        cache.grow(max(done) + asked)
        features = []
        for r, n in zip(live, sizes, strict=True):
            now = [one for one in rows[r][1] if done[r] <= one.start < done[r] + n]
            features.append(tuple(replace(one, start=one.start - done[r]) for one in now) or None)
        segments = replace(cache.segments(sizes, rows=live), features=features)
        acts = None if adapter is None else adapter.bind(model, segments)
        new = torch.cat([rows[r][0][done[r] : done[r] + n] for r, n in zip(live, sizes, strict=True)])
        out = model.head(model.hidden(Pass(new, segments, acts, cache)), acts)
        for r, n, part in zip(live, sizes, out.split(sizes), strict=True):
            got[r].append(part)
            done[r] += n
        number += 1
    return [torch.cat(parts) for parts in got]


@torch.no_grad()
@pytest.mark.parametrize("counts", [[1], [3, 1], [7, 2, 1], [4, 4]], ids=str)
@pytest.mark.parametrize("method", [None, "lora", "prompt_tuning"])
def test_token_by_token_is_the_whole_row(method, counts):
    """Prompts read in pieces, pictures that come later and right after one another, adapters that act everywhere."""
    model = made(CONFIG)
    adapter = None if method is None else moved(model, method=method)
    same(steps_of(model, ROWS, counts, adapter), logits(model, ROWS, adapter), 1e-6, 1e-6)


@torch.no_grad()
def test_transformers_decodes_the_same():
    """Its generated tokens repeat the last row of the mask."""
    for row in (ROWS[0], ROWS[2]):
        model, first = made(CONFIG, torch.float32), 8
        other, given_ = peer(model), seen_by_theirs(CONFIG, row, torch.float32)
        mask = given_.pop("cross_attention_mask")
        tokens = given_.pop("input_ids")
        past, got = None, []
        for start, end in [(0, first), *((at, at + 1) for at in range(first, tokens.shape[1]))]:
            new = {"cross_attention_mask": mask[:, min(start, first - 1) : min(end, first)]}
            new |= given_ if past is None else {}
            out = other(input_ids=tokens[:, start:end], past_key_values=past, use_cache=True, **new)
            past = out.past_key_values
            got.append(out.logits[0])
        assert float((torch.cat(got) - steps_of(model, [row], [first, 1])[0]).abs().max()) < 1e-4


@torch.no_grad()
def test_rows_that_go_on_from_anothers_beginning_see_its_pictures():
    model = made(CONFIG)
    (first, own), (rest, _) = row_of(CONFIG, 6, [(1, (1, 2), 1), (5, (1, 1), 2)], 1), ROWS[1]
    whole = logits(model, [(torch.cat((first, rest)), own)])[0]
    late = tinies.picture(CONFIG, (2, 1), 0, 9)  # right after one of the beginning
    both = torch.cat((first, torch.tensor([PICTURE]), rest))
    with_late = logits(model, [(both, (*own, replace(late, start=6)))])[0]
    segments = Segments.packed([6, len(rest), 1 + len(rest)], continues=[None, 0, 0])
    earlier = tuple(replace(one, start=one.start - 6) for one in own)
    for told in ((None, (late,)), (earlier, (*earlier, late))):  # as training tells it, or not at all
        seen = replace(segments, features=[own, *told])
        tokens = torch.cat((first, rest, torch.tensor([PICTURE]), rest))
        got = model.head(model.hidden(Pass(tokens, seen))).split([6, len(rest), 1 + len(rest)])
        same(got, [whole[:6], whole[6:], with_late[6:]])


@torch.no_grad()
def test_a_copied_row_has_the_pictures_of_what_was_copied():
    model = made(CONFIG)
    (tokens, own), (more, _) = ROWS[2], ROWS[1]
    cache = Cache(CONFIG, 3, 20, torch.float64)
    model.hidden(Pass(tokens, replace(cache.segments([12], rows=[0]), features=[own]), cache=cache))
    for row, length in ((1, 4), (2, 12)):
        cache.copy(0, [row], length)
        step = model.head(model.hidden(Pass(more, cache.segments([len(more)], rows=[row]), cache=cache)))
        again = torch.cat((tokens[:length], more)), tuple(one for one in own if one.start < length)
        same([step], [logits(model, [again])[0][length:]])
    kept = cache.beside[CONFIG.cross_layers[0]]
    assert kept[2][0].k is kept[0][0].k  # one tensor for all rows
    for layer in CONFIG.cross_layers:  # a taker that does without brings the beginning's pictures itself
        cache.beside[layer].pop(1)
    cache.copy(0, [1], 4)
    for layer in CONFIG.cross_layers:
        cache.beside[layer].pop(1)
    early = tuple(replace(one, start=one.start - 4) for one in own if one.start < 4)
    segments = replace(cache.segments([len(more)], rows=[1]), features=[early])
    step = model.head(model.hidden(Pass(more, segments, cache=cache)))
    again = torch.cat((tokens[:4], more)), tuple(one for one in own if one.start < 4)
    same([step], [logits(model, [again])[0][4:]])
    cache.truncate(0, 0)
    step = model.head(model.hidden(Pass(more, cache.segments([len(more)], rows=[0]), cache=cache)))
    same([step], [logits(model, [(more, ())])[0]])


@torch.no_grad()
def test_a_picture_is_computed_once_for_all_rows_and_steps():
    model, seen = made(CONFIG), {}
    for layer in (*CONFIG.cross_layers, *model.layout.stack(TOWER)[1:2], *model.layout.stack(PROJECTOR)):
        module = model.layers[layer]
        part = module.projector if layer == model.layout.stack(PROJECTOR)[0] else module.k_proj
        part.register_forward_pre_hook(lambda _, args, layer=layer: seen.setdefault(layer, []).append(len(args[0])))
    asked = [row_of(CONFIG, 6, [(1, (1, 2), 1)], n) for n in range(3)]
    tile, whole = CONFIG.tile_tokens, CONFIG.max_tiles * CONFIG.padded_tokens
    want = logits(model, asked)
    tower, projector = model.layout.stack(TOWER)[1], model.layout.stack(PROJECTOR)[0]
    crossing = CONFIG.cross_layers
    assert seen == {tower: [whole], projector: [2 * tile]} | {layer: [2 * tile] for layer in crossing}
    seen.clear()
    same(steps_of(model, asked, [4, 1]), want)
    assert seen == {tower: [whole], projector: [2 * tile]} | {layer: [2 * tile] for layer in crossing}
    seen.clear()
    logits(model, asked, moved(model, target_modules=r"language_model.*self_attn.*"))
    assert all(counts in ([whole], [2 * tile]) for counts in seen.values())
    seen.clear()
    logits(model, asked, moved(model, target_modules=["language_model.model.layers.1.cross_attn.k_proj"]))
    assert seen[tower] == [whole] and seen[projector] == [2 * tile] and seen[crossing[0]] == [6 * tile]
    seen.clear()
    logits(model, asked, moved(model, target_modules="vision"))
    assert seen[tower] == [3 * whole] and seen[crossing[0]] == [6 * tile]


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2, 3, 4])  # either kind of block as the last one
@pytest.mark.parametrize("method", [None, "lora"])
def test_only_what_is_wanted_leaves_the_last_layer(layers, method):
    model = made(config(layers=layers, cross_layers=(1, 3)[: layers // 2] or (0,)))
    adapter = None if method is None else moved(model)
    wanted = torch.tensor([1, 2, 5, 13, 14, 25, 27])
    segments = packed(ROWS)
    acts = None if adapter is None else adapter.bind(model, segments)
    tokens = torch.cat([tokens for tokens, _ in ROWS])
    part = model.head(model.hidden(Pass(tokens, segments, acts, wanted=wanted)), acts)
    same([part], [torch.cat(logits(model, ROWS, adapter))[wanted]])


# Adapters


def folded(model, adapter, leaves):
    """transformers' weights with s B A in them, a function of the pairs ``leaves``."""
    state = {tinies.in_memory(name): getattr(module, buffer) for name, module, buffer in model.tensors()}
    for slot, (a, b) in zip(adapter.slots, leaves, strict=True):
        name = tinies.in_memory(f"{slot.path}.weight")
        state[name] = state[name] + 6.0 / 2 * b @ a
    return state


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_lora_are_autograds_through_transformers(checkpointing):
    """In the text's blocks of both kinds, the projector and the tower."""
    model = made(CONFIG)
    adapter = moved(model)
    assert {slot.at.group for slot in adapter.slots} == {"language", "cross", "vision", "projector"}
    before = digest_model(model)
    torch.cat(logits(model, adapter=adapter, rows=ROWS, checkpointing=checkpointing)).square().mean().backward()
    assert digest_model(model) == before
    leaves = [(s.piece.a.detach().double(), s.piece.b.detach().double()) for s in adapter.slots]
    leaves = [tuple(t.requires_grad_() for t in pair) for pair in leaves]
    other, state = peer(model), folded(model, adapter, leaves)
    want = []
    for row in ROWS:
        given_ = seen_by_theirs(CONFIG, row, torch.float64)
        want.append(torch.func.functional_call(other, state, args=(), kwargs=given_).logits[0])
    with torch.no_grad():
        same(logits(model, ROWS, adapter), want, 1e-5, 1e-5)
    torch.cat(want).square().mean().backward()
    for slot, (a, b) in zip(adapter.slots, leaves, strict=True):
        for got, exact in ((slot.piece.a.grad, a.grad), (slot.piece.b.grad, b.grad)):
            assert float(exact.abs().max()) > 0, slot.path
            torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", [{"r": 3, "alpha": 9.0}, {"method": "prompt_tuning"}, {"method": "norm_tuning"}], ids=str
)
def test_rows_of_one_batch_have_their_own_adapters(kind):
    model = made(CONFIG)
    one, other = moved(model, 1), moved(model, 2, **kind)
    for owners in ([0, 1, -1, 0], [1, 0, 0, -1], [-1, 1, 1, 1]):
        alone = [logits(model, ROWS, {0: one, 1: other, -1: None}[owner])[row] for row, owner in enumerate(owners)]
        same(logits(model, ROWS, Mixed([one, other], owners)), alone, 1e-7, 1e-7)
        same(steps_of(model, ROWS, [12], Mixed([one, other], owners)), alone, 1e-6, 1e-6)


@torch.no_grad()
def test_rows_with_one_picture_and_their_own_adapters_have_their_own_keys():
    model = made(CONFIG)
    rows = [row_of(CONFIG, 6, [(1, (1, 2), 1)], n) for n in range(3)]
    one, other = moved(model, 1, target_modules="vision"), moved(model, 2, target_modules="cross")
    for owners in ([0, -1, 1], [-1, 1, -1]):
        alone = [logits(model, rows, {0: one, 1: other, -1: None}[owner])[row] for row, owner in enumerate(owners)]
        same(logits(model, rows, Mixed([one, other], owners)), alone, 1e-7, 1e-7)


def test_a_step_learns_what_the_whole_pass_says():
    model = made(CONFIG)
    adapter = moved(model)
    tokens, segments = torch.cat([tokens for tokens, _ in ROWS]), packed(ROWS)
    index = torch.tensor([i for i in range(len(tokens) - 1) if tokens[i + 1] != PICTURE])
    learnt = Learnt(index, tokens[index + 1], torch.ones(len(index)))
    each = one_pass(model, tokens, segments, adapter.bind(model, segments), learnt, checkpointing=True)
    want = -torch.cat(logits(model, ROWS, adapter)).log_softmax(-1)[index, tokens[index + 1]]
    torch.testing.assert_close(each.double(), want.detach(), rtol=1e-5, atol=1e-5)
    got = [parameter.grad for parameter in adapter.parameters()]
    for one, exact in zip(got, torch.autograd.grad(want.sum(), list(adapter.parameters())), strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


def test_streamed_and_computed_again_it_has_the_same_gradients():
    grads = []
    for streamed in (False, True):
        model = made(CONFIG)
        if streamed:
            model.stream_layers()
        adapter = moved(model)
        torch.cat(logits(model, ROWS, adapter, checkpointing=streamed)).square().mean().backward()
        grads.append([parameter.grad for parameter in adapter.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@torch.no_grad()
def test_in_16_bits_it_is_near_what_it_is_in_32():
    wide, narrow = made(CONFIG, torch.float32), made(CONFIG, torch.bfloat16)
    want, got = torch.cat(logits(wide, ROWS)), torch.cat(logits(narrow, ROWS)).float()
    assert got.isfinite().all() and float((got - want).abs().mean()) < 0.05 * float(want.abs().max())
    bounds.assert_same(torch.cat(steps_of(wide, ROWS, [5, 1])), want)


@pytest.mark.parametrize(
    "wrong",
    [{"start": 9}, {"length": 2}, {"grid": (2, 2)}, {"tiles": torch.zeros(2, 3, 14, 14)}],
    ids=str,
)
def test_a_picture_of_another_kind_is_told(wrong):
    tokens, (own,) = ROWS[0]
    with pytest.raises(ValueError, match="picture"):
        logits(made(CONFIG), [(tokens, (replace(own, **wrong),))])
