"""The tiny bases of text: their shapes, their first weights, their tokenizer and the order of their reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from halter.model.config import ModelConfig
from halter.model.llama4_config import Llama4Config
from halter.playground import documents, vocabulary
from halter.playground.documents import Document, corpus

SEED, HELD_OUT_SEED = 0, 1
TOKENIZER_DOCUMENTS = 20_000
CHUNK = 2048
EMBEDDING_STD, OUTPUT_SHARE = 0.2, 0.3


def _ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """What every shape has of the tokenizer, and that it is held in bfloat16."""
    id_of = tokenizer.get_vocab()
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": id_of[vocabulary.BOS],
        "eos_token_ids": (id_of[vocabulary.EOS], id_of[vocabulary.TURN_END]),
        "pad_token_id": id_of[vocabulary.PAD],
        "dtype": "bfloat16",
    }


def shape(tokenizer: Tokenizer) -> ModelConfig:
    """LLaMA 3 in small: grouped queries, theta 500000, tied as Llama 3.2 1B and 3B are."""
    return ModelConfig(
        layers=4,
        dim=256,
        heads=4,
        kv_heads=2,
        head_dim=64,
        ffn_dim=640,
        context=1024,
        rope_theta=500_000.0,
        tied=True,
        **_ids(tokenizer),
    )


def experts_shape(tokenizer: Tokenizer) -> Llama4Config:
    """Llama 4 in small: one of eight experts a token beside a shared one in every layer, as Scout has them; the fourth
    layer without rotation, the others in chunks, of which one document in eight has two. Tied, which no Llama 4 is: a
    head of its own would be an eighth of all numbers."""
    return Llama4Config(**_LLAMA4, moe_layers=(0, 1, 2, 3), **_ids(tokenizer))


def twin_shape(tokenizer: Tokenizer) -> Llama4Config:
    """``experts_shape`` without experts: each layer's MLP as wide as a token's expert and the shared one together, and
    as many columns more as make up for the router's numbers, rounded up."""
    router = -(-_LLAMA4["experts"] // 3)
    return Llama4Config(**_LLAMA4 | {"dense_dim": 2 * _LLAMA4["ffn_dim"] + router}, **_ids(tokenizer))


_LLAMA4: dict[str, Any] = {
    "layers": 4,
    "dim": 128,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 32,
    "ffn_dim": 112,
    "dense_dim": 224,
    "experts": 8,
    "experts_per_token": 1,
    "rotated": (True, True, True, False),
    "chunked": (True, True, True, False),
    "chunk": 128,
    "floor_scale": 64,
    "context": 1024,
    "rope_theta": 500_000.0,
    "tied": True,
}


def first_weights(config: ModelConfig, seed: int = SEED) -> Iterator[tuple[str, Tensor]]:
    """(name, bfloat16 tensor) of an untrained base.

    Embeddings are large beside what the layers add at first (o_proj and down_proj start small), so that a token's
    identity survives to every layer: looking back begins to work several times earlier than with 0.02. A matrix's
    second size is what enters it, of a Linear's [out, in] and of stacked experts' [experts, in, out].
    """
    generator = torch.Generator().manual_seed(seed)
    for name, size in config.tensor_shapes().items():
        if len(size) == 1:
            yield name, torch.ones(size, dtype=torch.bfloat16)
            continue
        std = EMBEDDING_STD if "embed_tokens" in name else size[1] ** -0.5
        if "o_proj" in name or "down_proj" in name:
            std *= OUTPUT_SHARE
        yield name, (torch.randn(size, generator=generator) * std).to(torch.bfloat16)


def make_tokenizer(seed: int = SEED) -> Tokenizer:
    return vocabulary.train_tokenizer(corpus(seed, TOKENIZER_DOCUMENTS))


def reading(tokenizer: Tokenizer, tokens: int, seed: int = SEED, nursery: bool = False) -> Iterator[np.ndarray]:
    """Documents as int32 token rows, BOS first, until ``tokens`` tokens are reached."""
    return (np.array(encoding.ids, dtype=np.int32) for _, encoding in encoded(tokenizer, tokens, seed, nursery))


def encoded(
    tokenizer: Tokenizer, tokens: int, seed: int = SEED, nursery: bool = False
) -> Iterator[tuple[Document, Encoding]]:
    """The documents of a reading, each with its rendered text's tokens."""
    weights = documents.NURSERY if nursery else None
    stream, start, used = f"{seed}/nursery" if nursery else seed, 0, 0
    while True:
        chunk = list(corpus(stream, CHUNK, start, weights))
        start += CHUNK
        texts = [vocabulary.render(one) for one in chunk]
        for document, encoding in zip(chunk, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            yield document, encoding
            used += len(encoding.ids)
            if used >= tokens:
                return


def tokenizer_texts(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, object]:
    """{file name: its JSON value} of the tokenizer's files; tokenizer.json itself is ``tokenizer.to_str()``."""
    return {
        "tokenizer_config.json": vocabulary.tokenizer_config(),
        "generation_config.json": {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": list(config.eos_token_ids),
            "pad_token_id": config.pad_token_id,
            "do_sample": False,
            "max_new_tokens": 128,
        },
    }
