"""Choice accuracy against losses by transformers, and rows whose choices do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from own_data import Data

from halter.adapters.adapter import adapt
from halter.cli import main
from halter.data.encode import Encoder
from halter.data.example import Example
from halter.data.formats import Canonical
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.evaluation.choices import choice_report, variants
from halter.evaluation.questions import question
from halter.text.chat.conversations import ChatTemplate
from halter.text.chat.rows import encode_pair
from halter.text.tokenizer import Tokenizer

CHOICES = ("yes", "often", "a b c d")  # by the mean over tokens the third has the lowest loss, by the sum the first


@pytest.fixture(scope="module")
def tokenizer(data: Data) -> Tokenizer:
    return Tokenizer.from_folder(data.base)


def pair(tokenizer: Tokenizer, prompt: str, answer: str) -> Example:
    row = encode_pair(tokenizer, prompt, answer)
    return Example(np.array(row.tokens, np.int32), np.array(row.supervised, bool), "rows.jsonl:1")


def chat(tokenizer: Tokenizer, name: str, answer: str) -> Example:
    encoder = Encoder(DataOptions(), tokenizer, ChatTemplate.builtin(name))
    said = [("user", "Hi."), ("assistant", "Hello."), ("user", "Is it?"), ("assistant", answer)]
    return encoder.examples(Canonical(messages=[{"role": r, "content": c} for r, c in said]), "chat.jsonl:7")[0][0]


@pytest.mark.parametrize("kind", ["alpaca", "llama-2", "vicuna", "pair", "pair with a space"])
def test_a_choice_is_written_as_a_row_that_wants_it(tokenizer: Tokenizer, kind: str) -> None:
    def row(answer: str) -> Example:
        if kind.startswith("pair"):
            return pair(tokenizer, "Is it?", f" {answer}" if kind != "pair" else answer)
        return chat(tokenizer, kind, answer)

    own = row(CHOICES[1])
    asked = question(own, tokenizer)
    assert asked is not None
    made = variants(own, asked, tokenizer, CHOICES, 1)
    for choice, one in zip(CHOICES, made, strict=True):
        assert one.tokens.tolist() == row(choice).tokens.tolist() and one.origin == own.origin
        assert np.flatnonzero(one.supervised)[0] == len(asked.prompt.tokens) and one.supervised[-1]


def test_the_choice_of_the_lowest_loss_by_transformers(tokenizer: Tokenizer) -> None:
    model = tiny.decoder(tiny.config(vocab_size=512))
    adapter = adapt(model, "full")
    tiny.jitter(adapter, 0.5)
    prompts = [f"Is the {word} big?" for word in "dog cat box sun moon tree fish car".split()]
    wanted = [CHOICES[i % 2] for i in range(len(prompts))]
    rows = [pair(tokenizer, p, w) for p, w in zip(prompts, wanted, strict=True)]
    report = choice_report(model, tokenizer, rows, CHOICES, adapter)
    peer, picked = tiny.peer(model), []
    for prompt in prompts:
        sums = []
        for choice in CHOICES:
            row = pair(tokenizer, prompt, choice)
            tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(row.supervised)[None], tokens, -100)
            with torch.no_grad():
                sums.append(float(peer(tokens, labels=labels).loss) * row.targets)
        picked.append(int(np.argmin(sums)))
    right = sum(CHOICES[i] == w for i, w in zip(picked, wanted, strict=True))
    assert report["base"] == {"choice_accuracy": right / 8, "chosen": [picked.count(i) for i in range(3)]}
    assert report["wanted"] == [4, 4, 0] and report["majority"] == 0.5 and report["chance"] == pytest.approx(1 / 3)
    assert sum(report["adapter"]["chosen"]) == report["questions"] == 8
    assert "adapter" not in choice_report(model, tokenizer, rows, CHOICES)


@pytest.mark.parametrize(
    ("choices", "refused", "said"),
    [
        (("yes",), "choices", "yes"),
        (("yes", "no", " yes"), "choices", "yes"),
        (("yes", "perhaps"), "not-a-choice", "no"),
        (("yes", "never"), "not-a-choice", "of course not"),
    ],
)
def test_choices_that_do_not_fit(tokenizer: Tokenizer, choices: tuple[str, ...], refused: str, said: str) -> None:
    rows = [pair(tokenizer, "Is it?", answer) for answer in ("yes", "no", "of course not")]
    with pytest.raises(Refusal) as refusal:
        choice_report(tiny.decoder(tiny.config(vocab_size=512)), tokenizer, rows, choices)
    assert refusal.value.id == refused and said in refusal.value.found


def test_plain_text_has_nothing_to_choose(tokenizer: Tokenizer) -> None:
    row = Example(np.array([1, 40, 41], np.int32), np.array([False, True, True]))
    with pytest.raises(Refusal) as refusal:
        choice_report(tiny.decoder(tiny.config(vocab_size=512)), tokenizer, [row], CHOICES)
    assert refusal.value.id == "no-questions"


def test_evaluate_shows_it(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps({"prompt": "2 + 2?", "completion": c}) + "\n" for c in ("yes", "4", "yes", "4")))
    asked = ["evaluate", str(data.base), "--data", str(file), "--max-new-tokens", "3"]
    assert main.run([*asked, "--choices", "yes", "--choices", "4", "--output", str(out)]) == 0
    table = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["base"]["choice_accuracy"] == 0.5  # the same question each time, so one answer for all four
    assert sorted(report["base"]["chosen"]) == [0, 4] and report["choices"]["majority"] == 0.5
    assert "choice_accuracy" in table and "50.0%" in table and "bleu" in table and "token_f1" in table
    assert "last_number" not in table  # not every wanted text has a number
