"""Several methods on one base and the same data, and the report of it."""
