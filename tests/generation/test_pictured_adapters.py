"""A LLaMA of text that is asked about pictures through an adapter: whose pictures are taken, how many, and by which
encoder."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace

import pytest
import seeing
import sighted
import tiny
import tiny_tokenizers
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.data.load import RowSight, load_examples
from halter.data.options import DataOptions
from halter.encoders import opened
from halter.encoders.config import SIGLIP
from halter.errors import Refusal
from halter.generation.engine import Engine, generate
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("small_encoder")
PICTURES = [seeing.saved(seeing.pixels(n, 20, 24)) for n in range(3)]
every_seeing = pytest.mark.parametrize("name", sighted.SEEING)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.decoder(tiny.config(vocab_size=tokenizer.vocab_size), torch.float64)


def fresh(model, name, seed=1, **options):
    adapter = adapt(model, sighted.method_of(name, **options), seed=seed)
    tiny.jitter(adapter, seed=seed)
    return adapter


def asked(*pictures, words="Once upon a time?"):
    parts = [{"type": "image", "image": one} for one in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]


OPTIONS = {"max_new_tokens": 3, "ignore_stop_ids": True, "logprobs": 0, "template": "llama3"}


def told(answer):
    return torch.tensor([one.logprob for one in answer.logprobs])


@every_seeing
def test_each_prompt_is_taken_as_its_adapter_sees(name, model, tokenizer):
    """One that has tokens for pictures, one that has none, none at all: in one call, in any order."""
    others = [one for one in sighted.SEEING if one != name][:1]
    mine, other = fresh(model, name), fresh(model, others[0], 2)
    prompts = [asked(PICTURES[0]), asked(PICTURES[1]), asked(), asked(PICTURES[0]), asked()]
    owners = [mine, other, None, other, mine]
    both = generate(model, tokenizer, prompts, owners, **OPTIONS)
    for prompt, own, answer in zip(prompts, owners, both, strict=True):
        (alone,) = generate(model, tokenizer, [prompt], own, **OPTIONS)
        assert answer.tokens == alone.tokens and answer.prompt_tokens == alone.prompt_tokens
        torch.testing.assert_close(told(answer), told(alone), atol=1e-5, rtol=0)
    changed = generate(model, tokenizer, [asked(PICTURES[2]), *prompts[1:]], owners, **OPTIONS)
    assert float((told(changed[0]) - told(both[0])).abs().max()) > 1e-5
    words = generate(model, tokenizer, prompts[2:3], None, **OPTIONS)[0].prompt_tokens
    assert len(both[0].prompt_tokens) == len(words) + mine.sight.tokens


@every_seeing
def test_how_many_pictures_a_prompt_may_have(name, model, tokenizer):
    adapter = fresh(model, name)
    two = [asked(*PICTURES[:2])]
    if adapter.sight.tokens:
        (answer,) = generate(model, tokenizer, two, adapter, **OPTIONS)
        (swapped,) = generate(model, tokenizer, [asked(*PICTURES[1::-1])], adapter, **OPTIONS)
        assert float((told(answer) - told(swapped)).abs().max()) > 1e-5
        return
    with pytest.raises(Refusal, match=r"this prompt has 2 pictures.*\[pictures-many\]"):
        generate(model, tokenizer, two, adapter, **OPTIONS)
    with pytest.raises(Refusal, match="pictures-unseen"):
        generate(model, tokenizer, [asked(PICTURES[0])], fresh(model, "bitfit"), **OPTIONS)


@every_seeing
def test_rows_of_a_file_have_as_many_pictures_as_are_seen(name, model, tokenizer, tmp_path):
    for number, data in enumerate(PICTURES):
        (tmp_path / f"{number}.png").write_bytes(data)
    answer = {"role": "assistant", "content": "A lamp."}
    rows = [{"messages": [*asked(*map(str, range(count))), answer]} for count in (0, 1, 2)]
    for row in rows:
        for part in row["messages"][0]["content"]:
            if part["type"] == "image":
                part["image"] += ".png"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sight = adapt(model, sighted.method_of(name)).sight
    options = DataOptions(train=str(tmp_path / "rows.jsonl"), template="llama3", cache=False, on_bad="skip")
    read = functools.partial(load_examples, tokenizer=tokenizer, template=ChatTemplate.builtin("llama3"), seed=0)
    found = read(options, sight=RowSight(sight)).train
    if not sight.tokens:
        with pytest.raises(Refusal, match="2 pictures, and this adapter sees 1 in a row: 1 row, .*:3"):
            read(replace(options, on_bad="stop"), sight=RowSight(sight))
    lengths = [len(row.tokens) for row in found]
    wanted = [lengths[0] + count * sight.tokens for count in range(3 if sight.tokens else 2)]
    assert lengths == wanted and [len(row.pictures) for row in found] == list(range(len(wanted)))
    for row in found:
        for one in row.pictures:
            assert one.length == sight.tokens and not row.supervised[one.start : one.end].any()


@every_seeing
def test_another_encoder_in_its_place_is_refused(name, model, tokenizer, encoder_folder, tmp_path, monkeypatch):
    """When a picture is asked for; rows of words need no encoder."""
    copy = shutil.copytree(encoder_folder, tmp_path / "encoder")
    method = type(sighted.method_of(name))(encoder=str(copy))
    adapter = adapt(model, method)
    tiny.jitter(adapter)
    adapter.save(tmp_path / "adapter")
    prompts = [asked(PICTURES[0]), asked()]
    before = generate(model, tokenizer, prompts, adapter, **OPTIONS)
    again = load_adapter(tmp_path / "adapter", model)
    assert generate(model, tokenizer, prompts, again, **OPTIONS) == before
    shutil.rmtree(copy)
    sighted.encoder_folder(copy, seed=1)
    monkeypatch.setattr(opened, "_held", type(opened._held)())
    late = load_adapter(tmp_path / "adapter", model)
    with pytest.raises(Refusal, match="encoder-differs"):
        generate(model, tokenizer, prompts[:1], late, **OPTIONS)
    shutil.rmtree(copy)
    monkeypatch.setattr(opened, "_held", type(opened._held)())
    gone = load_adapter(tmp_path / "adapter", model)
    assert told(generate(model, tokenizer, prompts[1:], gone, **OPTIONS)[0]).equal(told(before[1]))
    with pytest.raises(Refusal):
        generate(model, tokenizer, prompts[:1], gone, **OPTIONS)


@every_seeing
def test_a_folder_of_peft_alone_is_the_same_adapter(name, model, tmp_path):
    """adapter_config.json says all that halter.json does of the method, the encoder's sizes too."""
    adapter = fresh(model, name)
    adapter.save(tmp_path / "whole")
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "whole" / file, alone)
    again = load_adapter(alone, model, say=lambda _: None)
    assert again.sight == adapter.sight and again.sight is not None
    rows = sighted.rows_of(adapter.sight, [[1, 5, 9, 30, 41]] * 3, (0, None, 1))
    with torch.no_grad():
        found = [sighted.logits(model, one, rows) for one in (adapter, again)]
    assert all(map(torch.equal, *found))


