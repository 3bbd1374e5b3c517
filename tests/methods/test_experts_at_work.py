"""Adapted experts where they are used: several answers to a prompt, a batch of several adapters, and a training step
over experts in 4 bits. Oracles: the decoder without a cache, merged weights, transformers' model of what the 4 bits
mean."""

from __future__ import annotations

import functools

import pytest
import tiny
import tiny_tokenizers
import torch
from test_experts import at_experts, batch_of, folded, moe, moved

from halter.adapters.stacked import stack
from halter.generation.beginnings import SHORTEST
from halter.generation.engine import generate
from halter.model.decoder import Decoder
from halter.model.layout import LINEAR
from halter.model.storages import experts_too, held_in, quantised
from halter.model.stored_experts import QuantisedExperts
from halter.text.tokenizer import Tokenizer
from halter.training.schedule import make as make_schedule
from halter.training.step import take_step
from halter.training.trainee import Trainee

LONG = " ".join(["the quick brown fox jumps over the dog"] * 3)
PROMPTS = [f"{LONG} jumps", f"{LONG} upon a time", "once"]
"""Two with a beginning that is long enough to be computed once for rows that agree in it."""
KINDS = [{"experts": "all"}, {"experts": [0, 2], "target_modules": ("q_proj", "down_proj")}, {"experts": {"2": [1, 3]}}]
WHOLE = {"ignore_stop_ids": True, "logprobs": 0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path_factory.mktemp("tokens")))


@pytest.fixture(scope="module")
def asked(tokenizer):
    """(a random model with experts in float64, three adapters at experts)."""
    model = moe(vocab_size=tokenizer.vocab_size)
    return model, [moved(model, seed=n + 1, **kind) for n, kind in enumerate(KINDS)]


def told(answer):
    return torch.tensor([token.logprob for token in answer.logprobs], dtype=torch.float64)


def by_the_decoder(model, adapter, answer):
    """The answer's log-probabilities from one pass over all of its tokens, without a cache."""
    row = torch.tensor([[*answer.prompt_tokens, *answer.tokens]])
    with torch.no_grad():
        scores = model(row, adapter=adapter)[0, len(answer.prompt_tokens) - 1 : -1].double().log_softmax(-1)
    return scores.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[str(kind) for kind in KINDS])
def test_several_answers_of_adapted_experts_are_each_what_the_decoder_says(asked, tokenizer, number):
    """Answers to one prompt share its beginning; merged weights draw the same ones."""
    model, adapters = asked
    how = {"temperature": 1.0, "seed": 5, "max_new_tokens": 9, **WHOLE}
    answers = generate(model, tokenizer, PROMPTS[:2], adapters[number], n=3, max_rows=4, **how)
    assert len(answers) == 6 and len({(a.prompt_tokens, a.tokens) for a in answers}) == 6
    assert all(len(answer.prompt_tokens) > SHORTEST for answer in answers)
    for answer in answers:
        torch.testing.assert_close(told(answer), by_the_decoder(model, adapters[number], answer), rtol=1e-6, atol=1e-5)
        assert float((told(answer) - by_the_decoder(model, None, answer)).abs().max()) > 1e-3
    merged = generate(folded(model, adapters[number]), tokenizer, PROMPTS[:2], n=3, **how)
    assert [one.tokens for one in answers] == [one.tokens for one in merged]
    alone = generate(model, tokenizer, PROMPTS[:2], adapters[number], **how)
    assert [answers[0].tokens, answers[3].tokens] == [one.tokens for one in alone]


