"""Whether model, tokenizer and adapters that are asked together belong together, told once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from halter.adapters.adapter import Adapter
from halter.model.decoder import Decoder
from halter.telling import tell
from halter.text.tokenizer import Tokenizer, other_vocabulary


@lru_cache(64)
def told_once(what: str) -> None:
    tell(f"warning: {what}; answers may be nonsense")


def tell_others(model: Decoder, tokenizer: Tokenizer, adapters: Sequence[object]) -> None:
    """Say where the tokenizer is not the model's or not that of an adapter's training."""
    if other := other_vocabulary(tokenizer.vocab_size, model.config.table_rows):
        told_once(other)
    for adapter in {id(one): one for one in adapters if isinstance(one, Adapter)}.values():
        trained_on = (adapter.facts.get("tokenizer") or {}).get("digest")
        if trained_on is not None and trained_on != tokenizer.digest:
            told_once(f"an adapter was trained with another tokenizer ({str(trained_on)[:16]}...)")
