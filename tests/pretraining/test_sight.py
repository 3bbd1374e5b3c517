"""The recipe of the base that sees: its rows, and that tower, projector and text are trained and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from halter.files.tensors import read_tensors
from halter.playground import seeing, sights
from halter.pretrained.load import load
from halter.pretraining import lessons
from halter.pretraining.sight import SightTraining, pretrain_sight


def test_the_recipe_makes_the_same_base_again_and_spells_as_its_template(tmp_path: Path) -> None:
    """Of a few steps, twice: equal weights of which none is as it began, biases too, and a loss that falls."""
    recipe = SightTraining(nursery_tokens=4000, tokens=4000, held_out_tokens=1000)
    figures = [pretrain_sight(tmp_path / name, recipe) for name in "ab"]
    first, second = (dict(read_tensors(tmp_path / name / "model.safetensors")) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first) and len(first) == len(second)
    assert figures[0]["last_losses"][-1] < 0.8 * figures[0]["last_losses"][0]
    model, tokenizer = load(str(tmp_path / "a"), "bfloat16", say=lambda _: None)
    began = dict(seeing.first_sight(model.config))
    assert began.keys() == first.keys()
    # A norm's weight near one is rounded to what it was; a key's bias has no gradient where queries are not rotated.
    same = [name for name in first if torch.equal(first[name], began[name])]
    assert not [name for name in same if "norm" not in name and "k_proj.bias" not in name], same
    assert (tmp_path / "a" / "tokenizer.json").read_text("utf-8") == seeing.sight_tokenizer().to_str(pretty=False)
    _spells_as_the_template(model, tokenizer)


def _spells_as_the_template(model: Any, tokenizer: Any) -> None:
    seen, said = sights.lesson(7, 0, SightTraining().types)
    assert len(said) > 1
    messages: list[dict[str, Any]] = []
    for question, answer in said:
        picture: list[dict[str, str]] = [] if messages else [{"type": "image"}]
        asked = [*picture, {"type": "text", "text": question}]
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    row = lessons.talk(seeing.sight_tokenizer(), model.config.pictures, seen, said)
    tokens = row.tokens.tolist()
    (shown,) = row.pictures
    tokens[shown.start : shown.end] = [model.config.pictures.token_id]
    assert list(tokenizer.chat_template.encode(tokenizer, messages).tokens) == tokens