def test_one_batch_of_several_adapters_of_experts_answers_as_each_does_alone(asked, tokenizer):
    """The base, three adapters and two of them stacked, with equal beginnings, several answers each, rows that join."""
    model, adapters = asked
    owners, count = [[], *([one] for one in adapters), adapters[:2]], 2 * len(PROMPTS)
    stacks = [stack(own) if own else None for own in owners]
    prompts, given = PROMPTS * len(owners), [one for one in stacks for _ in PROMPTS]
    how = {"temperature": 1.0, "seed": 1, "n": 2, "max_new_tokens": 5, **WHOLE}
    together = generate(model, tokenizer, prompts, given, max_rows=17, **how)
    assert len(together) == 2 * len(prompts)
    for number, own in enumerate(owners):
        here, changes = slice(number * count, (number + 1) * count), []
        merged = functools.reduce(folded, own, model)
        alone = generate(merged, tokenizer, prompts, **how)[here]  # draws go by a prompt's number
        for got, want in zip(together[here], alone, strict=True):
            assert got.tokens == want.tokens
            torch.testing.assert_close(told(got), told(want), rtol=1e-6, atol=1e-5)
            changes.append(float((told(got) - by_the_decoder(model, None, got)).abs().max()))
        assert max(changes) > 1e-3 or not own


def in_nf4(model):
    """The same model, its linear layers and experts quantised in place."""
    for place in model.layout.in_few_bits():
        module = model.module(place.layer, place.name)
        if place.kind == LINEAR:
            model.set_linear(place, quantised("nf4", module.weight(), module.bias))
            continue
        held = QuantisedExperts("nf4", place, model.dtype, "cpu")
        for number in range(place.shape[0]):
            held.put(number, module.of(number).clone())
        model.set_linear(place, held)
    return model


def as_it_means(model):
    """What the numbers in 4 bits mean, in float64."""
    wide = Decoder(model.config, torch.float64)
    for place, module in model.places():
        if not place.tied:
            wide.set_tensor(place.weight_name, module.weight().double())
    return wide


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", [KINDS[0], {"experts": {"1": [0, 3], "2": [2]}, "rslora": True}], ids=str)
def test_a_step_over_experts_in_4_bits_is_that_of_transformers_on_what_they_mean(kind, checkpointing):
    """SGD at rate 1, so that each parameter moves by its gradient."""
    model = in_nf4(moe(torch.float32, dim=64, ffn_dim=32))
    assert held_in(model) == "nf4" and experts_too(model)
    adapter, wide = moved(model, **kind), as_it_means(model)
    tokens = torch.randint(3, 96, (41,), generator=torch.Generator().manual_seed(3))
    other = tiny.peer(wide).requires_grad_(False)
    weights, theirs = dict(other.named_parameters()), {}
    for slot in at_experts(adapter):
        parts = [*weights[slot.path]]
        for expert, piece in slot.piece.pieces.items():
            a, b = (p.detach().double().requires_grad_() for p in (piece.a, piece.b))
            theirs |= {id(piece.a): a, id(piece.b): b}
            scale = 6.0 / (len(a) ** 0.5 if kind.get("rslora") else len(a))
            parts[expert] = parts[expert] + scale * (b @ a).t()
        weights[slot.path] = torch.stack(parts)
    loss = torch.nn.functional.cross_entropy(
        torch.func.functional_call(other, weights, (tokens[None],)).logits[0, :-1], tokens[1:]
    )
    loss.backward()
    before = {id(p): p.detach().clone() for p in adapter.parameters()}
    optimizer = torch.optim.SGD(list(adapter.parameters()), lr=1.0)
    one = Trainee(adapter, optimizer, make_schedule("constant", 10, 0), torch.amp.GradScaler("cpu", enabled=False), 0.0)
    (record,) = take_step(model, [one], [[batch_of(tokens)]], checkpointing)
    assert record.loss == pytest.approx(float(loss.detach()), rel=1e-5) and len(theirs) == len(before)
    reached = 0
    for name, parameter in adapter.trainable().items():
        expected = theirs[id(parameter)].grad
        got = before[id(parameter)].double() - parameter.detach().double()
        largest = 0.0 if expected is None else float(expected.abs().max())
        reached += largest > 0
        torch.testing.assert_close(
            got,
            torch.zeros_like(got) if expected is None else expected,
            rtol=1e-3,
            atol=1e-3 * largest + 1e-7,
            msg=name,
        )
    assert reached > len(theirs) // 2
