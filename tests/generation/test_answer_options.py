"""Log-probabilities, logit bias and penalties against transformers, plain arithmetic and the model in float64."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import tiny
import torch
from own_data import Data
from transformers import SequenceBiasLogitsProcessor

from halter.adapters.adapter import adapt
from halter.errors import Refusal
from halter.generation import choosing
from halter.generation.engine import Engine, generate, stream
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.generation.streaming import Generation, TokenLogprob
from halter.model.decoder import Decoder
from halter.numerics.sampling import added, log_probabilities, repeated
from halter.text.tokenizer import Tokenizer
from tests.generation.test_engine import opened

Asked = tuple[Decoder, Tokenizer]
PROMPTS = ["Once upon a time", "Tom had a dog. The dog was", "The"]
TOLD = {"logprobs": 3, "prompt_logprobs": 2}


@pytest.fixture(scope="module")
def asked(data: Data) -> Asked:
    return opened(data.base)


def of_peer(data: Data, tokens: list[int]) -> torch.Tensor:
    """float64 [T, V]: transformers' log-probabilities of what follows each token."""
    import transformers

    peer = transformers.LlamaForCausalLM.from_pretrained(data.base).double().eval()
    with torch.no_grad():
        return peer(torch.tensor([tokens])).logits[0].log_softmax(-1)


