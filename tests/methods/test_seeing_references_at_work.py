"""Methods by which a LLaMA of text sees, beside their float64 references, as they are used: in steps with a cache,
by the engine, over a base in bfloat16, before anything is learned; and how much of them is trained."""

from __future__ import annotations

from dataclasses import replace

import bounds
import pytest
import seeing
import seeing_rows as cases
import torch
from seeing_rows import CASES, FIVE, Case

from halter.adapters.adapter import Adapter
from halter.encoders.config import EncoderConfig
from halter.errors import Refusal
from halter.generation.engine import Engine
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.methods.excitor import Excitor
from halter.methods.llama_adapter import LlamaAdapter
from halter.methods.llama_adapter_v2 import LlamaAdapterV2
from halter.methods.projector import ProjectorMethod
from halter.model.cache import Cache
from halter.model.config import preset
from halter.model.passes import Pass
from halter.pictures.seen import features
from halter.text.tokenizer import Tokenizer

USED = [CASES[n] for n in (0, 5, 9, 12, 15, 16)]


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    return cases.eyes(tmp_path_factory.mktemp("encoders"))


def in_steps(model, adapter, rows, size):
    """Logits of all rows, of whose tokens each pass over the cache has ``size`` of a row at most. Every pass is handed
    all pictures of its rows, wherever these stand."""
    each = [cases.made(adapter.sight, row) for row in rows]
    cache = Cache(model.config, len(rows), max(len(tokens) for tokens, _ in each), model.dtype)
    found, at = [[] for _ in rows], 0
    while here := [n for n, (tokens, _) in enumerate(each) if len(tokens) > at]:
        parts = [each[n][0][at : at + size] for n in here]
        shown = [[one.moved(at) for one in each[n][1]] for n in here]
        segments = cache.segments([len(part) for part in parts], here)
        segments = replace(segments, features=features(adapter.sight, shown))
        acts = adapter.bind(model, segments)
        tokens = torch.tensor([token for part in parts for token in part])
        made = model.head(model.hidden(Pass(tokens, segments, acts, cache)), acts).split([len(part) for part in parts])
        for n, own in zip(here, made, strict=True):
            found[n].append(own)
        at += size
    return [torch.cat(parts) for parts in found]


@torch.no_grad()
@pytest.mark.parametrize("case", USED, ids=str)
def test_steps_over_a_cache_are_the_equations_too(case, eyes):
    """Also where a picture's tokens lie in a step before, or in two."""
    eye = eyes[case.family]
    model, adapter = case.built(eye)
    shown, trained = cases.rows(several=case.method == "projector")[1:], cases.saved(adapter)
    wanted = [case.wanted(eye, model, trained, row) for row in shown]
    for size in (3, 1):
        for got, want in zip(in_steps(model, adapter, shown, size), wanted, strict=True):
            bounds.assert_same(got, want)


@torch.no_grad()
@pytest.mark.parametrize("case", USED, ids=str)
def test_what_the_engine_answers_is_by_the_equations(case, eyes, tmp_path):
    """Prompts of different pictures and none, beside each other and beside the base, some beginning alike."""
    eye, tokenizer = eyes[case.family], Tokenizer.from_folder(seeing.folder(tmp_path))
    case = replace(case, shape=(*case.shape, ("vocab_size", tokenizer.vocab_size)))
    model, adapter = case.built(eye)
    head = cases.drawn(18, 1)
    asked = [cases.Row((*head[:3], -1, *head[3:], 40 + n), (n % 2,)) for n in range(4)] + [cases.Row((*head, 40))]
    prompts = [EncodedPrompt(tuple(tokens), True, (), pictures)
               for tokens, pictures in (cases.made(adapter.sight, row) for row in asked)]  # fmt: skip
    options = GenerationOptions(max_new_tokens=3, ignore_stop_ids=True, logprobs=0)
    trained, results = cases.saved(adapter), []
    for tokens in (5, 1000):
        engine = Engine(model, tokenizer, rows=4, tokens=tokens)
        requests = [Request(prompt, options, adapter) for prompt in prompts]
        results.append({one.row: one.result for one in engine.run(requests) if one.result})
    for n, row in enumerate(asked):
        answers = [found[n] for found in results]
        whole = case.wanted(eye, model, trained, replace(row, tokens=(*row.tokens, *answers[0].tokens)))
        want = whole[-4:-1].log_softmax(-1)
        for answer in answers:
            assert answer.tokens == tuple(want.argmax(-1).tolist())
            told = torch.tensor([one.logprob for one in answer.logprobs], dtype=torch.float64)
            assert float((told - want.amax(-1)).abs().max()) < bounds.PROMISE * float(whole.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if case.method != "projector"], ids=str)
