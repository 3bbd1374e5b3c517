"""Prompts with pictures: their tokens, and answers that hang on what is seen, whoever is answered beside it and however
a prompt is cut into steps."""

from __future__ import annotations

import base64
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import seeing
import tiny
import torch
from PIL import Image

import halter
from halter.adapters.adapter import adapt
from halter.errors import Refusal, Waivers
from halter.generation import beginnings
from halter.generation.engine import Engine, generate
from halter.generation.inputs import read_prompts
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt, encode_prompt
from halter.generation.requests import Request
from halter.generation.seeing import Seeing
from halter.model.config import ModelConfig
from halter.model.passes import Pass
from halter.model.segments import Segments
from halter.pictures.seen import RowPicture, features, look_at
from halter.pictures.sources import place_of
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

PICTURES = [seeing.pixels(n, 8, 8) for n in range(3)]
WORDS = "Once upon a time there was a little girl named Lily"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(seeing.folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(tokenizer):
    return seeing.decoder(tokenizer.vocab_size)


def asked(*parts, before=WORDS):
    content = [{"type": "text", "text": before}]
    content += [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


def logits_alone(model, prompt: EncodedPrompt, answered=(), adapter=None):
    """Of the whole row, computed by itself in one pass without a cache."""
    tokens = torch.tensor([*prompt.tokens, *answered])
    segments = Segments.packed([len(tokens)])
    segments.__dict__["features"] = features(model.config.pictures, [prompt.pictures])
    acts = None if adapter is None else adapter.bind(model, segments)
    return model.head(model.hidden(Pass(tokens, segments, acts)), acts)


def greedy_alone(model, prompt, count, adapter=None):
    said = []
    for _ in range(count):
        said.append(int(logits_alone(model, prompt, said, adapter)[-1].argmax()))
    return tuple(said)


def told_and_alone(model, prompt, answer, adapter=None):
    """What an answer says of its tokens' probabilities, and what the row has by itself; nats [tokens] both."""
    count = len(answer.tokens)
    alone = logits_alone(model, prompt, answer.tokens, adapter)[-1 - count : -1].log_softmax(-1)
    told = torch.tensor([token.logprob for token in answer.logprobs], dtype=torch.float64)
    return told, alone[torch.arange(count), list(answer.tokens)].double()


def encoded(tokenizer, model, messages):
    return encode_prompt(tokenizer, messages, seeing=Seeing(model.config.pictures))


def test_a_prompt_has_the_pictures_tokens_where_they_stand(tokenizer, model):
    image = Image.fromarray(seeing.pixels(1, 8, 24))
    prompt = encoded(tokenizer, model, asked(image, "What is <|image|>?", PICTURES and seeing.saved(PICTURES[0])))
    rules = model.config.pictures
    assert [(one.grid, one.length) for one in prompt.pictures] == [((1, 3), 8), ((1, 1), 4)]
    for one in prompt.pictures:
        assert prompt.tokens[one.start : one.end] == rules.ids(one.grid)
    own = {n for one in prompt.pictures for n in range(one.start, one.end)}
    assert not [n for n, id in enumerate(prompt.tokens) if id >= rules.first and n not in own]
    text = tokenizer.decode([id for n, id in enumerate(prompt.tokens) if n not in own], skip_control=False)
    assert f"{WORDS}What is <|image|>?<|eot_id|>" in text


def test_spellings_of_python_are_the_same_prompt(tokenizer, model, tmp_path):
    data = seeing.saved(PICTURES[1])
    (tmp_path / "a.png").write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    values = [tmp_path / "a.png", str(tmp_path / "a.png"), data, uri, Image.fromarray(PICTURES[1])]
    parts = [{"type": "image", "image": value} for value in values]
    parts += [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "image_url", "image_url": {"url": uri}}]
    made = [encoded(tokenizer, model, [{"role": "user", "content": [part]}]) for part in parts]
    assert len({(one.tokens, one.pictures[0].digest) for one in made}) == 1


def test_answers_are_those_of_each_prompt_alone(tokenizer, model):
    """Equal ids and different pictures beside equal pictures; with beginnings shared, which is told by the count."""
    data = [seeing.saved(one) for one in PICTURES]
    prompts = [asked(data[0], "?"), asked(data[1], "?"), asked(data[0], "?"), asked(data[0], data[1]), asked("?")]
    each = [encoded(tokenizer, model, one) for one in prompts]
    assert each[0].tokens == each[1].tokens and each[0].pictures != each[1].pictures
    wanted = [greedy_alone(model, one, 4) for one in each]
    assert wanted[0] == wanted[2]
    first, second = (logits_alone(model, one)[-1] for one in each[:2])
    assert (first - second).abs().max() > 0.1
    options = {"max_new_tokens": 4, "ignore_stop_ids": True, "logprobs": 0}
    found = generate(model, tokenizer, prompts, **options)
    assert [one.tokens for one in found] == wanted
    for one, prompt in zip(found, each, strict=True):
        torch.testing.assert_close(*told_and_alone(model, prompt, one), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 32])
