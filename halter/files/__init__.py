"""Bytes on disk: one door for writing, one reader of tensors, and the formats that others write."""
