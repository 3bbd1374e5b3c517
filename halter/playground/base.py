"""The tiny base: its shape, its first weights, the order of its reading, and the folder that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from halter.model.config import ModelConfig
from halter.playground import documents, vocabulary
from halter.playground.documents import corpus

SEED, HELD_OUT_SEED = 0, 1
TOKENIZER_DOCUMENTS = 20_000
CHUNK = 2048
EMBEDDING_STD, OUTPUT_SHARE = 0.2, 0.3


def base_folder() -> Path:
    """The folder of the base that comes with the package, as ``halter.load`` takes it."""
    return Path(__file__).with_name("base")


def shape(tokenizer: Tokenizer) -> ModelConfig:
    """LLaMA 3 in small: grouped queries, theta 500000, tied as Llama 3.2 1B and 3B are."""
    id_of = tokenizer.get_vocab()
    return ModelConfig(
        layers=4,
        dim=256,
        heads=4,
        kv_heads=2,
        head_dim=64,
        ffn_dim=640,
        vocab_size=tokenizer.get_vocab_size(),
        context=1024,
        rope_theta=500_000.0,
        tied=True,
        bos_token_id=id_of[vocabulary.BOS],
        eos_token_ids=(id_of[vocabulary.EOS], id_of[vocabulary.TURN_END]),
        pad_token_id=id_of[vocabulary.PAD],
        dtype="bfloat16",
    )


def first_weights(config: ModelConfig, seed: int = SEED) -> Iterator[tuple[str, Tensor]]:
    """(name, bfloat16 tensor) of an untrained base.

    Embeddings are large beside what the layers add at first (o_proj and down_proj start small), so that a token's
    identity survives to every layer: looking back begins to work several times earlier than with 0.02.
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
    weights = documents.NURSERY if nursery else None
    stream, start, used = f"{seed}/nursery" if nursery else seed, 0, 0
    while True:
        texts = [vocabulary.render(d) for d in corpus(stream, CHUNK, start, weights)]
        start += CHUNK
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.int32)
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
