"""The embedded default: a generated little world, its tasks, and tiny bases that have read about it."""

from halter.playground.bases import BASES, base_folder, encoder_folder
from halter.playground.documents import corpus
from halter.playground.paper_tasks import PAPER_TASKS, write_papers
from halter.playground.sights import FILES as DRAWING_TASKS
from halter.playground.tasks import TASKS, task_names, write_tasks

__all__ = [
    "BASES",
    "DRAWING_TASKS",
    "PAPER_TASKS",
    "TASKS",
    "base_folder",
    "corpus",
    "encoder_folder",
    "task_names",
    "write_papers",
    "write_tasks",
]
