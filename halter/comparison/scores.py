"""What a base, or a base with an adapter, is worth on the test rows, and what general text costs it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from halter.adapters.adapter import Adapter
from halter.data.example import Example
from halter.errors import Refusal
from halter.evaluation.choices import ChoiceQuestions, choice_questions
from halter.evaluation.measures.fields import field_scores
from halter.evaluation.options import TaskOptions
from halter.evaluation.questions import Question, question
from halter.evaluation.score import answers, held_out, held_out_loss
from halter.evaluation.tasks import Judge, task_scores
from halter.evaluation.texts import ROUGE, exact_match, rouge
from halter.generation.options import GenerationOptions
from halter.model.decoder import Decoder
from halter.text.tokenizer import Tokenizer

DIGITS = 7
"""Of the losses by row that a trial keeps."""
DECODED, TIMES = 48, 5
"""Tokens of the answer that decoding is timed on, and how often."""


@dataclass(frozen=True)
class EvaluationSuite:
    """What is asked of everybody."""

    tokenizer: Tokenizer
    test: Sequence[Example]
    general: Sequence[Example]
    questions: int
    max_new_tokens: int
    pass_tokens: int
    choices: tuple[str, ...] = ()
    tasks: TaskOptions = TaskOptions()

    @cached_property
    def choice_questions(self) -> ChoiceQuestions | None:
        """The test rows with every choice in turn, None without choices. Refusals as of `ballot`."""
        return choice_questions(self.tokenizer, self.test, self.choices) if self.choices else None

    def asked(self) -> list[Question]:
        found = (question(example, self.tokenizer) for example in self.test)
        return [one for one in found if one is not None][: self.questions]


def evaluate_on(model: Decoder, suite: EvaluationSuite, adapter: Adapter | None = None) -> dict[str, Any]:
    """Losses in nats per target token, scores from 0 to 1, the losses, matches and right choices of each row.

    ``general_loss`` is None without general text.
    """
    held = held_out(model, suite.test, adapter, suite.pass_tokens)
    result: dict[str, Any] = {
        "test_loss": held.loss,
        "by_row": [round(loss, DIGITS) for loss in held.by_row],
        "scores": {},
        "general_loss": None,
    }
    asked = suite.asked()
    if asked:
        options = GenerationOptions(max_new_tokens=suite.max_new_tokens)
        said = [one.text for one in answers(model, suite.tokenizer, asked, adapter, options)]
        wanted = [one.wanted for one in asked]
        matches = [int(exact_match(a, w)) for a, w in zip(said, wanted, strict=True)]
        result |= {
            "matches": matches,
            "scores": {"exact_match": sum(matches) / len(matches), **field_scores(said, wanted)},
        }
        result["scores"] |= _rouge(said, wanted)
    if suite.choice_questions is not None:
        rights = (
            (suite.choice_questions.picked(model, adapter, suite.pass_tokens) == suite.choice_questions.right)
            .astype(int)
            .tolist()
        )
        result["rights"] = rights
        result["scores"] = {"choice_accuracy": sum(rights) / len(rights), **result["scores"]}
    if suite.tasks.task_names:
        judge = Judge(model, suite.tokenizer, adapter, suite.pass_tokens)
        found, result["tasks"] = task_scores(judge, suite.tasks)
        result["scores"] = {**result["scores"], **found}
    if suite.general:
        result["general_loss"] = held_out_loss(model, suite.general, adapter, suite.pass_tokens)
    return result


def _rouge(said: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    try:
        each = rouge(said, wanted)
    except Refusal:  # without the extra there is no ROUGE; the rest stands
        return {}
    return {name: sum(one[name] for one in each) / len(each) for name in ROUGE}


def decode_rates(model: Decoder, suite: EvaluationSuite, adapters: Sequence[Adapter | None]) -> list[float] | None:
    """Tokens a second of one answer with each adapter, one row at a time; None where no row asks anything.

    Measured in turn, the best of several counts, so that a machine that is busy for a while slows all of them.
    """
    asked = suite.asked()[:1]
    room = model.config.context - len(asked[0].prompt.tokens) if asked else 0
    if room < 2:
        return None
    options = GenerationOptions(max_new_tokens=min(DECODED, room), ignore_stop_ids=True)
    endless, best = Question(replace(asked[0].prompt, stop_ids=()), ""), [0.0] * len(adapters)
    for _ in range(TIMES):
        for place, adapter in enumerate(adapters):
            began = time.perf_counter()
            said = answers(model, suite.tokenizer, [endless], adapter, options)
            best[place] = max(best[place], len(said[0].tokens) / (time.perf_counter() - began))
    return best
