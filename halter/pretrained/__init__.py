"""From a folder or a hub id to a model with its tokenizer, and back; the identity of a base."""
