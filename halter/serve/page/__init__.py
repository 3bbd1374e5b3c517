"""The page under /ui/: its files, and what it is told of runs and adapters."""
