"""What may be asked of a decoder by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.rotation import within


def checked_shape(tokens: Tensor, config: ModelConfig) -> tuple[int, int]:
    """(B, T) of ``tokens`` int64 [B, T]. Refusals: ``tokens-wanted`` for anything else, ``tokens-too-long``, rows
    beyond the context that the model was trained with (``dynamic-rotation`` where that is why), and ``token-ids``, ids
    outside of its vocabulary (on a CPU; elsewhere looking would wait for it)."""
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise _not_tokens(tokens)
    if tokens.shape[1] > config.context:
        within(config, tokens.shape[1])
        what = f"rows of {tokens.shape[1]} tokens; the model has learned positions up to {config.context}"
        fix = "cut the rows, or load the model with a larger max_position_embeddings in its config.json"
        raise Refusal("tokens-too-long", what, fix=fix)
    if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
        outside = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
        if outside.numel():
            known = f"0 .. {config.vocab_size - 1}"
            raise Refusal("token-ids", "the model has no such tokens", found=outside.tolist(), expected=known)
    return tokens.shape[0], tokens.shape[1]


def _not_tokens(given: object) -> Refusal:
    found = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
    fix = "torch.tensor([tokenizer.encode(TEXT)]); halter.generate takes texts as they are"
    if isinstance(given, Tensor) and given.dim() == 1:
        fix = "tokens[None], a batch of one row"
    return Refusal("tokens-wanted", "a model takes token ids", found=[found], expected="int64 [batch, tokens]", fix=fix)
