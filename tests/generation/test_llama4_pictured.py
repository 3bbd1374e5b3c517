"""A folder with a whole Llama 4, asked about pictures and trained on rows with them: against passes over whole rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_tokenizers
import torch
from PIL import Image
from tiny_llama4 import config, ids_of, logits, made, tower

import halter
from halter.adapters.loading import load_adapter
from halter.generation.engine import Engine
from halter.generation.requests import requests_of
from halter.model.pictures import Picture
from halter.pretrained.save import save_model
from halter.text.tokenizer import Tokenizer

SIZES = [(8, 8), (20, 9), (9, 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights; the tokenizer's own ids stand for pictures, and the config says which they are."""
    tokens = tiny_tokenizers.llama4(tmp_path_factory.mktemp("tokens"))
    known = Tokenizer.from_folder(tokens)
    ids, ends = ids_of(known)
    sizes = {"vocab_size": known.vocab_size + 3, "context": 1024, "pad_token_id": known.pad_id}
    shape = config(chunk=16, seen=tower(**ids), **sizes, **ends)
    folder = tmp_path_factory.mktemp("llama4") / "base"
    save_model(made(shape, torch.float32), shape, folder, sorted(tokens.iterdir()))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files of noise of several sizes."""
    folder, drawn = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (wide, high) in enumerate(SIZES):
        Image.fromarray(drawn.integers(0, 256, (high, wide, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(len(SIZES))]


def asked(images, words="once upon a time"):
    parts = [{"type": "image", "image": str(file)} for file in images]
    return [{"role": "user", "content": [{"type": "text", "text": words}, *parts, {"type": "text", "text": "?"}]}]


def row_of(model, tokens, images):
    """(tokens, pictures) of a row, found by the tokens that stand for pictures and not by who put them there."""
    rules, pictures, at = model.config.pictures, [], 0
    for file in images:
        pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        tiles, grid = rules.prepare(pixels)
        at = tokens.index(rules.tower.start_id, at)
        assert tuple(tokens[at : at + len(rules.ids(grid))]) == rules.ids(grid)
        pictures.append(Picture(str(file), tiles, grid, at, len(rules.ids(grid))))
        at += 1
    return torch.tensor(tokens), tuple(pictures) or None


@torch.no_grad()
def greedy(model, tokens, images, count, adapter=None):
    tokens = list(tokens)
    begin = len(tokens)
    for _ in range(count):
        (whole,) = logits(model, [row_of(model, tokens, images)], adapter)
        tokens.append(int(whole[-1].argmax()))
    return tuple(tokens[begin:])


def test_it_is_trained_and_asked_about_pictures(folder, images, tmp_path):
    rows = [
        {"messages": [*asked([images[n % 3]]), {"role": "assistant", "content": "abc"[n % 3] * 4}]} for n in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(folder), "device": "cpu"},
        "method": {"name": "lora", "r": 4, "target_modules": ["vision", "projector", "q_proj", "o_proj"]},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "train": {"per_device_train_batch_size": 9, "max_steps": 12, "learning_rate": 2e-2},
        "output_dir": str(tmp_path / "run"),
    }
    run = halter.train(recipe, say=lambda _: None)
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in told if "loss" in line]
    assert losses[-1] < losses[0]
    model, tokenizer = halter.load(folder, device="cpu")
    adapter = load_adapter(run / "adapter", model)
    assert {slot.at.group for slot in adapter.slots} == {"language", "vision", "projector"}
    prompts = [asked([images[0]]), asked([images[1], images[2]]), asked([]), asked([images[2]])]
    shown = [[images[0]], [images[1], images[2]], [], [images[2]]]
    owners = [adapter, None, adapter, adapter]
    options = {"max_new_tokens": 6, "ignore_stop_ids": True}
    answers = halter.generate(model, tokenizer, prompts, owners, **options)
    for answer, seen, owner in zip(answers, shown, owners, strict=True):
        assert answer.tokens == greedy(model, list(answer.prompt_tokens), seen, 6, owner)
    # Prompts read in pieces of nine tokens, which cut the tokens of a tile.
    requests = requests_of(tokenizer, prompts, owners, dict(options), model.config)
    pieces = Engine(model, tokenizer, 4, 9).run(requests)
    found = {piece.row: piece.result.tokens for piece in pieces if piece.result is not None}
    assert [found[n] for n in range(4)] == [answer.tokens for answer in answers]
    (one,) = logits(model, [row_of(model, list(answers[0].prompt_tokens), shown[0])], adapter)
    (other,) = logits(model, [(torch.tensor(answers[0].prompt_tokens), None)], adapter)
    assert float((one[-1] - other[-1]).abs().max()) > 1e-2