def test_before_anything_is_learned_it_is_the_base_to_the_bit(case, eyes):
    for dtype in (torch.float32, torch.bfloat16):
        model, adapter = case.built(eyes[case.family], dtype, moved=0.0)
        blind = cases.without(model, cases.rows())
        for got, base in zip(cases.ours(model, adapter, cases.rows()), blind, strict=True):
            assert torch.equal(got, base)


@pytest.mark.parametrize("case", USED, ids=str)
def test_over_a_base_in_bfloat16_what_is_trained_is_computed_in_float32(case, eyes):
    eye = eyes[case.family]
    model, adapter = case.built(eye, torch.bfloat16)
    seen = []
    for module in adapter.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, given, made: seen.extend([given[0].dtype, made.dtype]))
    shown, trained = cases.rows()[:4], cases.saved(adapter)
    found = torch.cat(cases.ours(model, adapter, shown))
    wanted = torch.cat([case.wanted(eye, model, trained, row) for row in shown])
    assert found.dtype == torch.bfloat16 and set(seen) <= {torch.float32} and bool(seen) != (case.method == "excitor")
    assert float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm()) < 0.02
    pull = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (found.double() * pull).sum().backward()
    (wanted * pull).sum().backward()
    for name, tensor in adapter.trainable().items():
        assert tensor.dtype == tensor.grad.dtype == torch.float32
        off = (tensor.grad.double() - trained[name].grad).norm() / trained[name].grad.norm()
        assert float(off) < 0.1, name


LARGE = EncoderConfig(dim=1024, layers=24, heads=16, ffn_dim=4096, image=224, patch=14, projection=768)
FACTS = {"encoder": "ViT-L", "encoder_facts": {"config": vars(LARGE), "digest": "0" * 64}}


def counted(method, name="llama-1-7b"):
    with torch.device("meta"):
        return Adapter(preset(name), [method]).num_trainable


def test_counts_of_what_sees_are_those_of_the_parts():
    """mechanisms 4c, and LLaVA's: sizes of CLIP ViT-L/14 beside LLaMA-7B."""
    d, w, layers, heads = 4096, 768, 31, 32
    one_block = 4 * w + (3 * w * w + 3 * w) + (w * w + w) + (4 * w * w + 4 * w) + (4 * w * w + w)
    assert 8 * one_block == 56_702_976
    sight = 10 * w + (w * w + w) + 2 * w + 8 * one_block + (w * d + d) + 2 * d
    official = sight + layers * 10 * d + 32 * heads  # a gate in the first layer too, which has no prompts
    assert official == 61_731_584 and official - 8 * one_block == 5_028_608
    released = {**FACTS, "scale_side": "none", "adapter_len": 10, "query_len": 10, "fusion": "late"}
    first = counted(LlamaAdapterV2(bias_targets=(), train_norm=False, **released))
    assert first == official - heads == 61_731_552
    assert counted(LlamaAdapterV2(bias_targets=FIVE, **released)) - first == 1_363_968
    early = FACTS | {"scale_side": "none", "bias_targets": (), "train_norm": False}
    assert counted(LlamaAdapterV2(**early)) == sight + 10 * w + heads  # 20 queries, one layer's gate
    mlp = 4 * 1024 * 64 + 64 + 64 * d + d
    assert counted(LlamaAdapter(**FACTS)) == 1_229_760 + mlp == 1_229_760 + 528_448
    for name, width in (("llama-1-7b", 4096), ("llama-3-8b", 1024)):
        blind = 30 * (30 * width + 16 * (d + width) + 1)
        assert counted(Excitor(**FACTS), name) == blind + 30 * 2 * 16 * (1024 + width)
    assert counted(ProjectorMethod(**FACTS)) == 1024 * d + d + d * d + d == 20_979_712
    assert counted(ProjectorMethod(projector_depth=1, **FACTS)) == 1024 * d + d
    assert ProjectorMethod(**FACTS).picture_tokens == 256


@pytest.mark.parametrize("family, states", [("clip", (1, 9)), ("clip", (-9, -1)), ("clip", (0, 8)), ("siglip", (-1,))])
def test_blocks_that_the_encoder_has_not_are_refused_before_anything_is_learned(family, states, eyes):
    """Ahead of the first block (0) a class token is that of every picture; SigLIP has none behind any block."""
    case = Case("llama_adapter", {"encoder_states": states}, family)
    with pytest.raises(Refusal) as refused:
        case.built(eyes[family])
    assert refused.value.id == "encoder-states"
