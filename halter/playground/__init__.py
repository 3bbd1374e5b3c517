"""The embedded default: a generated little world, its tasks, and a tiny base that has read about it."""

from halter.playground.base import base_folder
from halter.playground.documents import corpus
from halter.playground.tasks import TASKS, task_names, write_tasks

__all__ = ["TASKS", "base_folder", "corpus", "task_names", "write_tasks"]
