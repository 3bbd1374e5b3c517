"""Options of evaluation that several commands have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks of lm-eval are scored, and on how much of them."""

    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval, also separated by commas (arc_easy,hellaswag), which brings their rows and measures; needs the
    extra eval."""
    task_folder: str | None = None
    """Folder with task files (YAML) of your own for lm-eval, beside those that it has."""
    task_limit: int | None = None
    """Rows taken of each task at most; a score on a part compares only with others on that part."""
    fewshot: int | None = None
    """Solved examples ahead of each question of a task; not given: as the task says."""

    def wrong_numbers(self) -> list[str]:
        """One sentence for each number that makes no sense, or that changes nothing as there are no tasks."""
        least = {"task_limit": 1, "fewshot": 0}
        given = {name: getattr(self, name) for name in least}
        wrong = [f"{n}: at least {least[n]}, not {v}" for n, v in given.items() if v is not None and v < least[n]]
        idle = {} if self.tasks else {**given, "task_folder": self.task_folder}
        return wrong or [f"{n}: is of tasks, and none is named (--tasks)" for n, v in idle.items() if v is not None]

    @property
    def task_names(self) -> tuple[str, ...]:
        return _names(self.tasks)


@dataclass(frozen=True)
class MeasureOptions:
    """Which measures are taken beside those that always are, and by what kinds of rows."""

    measures: tuple[str, ...] = ()
    """More measures, also separated by commas: captions (CIDEr-D, BLEU-1 to 4 and ROUGE-L of pictures' captions; needs
    the extra captions and Java), spice (with --spice-jars), fields (F1 of key-value
    pairs), vqa (VQA accuracy), choices (accuracy among the choices
    that each row lists itself, by likelihood)."""
    by: tuple[str, ...] = ()
    """Columns by whose values scores are also told apart, as subject,grade."""
    spice_jars: str | None = None
    """Folder with the two jars of CoreNLP 3.6.0 that SPICE needs."""

    @property
    def measure_names(self) -> tuple[str, ...]:
        return _names(self.measures)

    @property
    def by_names(self) -> tuple[str, ...]:
        return _names(self.by)


def _names(given: Sequence[str]) -> tuple[str, ...]:
    words = [word.strip() for item in given for word in item.split(",")]
    return tuple(dict.fromkeys(word for word in words if word))


class TaskKeywords(TypedDict, total=False):
    """The fields of TaskOptions as keyword arguments, for editors; a test holds the two alike."""

    tasks: str | Sequence[str]
    task_folder: str | None
    task_limit: int | None
    fewshot: int | None


class MeasureKeywords(TypedDict, total=False):
    """The fields of MeasureOptions as keyword arguments, for editors; a test holds the two alike."""

    measures: str | Sequence[str]
    by: str | Sequence[str]
    spice_jars: str | None
