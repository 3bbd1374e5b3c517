"""From a recipe to a finished run."""

from halter.run.session import train

__all__ = ["train"]
