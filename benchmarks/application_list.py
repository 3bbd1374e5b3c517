"""The applications: the recipe, the data and the measures of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Application:
    """What is measured of a recipe."""

    title: str
    guide: str
    data: str
    test: str
    """Below the prepared folder."""
    measures: tuple[str, ...]
    questions: int
    new_tokens: int
    choices: tuple[str, ...] = ()
    blind: str = ""
    """What is withheld for the blind score: ``PICTURES``, or all of a prompt up to this text, behind which its question
    stands."""
    train: str = ""
    """Where it learns, where not in the folder of its test."""
    recipe: str = ""
    """The recipe, where not of the application's name."""

    @property
    def learns(self) -> str:
        return self.train or self.test


PICTURES = "pictures"
PREPARED = "build/applications"
"""The prepared folder as recipes name it."""


APPLICATIONS = {
    "instruction": Application(
        "instruction following",
        "instruction",
        "TinyStories instructions",
        "instruction",
        ("loss", "rougeL", "words_used"),
        150,
        200,
    ),
    "medicine": Application(
        "question answering in medicine",
        "medicine",
        "PubMedQA, conclusions",
        "medicine",
        ("choice_accuracy", "loss"),
        0,
        4,
        ("yes", "no", "maybe"),
    ),
    "mathematics": Application(
        "mathematics with worked steps",
        "mathematics",
        "GSM8K",
        "mathematics",
        ("last_number", "loss"),
        200,
        200,
    ),
    "mathematics-playground": Application(
        "mathematics with worked steps",
        "mathematics",
        "playground, sums",
        "playground/sums",
        ("last_number", "exact_match", "loss"),
        150,
        80,
    ),
    "summarisation": Application(
        "summarisation",
        "summarisation",
        "DialogSum",
        "summarisation",
        ("rouge1", "rougeL", "loss"),
        100,
        80,
    ),
    "summarisation-playground": Application(
        "summarisation",
        "summarisation",
        "playground, stories",
        "playground/stories",
        ("rouge1", "rougeL", "exact_match", "loss"),
        150,
        40,
    ),
    "language": Application(
        "a language with few texts",
        "language",
        "playground, translate",
        "playground/translate",
        ("bleu", "chrf", "exact_match", "loss"),
        150,
        48,
    ),
    "dialogue": Application(
        "dialogue",
        "dialogue",
        "Vicuna's identity set",
        "dialogue",
        ("loss", "rougeL", "exact_match"),
        100,
        80,
    ),
    "contracts": Application(
        "contracts",
        "contracts",
        "playground, clauses",
        "playground/clauses",
        ("exact_match", "token_f1", "loss"),
        150,
        32,
    ),
    "forms-playground": Application(
        "document understanding",
        "forms",
        "playground, fields-text",
        "papers/fields-text",
        ("field_f1", "exact_match", "loss"),
        150,
        90,
        blind="\n\n",
    ),
    "forms-ocr-playground": Application(
        "document understanding",
        "forms",
        "playground, fields",
        "papers/fields",
        ("field_f1", "exact_match", "loss"),
        150,
        90,
        blind=PICTURES,
        train="papers/read",
    ),
    "forms-pictures-playground": Application(
        "document understanding",
        "forms",
        "playground, closed",
        "papers/closed",
        ("field_f1", "exact_match", "loss"),
        150,
        60,
        blind=PICTURES,
    ),
    "captions-playground": Application(
        "captions of pictures",
        "pictures",
        "playground, caption",
        "drawings/caption",
        ("exact_match", "rougeL", "bleu", "loss"),
        150,
        60,
        blind=PICTURES,
        train="drawings/talk",
        recipe="pictures-playground",
    ),
    "questions-playground": Application(
        "questions about pictures",
        "pictures",
        "playground, questions",
        "drawings/questions",
        ("exact_match", "loss"),
        300,
        12,
        blind=PICTURES,
        train="drawings/talk",
        recipe="pictures-playground",
    ),
    "quiz-playground": Application(
        "questions about pictures",
        "pictures",
        "playground, questions",
        "drawings/questions",
        ("exact_match", "loss"),
        300,
        12,
        blind=PICTURES,
        train="drawings/quiz",
    ),
}
"""{name: Application}."""


def recipe_of(name: str) -> Path:
    return ROOT / "recipes" / "applications" / f"{APPLICATIONS[name].recipe or name}.yaml"