def test_several_answers_to_a_prompt_are_all_of_its_own_picture(rows, tokenizer, model):
    """Drawn ones, some at work while others wait; the first is that of one answer."""
    data = [seeing.saved(one) for one in PICTURES]
    prompts = [asked(data[0], "?"), asked(data[1], "?"), asked("?"), asked(data[0], data[1]), asked(data[0], "?")]
    options = {"max_new_tokens": 4, "ignore_stop_ids": True, "logprobs": 0, "temperature": 1.0, "seed": 5}
    found = generate(model, tokenizer, prompts, n=3, max_rows=rows, **options)
    single = generate(model, tokenizer, prompts, max_rows=rows, **options)
    assert [one.tokens for one in found[::3]] == [one.tokens for one in single]
    assert len({one.tokens for one in found}) > len(prompts)
    for number, one in enumerate(found):
        prompt = encoded(tokenizer, model, prompts[number // 3])
        torch.testing.assert_close(*told_and_alone(model, prompt, one), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [3, 1000])
def test_prompts_with_pictures_may_each_have_an_adapter_of_their_own(tokens, tokenizer, model):
    """Equal prompts of two adapters, of one and of none; one adapter acts where pictures enter."""
    data = [seeing.saved(one) for one in PICTURES]
    made = [adapt(model, "lora", r=2, target_modules=[own]) for own in ("q_proj", "embed_tokens")]
    for number, one in enumerate(made):
        tiny.jitter(one, seed=number)
    asks = [asked(data[0], "?"), asked(data[1], "?"), asked("?"), asked(data[0], data[1], "?")]
    both = [(encoded(tokenizer, model, one), own) for one in asks for own in (None, *made, made[0])]
    options = GenerationOptions(max_new_tokens=3, ignore_stop_ids=True, logprobs=0)
    engine = Engine(model, tokenizer, rows=7, tokens=tokens)
    pieces = engine.run([Request(one, options, own) for one, own in both])
    found = {piece.row: piece.result for piece in pieces if piece.result}
    for number, (prompt, own) in enumerate(both):
        torch.testing.assert_close(*told_and_alone(model, prompt, found[number], own), atol=1e-5, rtol=0)
    first = [told_and_alone(model, both[n][0], found[n], both[n][1])[0][0] for n in range(3)]
    assert len({round(float(one), 4) for one in first}) == 3


def test_equal_pictures_are_computed_once_and_different_ones_each(tokenizer, model, monkeypatch):
    fed = []
    hidden = seeing.SeeingDecoder.hidden
    monkeypatch.setattr(
        seeing.SeeingDecoder, "hidden", lambda self, one: fed.append(len(one.tokens)) or hidden(self, one)
    )
    data = [seeing.saved(one) for one in PICTURES]
    counts = []
    for second in (data[0], data[1]):
        fed.clear()
        prompts = [asked(data[0], "What is this?"), asked(second, "What is this?")]
        generate(model, tokenizer, prompts, max_new_tokens=1)
        counts.append(sum(fed))
    prompt = encoded(tokenizer, model, asked(data[0], "What is this?"))
    length, start = len(prompt.tokens), prompt.pictures[0].start
    assert start >= beginnings.SHORTEST
    assert counts == [length + 1, 2 * length - start]


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7, 1000])
def test_answers_do_not_hang_on_how_a_prompt_is_cut_into_steps(tokens, tokenizer, model):
    prompts = [asked(seeing.saved(seeing.pixels(5, 16, 16)), "and", seeing.saved(one), "?") for one in PICTURES[:2]]
    each = [encoded(tokenizer, model, one) for one in prompts]
    options = GenerationOptions(max_new_tokens=3, ignore_stop_ids=True)
    engine = Engine(model, tokenizer, rows=2, tokens=tokens)
    results = {piece.row: piece.result for piece in engine.run([Request(one, options) for one in each]) if piece.result}
    assert [results[n].tokens for n in range(2)] == [greedy_alone(model, one, 3) for one in each]


def test_a_picture_that_changed_ends_its_own_row_alone(tokenizer, model, tmp_path):
    files = [tmp_path / f"{n}.png" for n in range(2)]
    for file in files:
        file.write_bytes(seeing.saved(seeing.pixels(80 + int(file.stem))))
    each = [encoded(tokenizer, model, asked(file)) for file in files]
    files[1].write_bytes(seeing.saved(PICTURES[2]))
    options = GenerationOptions(max_new_tokens=2, ignore_stop_ids=True)
    engine = Engine(model, tokenizer)
    for one in each:
        engine.add(Request(one, options))
    results = {}
    while engine.busy:
        results |= {piece.row: piece.result for piece in engine.step() if piece.result}
    assert results[0].finish_reason == "length" and results[0].tokens == greedy_alone(model, each[0], 2)
    assert results[1].finish_reason == "error" and "another one than when the rows were read" in results[1].error


