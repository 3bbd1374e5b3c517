"""A tiny Llama 3.2 Vision asked about pictures and trained on them, from rows and prompts as people give them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import seeing
import seeing_mllama
import torch
from test_mllama import moved

import halter
from halter.data.example import Example
from halter.generation.engine import Engine, generate
from halter.generation.options import GenerationOptions
from halter.generation.prompts import encode_prompt
from halter.generation.requests import Request
from halter.generation.seeing import Seeing
from halter.inspection.census import census
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.pictures.seen import features
from halter.pretrained.save import save_model
from halter.text.tokenizer import Tokenizer

PIXELS = [seeing.pixels(1, 20, 20), seeing.pixels(2, 20, 50), seeing.pixels(3, 60, 60)]
WORDS = "Once upon a time there was a little girl named Lily"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(seeing.folder(tmp_path_factory.mktemp("tokenizer")))


def shape_of(tokenizer, metas=False):
    """As in Hugging Face's files, where the tokenizer's own id is fed, or as in Meta's, where it is another's place."""
    image = next(control.id for control in tokenizer.controls if tokenizer.token(control.id) == "<|image|>")
    return seeing_mllama.config(vocab_size=tokenizer.vocab_size if metas else image, picture_id=image, context=512)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = seeing_mllama.made(shape_of(tokenizer))
    model.embed_tokens.matrix[:] *= 3  # or all answers are one token again and again
    return model


def asked(*parts):
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


def prompts_of(tokenizer, model):
    data = [seeing.saved(one) for one in PIXELS]
    asks = [
        asked(WORDS, data[0], "What is this?"),
        asked(WORDS, data[0], "Why?"),
        asked(WORDS, data[1], "What is this?"),
        asked(WORDS, "What is this?"),
        asked(WORDS, data[0], data[2], "and", data[1], "?"),
    ]
    return [encode_prompt(tokenizer, one, seeing=Seeing(model.config.pictures)) for one in asks]


def greedy_alone(model, prompt, count, adapter=None):
    """Each token from a pass of its own over the whole row."""
    said = []
    for _ in range(count):
        tokens = torch.tensor([*prompt.tokens, *said])
        segments = Segments.packed([len(tokens)])
        segments.__dict__["features"] = features(model.config.pictures, [prompt.pictures])
        acts = None if adapter is None else adapter.bind(model, segments)
        said.append(int(model.head(model.hidden(Pass(tokens, segments, acts)), acts)[-1].argmax()))
    return tuple(said)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [5, 1000])
def test_answers_are_those_of_each_prompt_alone(tokens, tokenizer, model):
    """Rows that begin alike, with one picture, others or none, each with its own adapter, prompts read in pieces."""
    prompts = prompts_of(tokenizer, model)
    assert all(one.tokens[p.start] == model.config.vocab_size for one in prompts for p in one.pictures)
    adapters = [None, moved(model, 1), None, moved(model, 2, target_modules="cross"), None]
    wanted = [greedy_alone(model, one, 5, own) for one, own in zip(prompts, adapters, strict=True)]
    assert len(set(wanted)) > 2 and all(id < model.config.vocab_size for one in wanted for id in one)
    options = GenerationOptions(max_new_tokens=5, ignore_stop_ids=True)
    engine = Engine(model, tokenizer, rows=3, tokens=tokens)
    requests = [Request(one, options, own) for one, own in zip(prompts, adapters, strict=True)]
    found = {piece.row: piece.result for piece in engine.run(requests) if piece.result}
    assert [found[n].tokens for n in range(len(prompts))] == wanted


@torch.no_grad()
def test_answers_of_one_picture_look_at_it_once(tokenizer, model):
    seen = []
    hook = model.layers[model.config.layers + 1].q_proj.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    prompt = asked(WORDS, seeing.saved(PIXELS[1]), "What is this?")
    generate(model, tokenizer, [prompt] * 3, max_new_tokens=4, ignore_stop_ids=True)
    hook.remove()
    assert seen == [model.config.max_tiles * model.config.padded_tokens]


def test_rows_with_tokens_that_the_tokenizer_does_not_know_are_counted(tokenizer):
    """A picture's may be anywhere behind its vocabulary."""
    bos, size = tokenizer.bos_id, tokenizer.vocab_size
    rows = [Example(np.array([bos, size + 9, 5], np.int32), np.array([False, False, True]))]
    assert census(rows, tokenizer) == census([replace(rows[0], tokens=np.array([bos, 6, 5], np.int32))], tokenizer)


@pytest.mark.parametrize("metas", [False, True])
def test_it_is_trained_on_rows_with_pictures_and_asked(metas, tokenizer, tmp_path):
    shape = shape_of(tokenizer, metas)
    folder = tmp_path / "base"
    save_model(seeing_mllama.made(shape, torch.float32), shape, folder, tokenizer.files)
    rows = []
    for number, pixels in enumerate(PIXELS * 2):
        (tmp_path / f"{number}.png").write_bytes(seeing.saved(pixels))
        say = ["red", "green", "blue"][number % 3]
        content = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": "What colour?"}]
        rows.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": say}]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(folder), "device": "cpu"},
        "method": {"name": "lora", "r": 4, "target_modules": ["cross", "projector", "vision"]},
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "train": {"per_device_train_batch_size": 6, "max_steps": 10, "learning_rate": 2e-2},
        "output_dir": str(tmp_path / "run"),
    }
    assert len(halter.inspect(recipe, rows=6, say=lambda _: None).rows) == 6
    run = halter.train(recipe, say=lambda _: None)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    model, own = halter.load(folder, device="cpu")
    adapter = halter.load_adapter(run / "adapter", model)
    prompts = [asked(tmp_path / f"{n}.png", "What colour?") for n in range(3)]
    answers = halter.generate(model, own, prompts, adapter, max_new_tokens=3)
    seen = [encode_prompt(own, one, seeing=Seeing(shape.pictures)) for one in prompts]
    for answer, prompt in zip(answers, seen, strict=True):
        with torch.no_grad():
            assert answer.tokens == greedy_alone(model, prompt, 3, adapter)[: len(answer.tokens)]
