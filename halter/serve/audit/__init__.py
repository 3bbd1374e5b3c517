"""The audit log: a line for each request, chained so that a change of any of them is found."""