@pytest.mark.parametrize("template", ["llama-3", "alpaca", "llama-3.2-vision"])
def test_built_in_templates_write_pictures(template, tokenizer, model):
    messages = asked(seeing.saved(PICTURES[0]), "Why?", before="Look: ")
    prompt = encode_prompt(tokenizer, messages, template, seeing=Seeing(model.config.pictures))
    (one,) = prompt.pictures
    before = tokenizer.decode(prompt.tokens[: one.start], skip_control=False)
    behind = tokenizer.decode(prompt.tokens[one.end :], skip_control=False)
    assert before.rstrip().endswith("Look:") and behind.startswith("Why?")
    whole = ChatTemplate.builtin(template).encode(
        tokenizer, [{"role": "user", "content": "Look: Why?"}], add_generation_prompt=True
    )
    if template == "alpaca":
        assert len(prompt.tokens) - one.length <= len(whole.tokens) + 1


def test_what_cannot_be_used_is_refused_in_words(tokenizer, model, tmp_path):
    rules = model.config.pictures
    with pytest.raises(Refusal) as refused:
        encode_prompt(tokenizer, asked(Path("none.png"), Path(tmp_path)), seeing=Seeing(rules))
    assert refused.value.id == "picture-unusable" and len(refused.value.found) == 2
    with pytest.raises(Refusal) as refused:
        encode_prompt(tokenizer, asked(seeing.saved(PICTURES[0])))
    assert refused.value.id == "pictures-unseen" and "--allow" not in str(refused.value)
    waived = Seeing(None, waivers=Waivers(("pictures-unseen",)))
    kept = encode_prompt(tokenizer, asked(seeing.saved(PICTURES[0])), seeing=waived)
    assert kept.pictures == () and kept == encode_prompt(tokenizer, [{"role": "user", "content": WORDS}])
    with pytest.raises(Refusal) as refused:
        encode_prompt(tokenizer, asked(b"", before="\U000f5a19"), seeing=Seeing(rules))
    assert refused.value.id == "messages-malformed"
    with pytest.raises(Refusal) as refused:
        generate(
            model, tokenizer, [{"role": "user", "content": [{"type": "image", "url": "http://127.0.0.1:9/a.png"}]}]
        )
    assert refused.value.id == "picture-address"


def test_rows_of_a_file_of_prompts_bring_their_pictures(tokenizer, model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(seeing.saved(PICTURES[0]))
    rows = [
        {"prompt": "<image>Why?", "images": ["a.png"]},
        {"messages": [{"role": "user", "content": "<image>Why?"}], "image": "a.png"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Why?"}]}
            ]
        },
        {"question": "Why?", "image": "a.png"},
        {"instruction": "Why?", "image": "a.png"},
    ]
    file = tmp_path / "in" / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = [
        encode_prompt(tokenizer, one.prompt, seeing=Seeing(model.config.pictures)) for one in read_prompts(str(file))
    ]
    assert len({one.tokens for one in made}) == 1 and all(len(one.pictures) == 1 for one in made)
    file.write_text(json.dumps({"prompt": "Why?<image><image>", "image": "a.png"}))
    with pytest.raises(Refusal) as refused:
        read_prompts(str(file))
    assert refused.value.id == "input-rows" and "2 places for pictures" in refused.value.found[0]


def test_a_prompt_that_was_made_for_another_models_pictures_is_refused(tokenizer, model):
    """Of equal tokens, one tile more: what the model then makes of the picture has no place in the row."""
    other = replace(model.config.pictures, most=2)
    prompt = encode_prompt(tokenizer, asked(seeing.saved(seeing.pixels(9, 16, 16))), seeing=Seeing(other))
    assert prompt.pictures[0].grid != (2, 2)
    blind = ModelConfig(**{field.name: getattr(model.config, field.name) for field in fields(ModelConfig)})
    for config, found in ((model.config, "1 by 1 tiles, and this model cuts it into 2 by 2"), (blind, "no pictures")):
        for _ in range(2):  # where its tiles are kept as well
            with pytest.raises(Refusal) as refused:
                features(config.pictures, [(), prompt.pictures])
            assert refused.value.id == "picture-for-another-model" and found in refused.value.found[0]
    options = GenerationOptions(max_new_tokens=1)
    engine = Engine(model, tokenizer)
    engine.add(Request(prompt, options))
    ends = [piece.result for piece in engine.step() if piece.result]
    assert [one.finish_reason for one in ends] == ["error"] and "takes the picture otherwise" in ends[0].error


def test_tiles_are_kept_up_to_a_bound(model):
    from halter.pictures.seen import PreparedTiles

    rules, made = model.config.pictures, []
    for n in range(6):
        look = look_at(rules, place_of(seeing.saved(seeing.pixels(n, 16, 16))))
        made.append(RowPicture(look.digest, 0, 10, look.grid, look.size, look.place))
    size = 4 * 3 * 8 * 8 * 4
    kept = PreparedTiles(most=3 * size)
    tiles = [kept.of(rules, one) for one in made]
    assert kept.held == 3 * size and kept.of(rules, made[-1]) is tiles[-1]
    again = kept.of(rules, made[0])
    assert again is not tiles[0] and torch.equal(again, tiles[0]) and kept.held == 3 * size
    assert halter.generate is generate
