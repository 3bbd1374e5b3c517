"""What `halter generate` tells beside the answers: log-probabilities that were asked for, and answers that failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_data import Own

import halter
from halter.cli import main
from halter.errors import HalterError
from halter.generation import choosing, engine
from halter.generation.rows import Outcome

PROMPTS = ["Once upon a time", "The dog", "One day"]
ASKED = [word for prompt in PROMPTS for word in ("--prompt", prompt)]


@pytest.fixture
def base(own: Own) -> str:
    return str(own.base)


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main.run(["generate", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_lines_hold_log_probabilities(capsys: pytest.CaptureFixture[str], base: str) -> None:
    words = ["--model", base, *ASKED, "--max-new-tokens", "5", "--logprobs", "2", "--prompt-logprobs", "0"]
    code, out, _ = typed(capsys, *words, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    model, tokenizer = halter.load(base)
    answers = halter.generate(model, tokenizer, PROMPTS, max_new_tokens=5, logprobs=2, prompt_logprobs=0)
    assert code == 0 and len(lines) == 3
    for line, answer in zip(lines, answers, strict=True):
        assert answer.logprobs and answer.prompt_logprobs and line["answer"] == answer.text
        assert [(one["id"], one["logprob"]) for one in line["logprobs"]] == [one[:2] for one in answer.logprobs]
        assert [[(t["id"], t["logprob"]) for t in one["top"]] for one in line["logprobs"]] == [
            list(one.top) for one in answer.logprobs
        ]
        assert all(one["token"] == tokenizer.token(one["id"]) for one in line["logprobs"])
        assert line["prompt_logprobs"][0] is None and "top" not in line["prompt_logprobs"][1]
        assert [one["id"] for one in line["prompt_logprobs"][1:]] == list(answer.prompt_tokens[1:])
    code, out, err = typed(capsys, *words)
    assert code == 0 and "does not show log-probabilities" in err.replace("\n", " ")
    assert "logprobs" not in json.loads(typed(capsys, "--model", base, *ASKED[:2], "--json")[1])


def test_a_bias_is_typed_by_id(capsys: pytest.CaptureFixture[str], base: str) -> None:
    words = ["--model", base, *ASKED[:2], "--max-new-tokens", "4"]
    model, tokenizer = halter.load(base)
    (want,) = halter.generate(model, tokenizer, PROMPTS[0], max_new_tokens=4, logit_bias={300: 100.0, 301: -100.0})
    assert typed(capsys, *words, "--logit-bias", "300=100", "--logit-bias", "301=-100")[:2] == (0, want.text + "\n")
    for wrong in ("300", "a=1", "300=x", "300=1000", "9999=1"):
        code, _, err = typed(capsys, *words, "--logit-bias", wrong)
        assert code == 2 and "Fix" in err


@pytest.fixture
def second_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(rows: Any, logits: Any) -> list[Outcome]:
        found = choosing.choose(rows, logits)
        return [Outcome(fault=HalterError("no number")) if r.id == 1 else one for r, one in zip(rows, found)]

    monkeypatch.setattr(engine, "choose", choose)


@pytest.mark.usefixtures("second_fails")
def test_an_answer_that_fails_is_shown_with_the_others_and_in_the_exit_code(
    capsys: pytest.CaptureFixture[str], base: str, tmp_path: Path
) -> None:
    words, told = ["--model", base, *ASKED, "--max-new-tokens", "5"], tmp_path / "told.jsonl"
    code, out, err = typed(capsys, *words)
    assert code == 1 and out.count("---") == 3 and "[cut off: no number]" in out
    assert "1 of 3 answers failed" in err and "--prompt 2" in err and "no number" in err
    code, _, err = typed(capsys, *words, "--output", str(told))
    lines = [json.loads(line) for line in told.read_text("utf-8").splitlines()]
    assert code == 1 and [line["finish_reason"] for line in lines] == ["length", "error", "length"]
    assert [line.get("error") for line in lines] == [None, "no number", None] and lines[0]["answer"]
    code, out, err = typed(capsys, "--model", base, *ASKED[:2], "--max-new-tokens", "5")
    assert code == 0
