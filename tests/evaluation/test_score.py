"""Held-out loss against transformers, text measures against known figures, the report of base beside adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from own_data import Own

from halter.adapters.adapter import adapt
from halter.data.example import Example
from halter.errors import Refusal
from halter.evaluation import score
from halter.evaluation.questions import question
from halter.evaluation.score import evaluate, held_out, held_out_loss
from halter.evaluation.texts import exact_match, rouge
from halter.model.decoder import Decoder
from halter.numerics import losses, metrics
from halter.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(own: Own) -> Tokenizer:
    return Tokenizer.from_folder(own.base)


def examples(tokenizer: Tokenizer, count: int = 5) -> list[Example]:
    rows = []
    for i in range(count):
        prompt = [1, *tokenizer.encode(f"The dog {'ran ' * i}")]
        answer = [*tokenizer.encode(f"to the park {'and back' * (i % 3)}"), 2]
        supervised = [False] * len(prompt) + [True] * len(answer)
        rows.append(Example(np.array(prompt + answer, np.int32), np.array(supervised), f"rows.jsonl:{i + 1}"))
    return rows


def small(**changes: Any) -> Decoder:
    return tiny.decoder(tiny.config(vocab_size=512, **changes))


def theirs(model: Decoder, rows: list[Example]) -> tuple[float, list[float]]:
    """Token-weighted loss by transformers, one row at a time."""
    peer, total, count, each = tiny.peer(model), 0.0, 0, []
    for row in rows:
        tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(row.supervised)[None], tokens, -100)
        with torch.no_grad():
            each.append(float(peer(tokens, labels=labels).loss))
        total, count = total + each[-1] * row.targets, count + row.targets
    return total / count, each


@pytest.mark.parametrize("pass_tokens", [None, 1, 30])
def test_loss_is_that_of_transformers(tokenizer: Tokenizer, pass_tokens: int | None) -> None:
    model, rows = small(), examples(tokenizer)
    loss, each = theirs(model, rows)
    mine = held_out(model, rows, None, pass_tokens)
    assert mine.loss == pytest.approx(loss, rel=1e-6) and mine.by_row == pytest.approx(each, rel=1e-5)
    assert mine.target_tokens == sum(row.targets for row in rows)
    assert mine.perplexity == pytest.approx(np.exp(loss), rel=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head", "q_proj"]])
def test_loss_with_an_adapter_is_that_of_the_decoder_with_it(tokenizer: Tokenizer, targets: Any) -> None:
    model, rows = small(tied=False), examples(tokenizer)
    adapter = adapt(model, "lora", r=4, target_modules=targets)
    tiny.jitter(adapter)
    total = 0.0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.from_numpy(row.tokens.astype(np.int64))[None], adapter=adapter)[0]
        chosen = torch.from_numpy(np.flatnonzero(row.supervised))
        wanted = torch.from_numpy(row.tokens.astype(np.int64))[chosen]
        total += float(torch.nn.functional.cross_entropy(logits[chosen - 1].double(), wanted, reduction="sum"))
    loss = held_out_loss(model, rows, adapter)
    assert loss == pytest.approx(total / sum(row.targets for row in rows), rel=1e-6)
    assert abs(loss - held_out_loss(model, rows)) > 1e-3


@pytest.mark.parametrize("places", [None, ["lm_head"]])
def test_logits_of_a_batch_never_exist(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, places: Any) -> None:
    """Neither with the frozen head, whose chunks are of twice the rows, nor with one that an adapter acts on."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 512 * 20)
    model, rows, seen = small(), examples(tokenizer, 12), []
    one_by_one = metrics.token_losses
    monkeypatch.setattr(score, "token_losses", lambda x, wanted: (seen.append(len(x)), one_by_one(x, wanted))[1])
    adapter = None if places is None else adapt(model, "lora", target_modules=places)  # as it starts: the base
    loss = held_out_loss(model, rows, adapter)
    assert 5 < max(seen) <= (40 if places is None else 20) and sum(seen) == sum(row.targets for row in rows) > 60
    assert loss == pytest.approx(theirs(model, rows)[0], rel=1e-6)


def test_no_target_is_refused(tokenizer: Tokenizer) -> None:
    row = Example(np.array([1, 5, 6], np.int32), np.array([True, False, False]))  # token 0 is never a target
    with pytest.raises(Refusal) as refusal:
        held_out_loss(small(), [row])
    assert refusal.value.id == "no-targets"


