"""Recipes of other tools, read as what they mean there: one file a tool, each a table of its keys."""
