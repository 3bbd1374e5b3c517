"""Answers of a given form: JSON of a schema, calls of functions. By llguidance, token by token."""