@every_seeing
@pytest.mark.parametrize("kind", ["clip_without_projection", "siglip", "siglip_without_pooling"])
def test_encoders_of_either_family(name, kind, model, tmp_path):
    """Their sizes are what comes of them; saved and loaded."""
    changes = {"projection": 0} if kind.startswith("clip") else {"kind": SIGLIP, "projection": 0}
    changes |= {"pooling": True} if kind == "siglip" else {}
    place = sighted.encoder_folder(tmp_path / kind, **changes)
    options = {"v_num_heads": 4} if "v_num_heads" in type(sighted.method_of(name)).__dataclass_fields__ else {}
    adapter = adapt(model, type(sighted.method_of(name))(encoder=str(place), **options))
    tiny.jitter(adapter)
    rows = sighted.rows_of(adapter.sight, [[1, 5, 9, 30, 41]] * 3, (0, None, 1))
    adapter.save(tmp_path / "adapter")
    again = load_adapter(tmp_path / "adapter", model)
    with torch.no_grad():
        found, same = sighted.logits(model, adapter, rows), sighted.logits(model, again, rows)
    assert all(map(torch.equal, found, same))
    assert float((found[0][-1] - found[2][-1]).abs().max()) > 1e-5


@torch.no_grad()
@every_seeing
def test_acts_bound_for_one_picture_are_not_those_of_another(name, model, tokenizer, monkeypatch):
    """Rows that follow each other token by token, so that nothing but pictures tells one step from the next; where all
    of a row sees its picture, acts are bound once for rows of equal pictures."""
    adapter = fresh(model, name)
    bound = []
    bind = type(adapter).bind
    monkeypatch.setattr(type(adapter), "bind", lambda self, *args, **how: bound.append(1) or bind(self, *args, **how))
    options = GenerationOptions(max_new_tokens=4, ignore_stop_ids=True, logprobs=0)
    requests = []
    for picture in (0, 1, 1, None):
        (row,) = sighted.rows_of(adapter.sight, [[5]], (picture,))
        prompt = EncodedPrompt(tuple(row.tokens.tolist()), True, pictures=row.pictures)
        requests.append(Request(prompt, options, adapter))
    ended = {one.row: one.result for one in Engine(model, tokenizer, 1, 1).run(requests) if one.result}
    times, found = len(bound), [told(ended[number]) for number in range(4)]
    for request, one in zip(requests, found, strict=True):
        (alone,) = [piece.result for piece in Engine(model, tokenizer).run([request]) if piece.result]
        torch.testing.assert_close(one, told(alone), atol=1e-9, rtol=0)
    assert not torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    assert adapter.sight.tokens or times == 3


