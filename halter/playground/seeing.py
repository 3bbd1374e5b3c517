"""The tiny base that sees: its shape, its tokenizer, its first weights and what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from halter.model.llama4_config import Llama4Config
from halter.model.llama4_tiles import IMAGE
from halter.model.llama4_tower import Llama4Tower
from halter.playground import sights, vocabulary
from halter.playground.base import EMBEDDING_STD, OUTPUT_SHARE, SEED
from halter.playground.documents import Document
from halter.playground.drawings import SIDE

VOCABULARY = 512
TOKENIZER_LESSONS = 3000
BOS, EOS, PAD = vocabulary.BOS, vocabulary.EOS, "<|finetune_right_pad|>"
HEADER, HEADER_END, TURN_END = "<|header_start|>", "<|header_end|>", "<|eot|>"
START, END, TILE_X, TILE_Y = "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>"
PATCH = "<|patch|>"
CONTROL = (BOS, EOS, PAD, HEADER, HEADER_END, TURN_END, START, END, TILE_X, TILE_Y, IMAGE, PATCH)
"""With the names that Llama 4 has for them."""
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|header_start|>{{ message['role'] }}<|header_end|>\n\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}<|eot|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
)
POSITIONS_STD = 1.0
"""Of what the tower adds for a patch's place, at first. With 0.2 every colour was known and no place: after 880 steps a
thing was told from the one beside it no better than by chance."""


def seeing_shape(tokenizer: Tokenizer) -> Llama4Config:
    """Llama 4 in small, with its tower: routed experts in every other layer, as Maverick has them; the fourth layer
    without rotation. A picture of the playground is one tile of 64 patches, which become 16 tokens."""
    id_of = tokenizer.get_vocab()
    tower = Llama4Tower(
        layers=3,
        dim=64,
        heads=4,
        ffn_dim=256,
        image=SIDE,
        patch=4,
        out_dim=96,
        start_id=id_of[START],
        end_id=id_of[END],
        tile_x_id=id_of[TILE_X],
        tile_y_id=id_of[TILE_Y],
        image_id=id_of[IMAGE],
        patch_id=id_of[PATCH],
    )
    return Llama4Config(
        layers=4,
        dim=96,
        heads=4,
        kv_heads=2,
        head_dim=24,
        ffn_dim=96,
        dense_dim=192,
        experts=4,
        experts_per_token=1,
        moe_layers=(1, 3),
        rotated=(True, True, True, False),
        chunked=(True, True, True, False),
        chunk=256,
        floor_scale=64,
        context=512,
        rope_theta=500_000.0,
        tied=True,
        tower=tower,
        vocab_size=tokenizer.get_vocab_size(),
        bos_token_id=id_of[BOS],
        eos_token_ids=(id_of[EOS], id_of[TURN_END]),
        pad_token_id=id_of[PAD],
        dtype="bfloat16",
    )


def first_sight(config: Llama4Config, seed: int = SEED) -> Iterator[tuple[str, Tensor]]:
    """(name, bfloat16 tensor) of an untrained base that sees: as ``base.first_weights``, biases nothing, and what the
    tower adds for a patch's place as large as what the patch is."""
    generator = torch.Generator().manual_seed(seed)
    for name, size in config.tensor_shapes().items():
        if "class_embedding" in name or "positional_embedding" in name:
            std = POSITIONS_STD
        elif len(size) == 1:
            yield name, torch.full(size, float(not name.endswith(".bias")), dtype=torch.bfloat16)
            continue
        elif "embed_tokens" in name:
            std = EMBEDDING_STD
        else:
            std = size[1] ** -0.5 * (OUTPUT_SHARE if _adds(name) else 1.0)
        yield name, (torch.randn(size, generator=generator) * std).to(torch.bfloat16)


def _adds(name: str) -> bool:
    """Whether what a matrix makes is added to the states."""
    return "o_proj" in name or "down_proj" in name or (".mlp.fc2" in name and "vision_adapter" not in name)


def sight_tokenizer(seed: int = SEED) -> Tokenizer:
    types = tuple(sights.QUESTIONS)
    lessons = (sights.lesson(seed, at, types)[1] for at in range(TOKENIZER_LESSONS))
    talks = (
        [word for question, answer in said for word in ("user", question, "assistant", answer)] for said in lessons
    )
    documents = (Document("sights", "\n".join(said)) for said in talks)
    return vocabulary.train_tokenizer(documents, VOCABULARY, CONTROL)


def sight_texts(config: Llama4Config) -> dict[str, Any]:
    """{file name: its JSON value} of the tokenizer's files but tokenizer.json."""
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "model_max_length": config.context,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
        "generation_config.json": {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": list(config.eos_token_ids),
            "pad_token_id": config.pad_token_id,
            "do_sample": False,
            "max_new_tokens": 64,
        },
    }
