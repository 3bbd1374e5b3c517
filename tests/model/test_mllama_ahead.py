"""As transformers computes a Llama 3.2 Vision (``halter_as_transformers``) tokens ahead of a picture see it: what is
computed for them hangs on what comes later, so that each row is its own as far as its last picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import seeing
import seeing_mllama
import test_mllama_answers as answers
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.data.example import Example
from halter.data.pack import pack
from halter.data.share import share_beginnings
from halter.evaluation.score import held_out
from halter.generation.engine import Engine
from halter.generation.options import GenerationOptions
from halter.generation.prompts import encode_prompt
from halter.generation.requests import Request
from halter.generation.seeing import Seeing
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.pictures.seen import features, look_at
from halter.pictures.sources import place_of
from halter.pictures.tokens import expanded
from halter.text.tokenizer import Tokenizer
from halter.training.frozen import Frozen
from halter.training.step import take_step
from halter.training.trainee import Trainee

PIXELS = answers.PIXELS
HEAD = list(range(3, 23))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(seeing.folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(tokenizer):
    model = seeing_mllama.made(replace(answers.shape_of(tokenizer), as_transformers=True))
    model.embed_tokens.matrix[:] *= 3  # or all answers are one token again and again
    return model


def alone(model, tokens, pictures):
    """Logits of a whole row by itself, in one pass without a cache."""
    segments = Segments.packed([len(tokens)])
    if pictures:
        segments = replace(segments, features=features(model.config.pictures, [pictures]))
    return model.head(model.hidden(Pass(torch.tensor(tokens, dtype=torch.int64), segments)))


def prompts_of(tokenizer, model):
    """What ``answers`` asks, the first once more, and two that end with pictures."""
    data = [seeing.saved(one) for one in PIXELS]
    more = [answers.asked(answers.WORDS, data[0], data[1]), answers.asked(answers.WORDS, data[0], data[1])]
    made = [encode_prompt(tokenizer, one, seeing=Seeing(model.config.pictures)) for one in more]
    first, *rest = answers.prompts_of(tokenizer, model)
    return [first, *rest, first, *(replace(one, tokens=one.tokens[: one.pictures[-1].end]) for one in made)]


@torch.no_grad()
def test_a_token_ahead_of_a_picture_is_another_one_with_another_picture(tokenizer, model):
    first, _, other, without, *_ = prompts_of(tokenizer, model)
    assert first.tokens == other.tokens
    start = first.pictures[0].start
    seen, others = (alone(model, one.tokens, one.pictures)[:start] for one in (first, other))
    blind = alone(model, without.tokens, ())[:start]
    assert min(float((seen - others).abs().max()), float((seen - blind).abs().max())) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("rows", [3, 16])
@pytest.mark.parametrize("tokens", [1, 5, 40, 1000])
def test_answers_are_those_of_each_prompt_alone_and_whole(tokens, rows, tokenizer, model):
    """Rows that begin alike, a prompt that comes twice, prompts of more tokens than a step has room for."""
    prompts = prompts_of(tokenizer, model)
    options = GenerationOptions(max_new_tokens=3, ignore_stop_ids=True, logprobs=0)
    engine = Engine(model, tokenizer, rows=rows, tokens=tokens)
    pieces = engine.run([Request(one, options) for one in prompts])
    found = {piece.row: piece.result for piece in pieces if piece.result}
    for number, prompt in enumerate(prompts):
        said = found[number].tokens
        scores = alone(model, [*prompt.tokens, *said], prompt.pictures)[-4:-1].log_softmax(-1)
        told = torch.tensor([one.logprob for one in found[number].logprobs], dtype=torch.float64)
        torch.testing.assert_close(told, scores[torch.arange(3), list(said)], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_prompts_still_share_steps_and_equal_ones_are_computed_once(tokenizer, model, monkeypatch):
    """A prompt goes whole as far as its last picture alone, and no step has room for two that must."""
    prompts = prompts_of(tokenizer, model)
    fed, inner = [], type(model).hidden
    monkeypatch.setattr(type(model), "hidden", lambda self, one: fed.append(len(one.tokens)) or inner(self, one))

    def steps(chosen, tokens):
        fed.clear()
        options = GenerationOptions(max_new_tokens=1)
        assert all(one.result for one in Engine(model, tokenizer, 9, tokens).run([Request(p, options) for p in chosen]))
        return list(fed)

    length, end = len(prompts[0].tokens), prompts[0].pictures[-1].end
    assert length - end > 5
    assert steps([prompts[0]], 5)[:2] == [end, 5]
    assert sum(steps([prompts[0]] * 3, 1000)) == length + 2
    assert sum(steps([prompts[0], prompts[1]], 1000)) < length + len(prompts[1].tokens) - end + 1
    assert sum(steps([prompts[0], prompts[2]], 1000)) == 2 * length
    assert max(steps([prompts[0], prompts[2], prompts[4]], 5)) <= prompts[4].pictures[-1].end + 2
    assert max(steps([prompts[3]], 5)) == 5
    words = len(prompts[3].tokens)
    assert steps([prompts[3], prompts[0]], words + 3)[:2] == [words, length]


RULES = seeing_mllama.config().pictures


def row(seeds, answer, ahead=HEAD, between=(), behind=(40, 41)):
    """Words, pictures by their seeds, words, and an answer that is learned."""
    looked = [look_at(RULES, place_of(seeing.saved(seeing.pixels(seed, 8, 16)))) for seed in seeds]
    asked = [*ahead]
    for _ in seeds:
        asked += [RULES.token_id, *between]
    asked += behind
    tokens, _, pictures = expanded([*asked, *answer], [True] * (len(asked) + len(answer)), looked, RULES)
    return Example(np.array(tokens, np.int32), np.arange(len(tokens)) >= len(asked), pictures=pictures)


ROWS = [
    row([1], [50, 51]),
    row([1], [52, 53]),
    row([2], [50, 51]),
    row([], [50, 51]),
    row([], [52]),
    row([1, 2], [54]),
    row([1, 2], [55, 56]),
    row([1, 3], [54], between=HEAD),
    row([1, 2], [54], between=HEAD),
    row([2], [57], behind=()),
    row([2], [58], behind=()),
]
for end in (59, 60):  # two turns, a picture in each
    turns = row([3, 2], [end], between=[42, 43])
    ROWS.append(replace(turns, supervised=turns.supervised | (turns.tokens == 42)))


def trained(model, rows, micros):
    adapter = adapt(model, "lora", r=2, target_modules="cross").double()
    tiny.jitter(adapter)
    sgd = torch.optim.SGD(adapter.parameters(), lr=0.1)
    trainee = Trainee(adapter, sgd, lambda _: 1.0, torch.amp.GradScaler(enabled=False), 0.0)
    record = take_step(model, [trainee], [[pack([rows[n] for n in micro], micro)] for micro in micros])[0]
    return record.loss, [p.detach().clone() for p in adapter.parameters()]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_step_is_that_of_the_rows_alone(ahead):
    model = seeing_mllama.made(seeing_mllama.config(as_transformers=ahead))
    whole = trained(model, ROWS, [range(len(ROWS))])
    each = trained(model, ROWS, [[n] for n in range(len(ROWS))])
    assert whole[0] == pytest.approx(each[0], rel=1e-12)
    for mine, theirs in zip(whole[1], each[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        sums = 0.0
        if ahead:  # by another way altogether: the base's loss, each row in a pass of its own
            for one in ROWS:
                scores = alone(model, one.tokens, one.pictures).log_softmax(-1)
                wanted = np.flatnonzero(one.supervised)
                sums -= float(scores[wanted - 1, torch.tensor(one.tokens)[wanted].long()].sum())
            assert held_out(model, ROWS).loss == pytest.approx(sums / sum(r.supervised.sum() for r in ROWS), rel=1e-6)


def test_what_rows_share_in_training_has_all_of_their_pictures():
    found = share_beginnings(pack(ROWS), reads_ahead=True)
    assert found.order is not None
    heads = [(place, len(found.pictures[place])) for place, number in enumerate(found.rows) if number < 0]
    assert sorted(count for _, count in heads) == [0, 1, 2]
    for place, before in enumerate(found.continues):
        if before is not None:
            own = tuple(one.moved(-found.lengths[before]) for one in found.pictures[place])
            assert own == ROWS[found.rows[place]].pictures == found.pictures[before]


@torch.no_grad()
def test_what_is_kept_of_frozen_layers_is_each_rows_own():
    model = seeing_mllama.made(seeing_mllama.config(as_transformers=True))
    chosen = [ROWS[0], ROWS[2], ROWS[3], ROWS[0]]
    states = Frozen(3, 1 << 30).states(model, pack(chosen)).split([len(one.tokens) for one in chosen])
    for one, got in zip(chosen, states, strict=True):
        segments = Segments.packed([len(one.tokens)])
        if one.pictures:
            segments = replace(segments, features=features(model.config.pictures, [one.pictures]))
        wanted = model.hidden(Pass(torch.tensor(one.tokens, dtype=torch.int64), segments, stop=3))
        assert torch.equal(got, wanted)