def assert_told(answer: Generation, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    """What is told of an answer is what ``want`` [T, V] says of its tokens, prompt and answer, and of the likeliest, to
    ``tolerance`` of the largest number of each token: a log-probability is rounded as the logits are."""
    assert answer.prompt_logprobs is not None and answer.logprobs is not None and answer.prompt_logprobs[0] is None
    tokens = [*answer.prompt_tokens, *answer.tokens]
    told = [*answer.prompt_logprobs[1:], *answer.logprobs]
    assert len(told) == len(tokens) - 1 and len(answer.logprobs) == len(answer.tokens)
    for place, one in enumerate(told):
        assert isinstance(one, TokenLogprob) and one.token == tokens[place + 1]
        near = tolerance * max(1.0, float(want[place].abs().max()))
        assert one.logprob == pytest.approx(float(want[place, one.token]), abs=near)
        most = 2 if place + 1 < len(answer.prompt_tokens) else 3
        best = want[place].topk(most)
        assert len(one.top) == most and [v for _, v in one.top] == pytest.approx(best.values.tolist(), abs=near)
        for id, value in one.top:
            assert value == pytest.approx(float(want[place, id]), abs=near)
        assert all(value == one.logprob for id, value in one.top if id == one.token)  # to the last bit


@pytest.mark.parametrize("tokens", [3, 4096])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_k": 5, "repetition_penalty": 1.3, "seed": 3}])
def test_log_probabilities_are_those_of_transformers(
    asked: Asked, data: Data, options: dict[str, Any], tokens: int
) -> None:
    """Whatever the options make of the logits, and however a prompt is cut into steps, beside rows that ask nothing."""
    engine = Engine(*asked, rows=3, tokens=tokens)
    ids = [1, *asked[1].encode(PROMPTS[1])]
    chosen = GenerationOptions(max_new_tokens=12, ignore_stop_ids=True, **TOLD, **options)
    for prompt, how in ((ids, chosen), (ids, GenerationOptions(max_new_tokens=9)), (ids[:4], chosen)):
        engine.add(Request(EncodedPrompt(tuple(prompt), True), how))
    found: dict[int, Generation] = {}
    while engine.busy:
        found |= {p.row: p.result for p in engine.step() if p.result is not None}
    for answer in (found[0], found[2]):
        assert_told(answer, of_peer(data, [*answer.prompt_tokens, *answer.tokens]))
    assert found[1].logprobs is None and found[1].prompt_logprobs is None


def test_log_probabilities_with_an_adapter_are_those_of_the_model_in_float64(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the head too, a few tokens of the prompt at a time."""
    monkeypatch.setattr(choosing, "chunk_rows", lambda _: 3)
    model, wide = tiny.decoder(), tiny.decoder(dtype=torch.float64)
    prompt = [1, 5, 9, 8, 7, 7, 6, 20]
    for name, options in (("lora", {"target_modules": ["q_proj", "lm_head"]}), ("prompt_tuning", {}), ("full", {})):
        adapter, double = (adapt(m, name, **options) for m in (model, wide))
        for each in (adapter, double):
            tiny.jitter(each, 0.1)
        answer = generate(
            model, asked[1], [prompt, prompt], [adapter, None], max_new_tokens=6, ignore_stop_ids=True, **TOLD
        )
        for one, owner in zip(answer, (double, None), strict=True):
            with torch.no_grad():
                want = wide(torch.tensor([[*prompt, *one.tokens]]), adapter=owner)[0].log_softmax(-1)
            assert_told(one, want, 1e-4)


def test_log_probabilities_of_prompts_that_begin_alike(asked: Asked, data: Data) -> None:
    """A row that tells of its whole prompt takes its beginning from nobody."""
    ids = [1, *asked[1].encode("Lily and Ben like to play in the park. They see a big tree.")]
    assert len(ids) > 17
    answers = generate(*asked, [ids, ids, [*ids, 300]], max_new_tokens=4, ignore_stop_ids=True, **TOLD)
    for answer in answers:
        assert_told(answer, of_peer(data, [*answer.prompt_tokens, *answer.tokens]))


def test_pieces_bring_the_log_probabilities_of_their_tokens(asked: Asked) -> None:
    whole = generate(*asked, PROMPTS, max_new_tokens=10, logprobs=1)
    told: dict[int, list[TokenLogprob]] = {}
    for piece in stream(*asked, PROMPTS, max_new_tokens=10, logprobs=1):
        told.setdefault(piece.row, []).extend(piece.logprobs)
    assert [tuple(told[row]) for row in range(3)] == [answer.logprobs for answer in whole]
    assert whole[0].logprobs is not None and whole[0].prompt_logprobs is None
    alone = generate(*asked, PROMPTS[0], max_new_tokens=10, logprobs=0)[0]
    assert alone.logprobs is not None and all(one.top == () for one in alone.logprobs)
    assert not any(piece.logprobs for piece in stream(*asked, PROMPTS, max_new_tokens=4))


def test_logits_with_a_bias_are_those_of_transformers() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    bias = {5: -100.0, 7: 3.5, 39: 0.25}
    want = SequenceBiasLogitsProcessor({(id,): n for id, n in bias.items()})(
        torch.zeros(3, 1, dtype=torch.int64), logits
    )
    torch.testing.assert_close(added(logits, [bias] * 3), want, rtol=0, atol=1e-6)
    one = added(logits, [{}, bias, {}])
    assert torch.equal(one[[0, 2]], logits[[0, 2]]) and torch.equal(one[1], want[1])
    assert added(logits, [{}, {}, {}]) is logits


def test_penalties_are_what_openai_defines() -> None:
    """mu[j] - c[j] frequency - (c[j] > 0) presence, with c[j] how often the answer has token j."""
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(2))
    said = [4, 4, 2, 4, 8]
    want = [float(mu) - said.count(j) * 0.7 - (j in said) * -0.4 for j, mu in enumerate(logits[0])]
    assert added(logits, [repeated(said, -0.4, 0.7)])[0].tolist() == pytest.approx(want, abs=1e-6)


def test_log_probabilities_of_ties_go_by_id() -> None:
    own, ids, best = log_probabilities(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), torch.tensor([2]), 3)
    assert ids.tolist() == [[1, 2, 0]] and best[0, 0] == best[0, 1] == own[0]


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.8},
        {
            "presence_penalty": -0.5,
            "frequency_penalty": 1.2,
            "repetition_penalty": 1.2,
            "logit_bias": {403: 2.0, 9: -1.0},
        },
    ],
    ids=lambda options: ",".join(options),
)
def test_answers_are_those_of_plain_arithmetic(asked: Asked, options: dict[str, Any]) -> None:
    """Greedy answers, one token after the other from whole passes: the bias first, then the repetition penalty of
    prompt and answer, then what is subtracted for the answer's tokens."""
    model, tokenizer = asked
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=30, ignore_stop_ids=True)
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=30, ignore_stop_ids=True, **options)
    assert answers != plain
    for answer in answers:
        seen = list(answer.prompt_tokens)
        for at, token in enumerate(answer.tokens):
            with torch.no_grad():
                logits = model(torch.tensor([seen]))[0, -1].double()
            for id, number in options.get("logit_bias", {}).items():
                logits[id] += number
            for id in set(seen):
                penalty = options.get("repetition_penalty", 1.0)
                logits[id] = logits[id] * penalty if logits[id] < 0 else logits[id] / penalty
            for id, times in Counter(answer.tokens[:at]).items():
                logits[id] -= options.get("presence_penalty", 0) + times * options.get("frequency_penalty", 0)
            assert float(logits.max() - logits[token]) < 1e-4
            seen.append(token)