def test_refusals_say_what_is_wrong(model):
    shape = model.config
    v2 = sighted.method_of("llama_adapter_v2+sight")
    wrong = {
        "fusion": [
            (v2, {"v_depth": 0}, "v_depth 0"),
            (v2, {"v_num_heads": 5}, "v_num_heads 5 over 16 numbers"),
            (v2, {"fusion_layer": 2}, "fusion_layer 2 of 2 layers"),
            (v2, {"fusion": "late", "adapter_len": 3}, "query_len 20 added to adapter_len 3"),
        ],
        "nothing-trained": [
            (v2, {"encoder": None, "phase": "pretrain"}, "nothing to train"),
            (
                v2,
                {"phase": "finetune", "scale_side": "none", "bias_targets": (), "train_norm": False},
                "nothing to train",
            ),
        ],
    }
    for id, cases in wrong.items():
        for method, changes, said in cases:
            with pytest.raises(Refusal, match=id) as caught:
                replace(method, **changes).check(shape)
            assert said in str(caught.value)
    projector = type(sighted.method_of("projector"))
    for method, said in (
        (projector(encoder=None), "no encoder"),
        (projector(projector_depth=0).equipped(), "projector_depth 0"),
    ):
        with pytest.raises(Refusal, match="projector") as caught:
            halter.adapt(model, method)
        assert said in str(caught.value)
    small = tiny.decoder(tiny.config(context=4))
    with pytest.raises(Refusal, match="4 tokens a picture in a context of 4"):
        halter.adapt(small, projector())


@every_seeing
def test_facts_that_are_none_of_an_encoder_are_refused(name, model):
    whole = sighted.method_of(name).encoder_facts
    sizes = whole["config"]
    wrong = [{"config": 3, "digest": "a"}, {"config": sizes}, {"config": {**sizes, "more": 1}, "digest": "a"}]
    wrong += [
        {"config": {**sizes, key: value}, "digest": "a"} for key, value in (("kind", "x"), ("dim", "5"), ("heads", 0))
    ]
    for facts in wrong:
        with pytest.raises(Refusal, match="encoder-unread"):
            adapt(model, replace(sighted.method_of(name), encoder_facts=facts))
