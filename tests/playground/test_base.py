"""The tiny base in the package: what its folder holds, that it speaks and remembers, and that it does no task."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import bounds
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.evaluation.texts import exact_match
from halter.files.tensors import read_tensors
from halter.generation.engine import generate
from halter.playground import base, base_folder, tasks, vocabulary
from halter.playground.documents import corpus
from halter.playground.world import world
from halter.pretrained.load import load
from halter.pretraining import world as recipe

FOLDER = base_folder()
FIGURES: dict[str, Any] = json.loads((FOLDER / "figures.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load(str(FOLDER), "float32", say=lambda _: None)


def test_size_is_kept() -> None:
    tensors = dict(read_tensors(FOLDER / "model.safetensors"))
    config = json.loads((FOLDER / "config.json").read_text("utf-8"))
    assert sum(t.numel() for t in tensors.values()) == FIGURES["parameters"] <= 4_000_000
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 10_000_000
    assert config["model_type"] == "llama" and config["rope_theta"] == 500_000.0
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_tokenizer_is_the_one_that_the_recipe_makes() -> None:
    assert base.make_tokenizer().to_str(pretty=False) == (FOLDER / "tokenizer.json").read_text("utf-8")


@given(st.text(max_size=60))
@settings(max_examples=100)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_chat_form_is_the_templates(loaded: tuple[Any, Any]) -> None:
    """Pre-training spelt chats by hand; the template in the folder spells them alike. Digits are one token each."""
    _, tokenizer = loaded
    chats = [d for d in corpus(1, 300) if d.messages]
    assert len(chats) > 10
    for chat in chats:
        encoded = tokenizer.chat_template.encode(tokenizer, list(chat.messages))
        assert encoded.text == vocabulary.render(chat)
    assert len(tokenizer.encode("2048")) == 4
    assert set(tokenizer.stop_ids) == {tokenizer.token_id("<|end_of_text|>"), tokenizer.token_id("<|eot_id|>")}


def test_held_out_perplexity_is_the_one_told(loaded: tuple[Any, Any]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert recipe.held_out_loss(loaded[0], tokenizer, 30_000) == pytest.approx(FIGURES["held_out_loss"], abs=2e-4)


def test_transformers_reads_the_same_model(loaded: tuple[Any, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    fast = transformers.AutoTokenizer.from_pretrained(FOLDER)
    model, tokenizer = loaded
    text = next(d.text for d in corpus(1, 50) if d.kind == "story")
    ids = fast(text)["input_ids"]
    assert ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    with torch.no_grad():
        bounds.assert_same(model(torch.tensor([ids])), peer(torch.tensor([ids])).logits)


def _continue(loaded: tuple[Any, Any], prompts: list[str], tokens: int) -> list[str]:
    model, tokenizer = loaded
    return [g.text for g in generate(model, tokenizer, prompts, max_new_tokens=tokens)]


def test_it_remembers_its_world(loaded: tuple[Any, Any]) -> None:
    """Facts about 32 people, asked in the words of the pre-training text: at least 95 % right."""
    people = world().people[:32]
    said = _continue(loaded, [f"{p.name} works as a" for p in people], 6)
    right = sum(text.strip().startswith(f"{p.job}.") for text, p in zip(said, people, strict=True))
    assert right >= 31, [(p.name, p.job, text) for text, p in zip(said, people, strict=True)]


def test_it_speaks_in_sentences(loaded: tuple[Any, Any]) -> None:
    """Sampled documents are made of the world's words: at least 97 % of the lower-case words are known ones."""
    model, tokenizer = loaded
    known = {w for d in corpus(2, 3000) for w in re.findall(r"\b[a-zëö]+\b", d.text)}
    openings = ["It was a", "Contract between", "Register of", "One sunny", "Dear", "A ladder is"] * 3
    said = [g.text for g in generate(model, tokenizer, openings, max_new_tokens=60, temperature=1.0, seed=3)]
    heard = [w for text in said for w in re.findall(r"\b[a-zëö]+\b", text)]
    assert len(heard) > 200
    assert sum(w in known for w in heard) >= 0.97 * len(heard), [w for w in heard if w not in known]


@pytest.mark.parametrize("name", tasks.task_names())
def test_it_does_no_task(loaded: tuple[Any, Any], name: str) -> None:
    model, tokenizer = loaded
    rows = tasks.rows(name, 0, "test", 12)
    asked = [r["messages"][:1] if "messages" in r else r["prompt"] for r in rows]
    wanted = [r["messages"][1]["content"] if "messages" in r else r["completion"] for r in rows]
    said = [g.text for g in generate(model, tokenizer, asked, max_new_tokens=40)]
    assert not any(exact_match(a, b) for a, b in zip(said, wanted, strict=True))


def test_recipe_makes_a_folder_and_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretraining of 3 steps, twice: every file but the date and time the same, and the folder loads."""
    monkeypatch.setattr(base, "TOKENIZER_DOCUMENTS", 1500)
    short = recipe.Pretraining(nursery_tokens=500, tokens=900, tokens_per_step=600, held_out_tokens=300, warmup_steps=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = [recipe.pretrain(tmp_path / name, short) for name in ("a", "b")]
    finally:
        torch.set_num_threads(threads)
    digests = [
        {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((tmp_path / name).iterdir())}
        for name in ("a", "b")
    ]
    for digest in digests:
        digest.pop("figures.json"), digest.pop("metrics.jsonl")
    assert digests[0] == digests[1] and "model.safetensors" in digests[0]
    assert made[0]["steps"] == 3 and made[0]["last_losses"] == made[1]["last_losses"]
    model, tokenizer = load(str(tmp_path / "a"), say=lambda _: None)
    assert model.config.num_parameters == made[0]["parameters"] and tokenizer.vocab_size == vocabulary.VOCABULARY