def test_a_bias_of_100_forbids_and_forces(asked: Asked) -> None:
    free = generate(*asked, PROMPTS[0], max_new_tokens=20)[0]
    without = generate(*asked, PROMPTS[0], max_new_tokens=20, logit_bias=dict.fromkeys(free.tokens[:5], -100.0))[0]
    assert not set(without.tokens) & set(free.tokens[:5])
    forced = generate(*asked, PROMPTS[0], max_new_tokens=5, logit_bias={300: 100.0})[0]
    assert forced.tokens == (300,) * 5


def test_options_of_one_row_are_no_matter_to_another(asked: Asked) -> None:
    model, tokenizer = asked
    first = generate(model, tokenizer, PROMPTS[0], max_new_tokens=1)[0].tokens[0]
    options: list[dict[str, Any]] = [
        {},
        {"logit_bias": {first: -20.0}},
        {"presence_penalty": 2.0, "temperature": 0.8},
        {"frequency_penalty": 2.0, "logprobs": 2},
        {"repetition_penalty": 1.5, "prompt_logprobs": 0},
    ]
    prompt = EncodedPrompt((1, *tokenizer.encode(PROMPTS[0])), True)
    requests = [Request(prompt, GenerationOptions(max_new_tokens=30, **one), draws=1) for one in options]
    found = {p.row: p.result for p in Engine(model, tokenizer).run(requests) if p.result is not None}
    for row, one in enumerate(requests):
        (alone,) = (p.result for p in Engine(model, tokenizer).run([one]) if p.result is not None)
        assert found[row].tokens == alone.tokens
    assert len({found[row].tokens for row in range(4)}) > 2


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 2.5},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {5: 101.0}},
        {"logit_bias": {5: float("nan")}},
        {"logit_bias": {512: 1.0}},
        {"logit_bias": {-1: 1.0}},
        {"logprobs": -1},
        {"prompt_logprobs": -1},
    ],
    ids=str,
)
def test_bounds_are_refused(asked: Asked, options: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as refusal:
        generate(*asked, "Once", **options)
    assert refusal.value.id == "generation-options" and refusal.value.fix and refusal.value.found


def test_options_can_be_told_apart_and_kept() -> None:
    """They are keys of a table in lm-eval's tasks."""
    one, other = GenerationOptions(logit_bias={5: 1.0}), GenerationOptions(logit_bias={5: 2.0})
    assert len({one, other, GenerationOptions(logit_bias={5: 1.0})}) == 2
    assert "logprobs" in GenerationOptions(logprobs=0).unshown("a chat") and not one.unshown("a chat")