def test_a_row_without_targets_beside_others(tokenizer: Tokenizer) -> None:
    rows = examples(tokenizer, 2)
    bare = Example(np.array([1, 5, 6], np.int32), np.zeros(3, bool))
    mine = held_out(small(), [rows[0], bare, rows[1]])
    assert np.isnan(mine.by_row[1]) and mine.loss == pytest.approx(held_out_loss(small(), rows), rel=1e-6)


def test_the_question_is_the_last_response(tokenizer: Tokenizer) -> None:
    a, b, c, d = (tokenizer.encode(text) for text in ("Hi", "Hello", "And", "the big park"))
    tokens, marks = [1, *a, *b, 2, *c, *d, 2], [0, *[0] * len(a), *[1] * len(b), 1, *[0] * len(c), *[1] * len(d), 1]
    asked = question(Example(np.array(tokens, np.int32), np.array(marks, bool)), tokenizer)
    assert asked is not None and asked.wanted == "the big park"
    assert asked.prompt.tokens == (1, *a, *b, 2, *c) and asked.prompt.stop_ids == (2,)
    assert not asked.prompt.continues


def test_plain_text_asks_nothing(tokenizer: Tokenizer) -> None:
    tokens = np.array([1, 40, 41, 42], np.int32)
    assert question(Example(tokens, np.array([False, True, True, True])), tokenizer) is None
    assert question(Example(tokens, np.zeros(4, bool)), tokenizer) is None


@pytest.mark.parametrize(
    ("answer", "wanted", "plain", "strict"),
    [
        ("a b", "a b", True, True),
        (" a\n b ", "a b", True, False),
        ("A b", "a b", False, False),
        ("", "a", False, False),
    ],
)
def test_exact_match(answer: str, wanted: str, plain: bool, strict: bool) -> None:
    assert exact_match(answer, wanted) is plain and exact_match(answer, wanted, strict=True) is strict


def test_rouge_by_hand() -> None:
    """4 of 5 and 4 of 6 words shared; 2 of 4 and 2 of 5 pairs; longest common subsequence 4."""
    (score,) = rouge(["the cat was found under"], ["the cat hid found under beds"])
    assert score["rouge1"] == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))
    assert score["rouge2"] == pytest.approx(2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5))
    assert score["rougeL"] == pytest.approx(score["rouge1"])


def test_the_base_beside_the_adapter(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model, rows = small(), examples(tokenizer)
    adapter = adapt(model, "lora", r=4)
    tiny.jitter(adapter, 0.2)
    file, told = tmp_path / "predictions.jsonl", []
    report = evaluate(
        model, tokenizer, rows, adapter, predictions=file, max_new_tokens=12, progress=lambda *a: told.append(a)
    )
    assert report["rows"] == report["answers"] == 5 and report["generation"]["max_new_tokens"] == 12
    assert report["base"]["loss"] == held_out_loss(model, rows)
    assert report["adapter"]["loss"] == held_out_loss(model, rows, adapter)
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [line["origin"] for line in lines] == [row.origin for row in rows]
    assert lines[2]["prompt"] == tokenizer.decode([1, *tokenizer.encode("The dog ran ran ")], skip_control=False)
    assert lines[2]["wanted"].split() == "to the park and backand back".split()
    assert {line["base"]["answer"] for line in lines} != {line["adapter"]["answer"] for line in lines}
    assert told == [(side, n, 5) for side in ("base", "adapter") for n in range(1, 6)]
    only_base = evaluate(model, tokenizer, rows, max_new_tokens=12)
    assert "adapter" not in only_base and only_base["base"] == report["base"]
    with pytest.raises(Refusal) as refusal:
        evaluate(model, tokenizer, rows, adapter, predictions=file)
    assert refusal.value.id == "already-exists"


def test_a_model_that_knows_the_answers_scores_one(tokenizer: Tokenizer) -> None:
    """Wanted are the base's own answers, so the base matches every one of them and the jittered adapter not."""
    from halter.generation.engine import generate

    model = small()
    prompts = [[1, 40 + i, 60] for i in range(4)]
    answers = generate(model, tokenizer, prompts, max_new_tokens=6, ignore_stop_ids=True)
    rows = [
        Example(np.array([*p, *a.tokens], np.int32), np.array([False] * 3 + [True] * 6))
        for p, a in zip(prompts, answers)
    ]
    adapter = adapt(model, "full")
    tiny.jitter(adapter, 0.3)
    report = evaluate(model, tokenizer, rows, adapter, max_new_tokens=6, ignore_stop_ids=True)
    assert report["base"]["exact_match"] == report["base"]["rougeL"] == 1.0
    assert report["adapter"]["exact_match"] == 0.0 and report["adapter"]["rougeL"] < 1
