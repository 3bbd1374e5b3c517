"""Who may ask, from where, for what, and how much."""
