"""An adapter knows its base, its tokenizer and its template: the same weights filed otherwise pass, others do not."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_tokenizers
import torch
from safetensors.torch import load_file, save_file
from sealing import reseal
from tiny_models import tiny_llama, write_meta_folder

import halter
from halter.adapters.adapter import adapt
from halter.errors import Refusal
from halter.files.names import EMBEDDING
from halter.pretrained.digest import BaseIdentity, digest_base
from halter.pretrained.load import load_model
from halter.run.opening import OpenOptions, find, open_subject
from halter.text.tokenizer import Tokenizer

LAYOUTS = ("single", "shards", "meta1", "meta2")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HALTER_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in four layouts, and what a merged adapter of rank 1 on one matrix makes of it ("merged")."""
    folder, model = tmp_path_factory.mktemp("bases"), tiny_llama(vocab_size=640)
    model.save_pretrained(folder / "single")
    model.save_pretrained(folder / "shards", max_shard_size="90KB")
    write_meta_folder(model, folder / "meta1")
    write_meta_folder(model, folder / "meta2", 2, embedding="columns")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 2
    shutil.copytree(folder / "single", folder / "merged")
    change(folder / "merged", "model.layers.1.self_attn.v_proj.weight", lambda w: w.add_(torch.ones(32, 1) * 1e-3))
    for name in (*LAYOUTS, "merged"):
        tiny_tokenizers.llama3(folder / name)
    return folder


def change(folder: Path, name: str, how: Callable[[torch.Tensor], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    how(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def adapter(bases: Path, tmp_path: Path) -> Path:
    """An adapter as training on "single" records it."""
    made = adapt(load_model(bases / "single", device="cpu"), "lora", r=2)
    tokenizer = Tokenizer.from_folder(bases / "single")
    made.facts = {
        "base": {"name": str(bases / "single"), "revision": None, **digest_base(bases / "single").facts()},
        "tokenizer": {"digest": tokenizer.digest},
        "template": None,
    }
    made.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_every_layout_of_the_same_weights_is_the_same_base(bases: Path, adapter: Path, cache: Path) -> None:
    found = {name: digest_base(bases / name) for name in LAYOUTS}
    assert len({(d.digest, d.fingerprint) for d in found.values()}) == 1
    assert digest_base(bases / "merged").digest != found["single"].digest
    for known in (True, False):  # by the full digest, and by the fingerprint alone
        for name in LAYOUTS:
            if not known:
                shutil.rmtree(cache / "digests", ignore_errors=True)
            opened = open_subject(find(adapter, model=str(bases / name)), print)
            assert opened.adapter is not None and opened.model.identity is not None


@pytest.mark.parametrize("cached", [True, False], ids=["digest", "fingerprint"])
def test_another_base_is_refused_before_an_answer_and_waivable(bases: Path, adapter: Path, cached: bool) -> None:
    if cached:
        digest_base(bases / "merged")
    with pytest.raises(Refusal) as refusal:
        open_subject(find(adapter, model=str(bases / "merged")), print)
    assert refusal.value.id == "base-differs" and refusal.value.waivable
    assert ("digest" if cached else "fingerprint") in str(refusal.value) and str(bases / "single") in str(refusal.value)
    with pytest.raises(Refusal, match="base-differs"):  # the library's own door
        halter.load_adapter(adapter, load_model(bases / "merged", device="cpu"))
    said: list[str] = []
    subject = find(adapter, model=str(bases / "merged"))
    assert open_subject(subject, said.append, OpenOptions(allow=("base-differs",))).adapter is not None
    assert any(line.startswith("waived, base-differs") for line in said)


def test_what_the_fingerprint_cannot_see_the_full_digest_says(bases: Path, adapter: Path, tmp_path: Path) -> None:
    """One trained token row: nothing at once, a warning when the background is done, a refusal from then on."""
    shutil.copytree(bases / "single", tmp_path / "rows")
    change(tmp_path / "rows", EMBEDDING, lambda w: w[7].add_(1))
    said: list[str] = []
    open_subject(find(adapter, model=str(tmp_path / "rows")), said.append)
    end = time.monotonic() + 10
    while not said and time.monotonic() < end:
        time.sleep(0.01)
    assert "base-differs" in said[0]
    with pytest.raises(Refusal, match="base-differs"):
        open_subject(find(adapter, model=str(tmp_path / "rows")), said.append)


def test_of_a_kept_digest_nothing_is_hashed(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAYOUTS:
        digest_base(bases / name)
    monkeypatch.setattr("halter.files.checkpoint.HFCheckpoint.sha256", None)  # a call would raise
    monkeypatch.setattr("halter.files.meta.MetaCheckpoint.sha256", None)
    for name in LAYOUTS:
        digest_base(bases / name)


def test_an_adapter_that_says_nothing_of_its_base_loads(bases: Path, adapter: Path) -> None:
    for name in ("halter.json", "manifest.json"):
        (adapter / name).unlink()
    assert open_subject(find(adapter, model=str(bases / "merged")), print).adapter is not None


@pytest.mark.parametrize("key", ["base", "tokenizer", "template", "recipe", "template_source", "template_date"])
@pytest.mark.parametrize("junk", [3, [], "x", {"name": 3, "digest": []}], ids=str)
def test_junk_in_the_facts_is_refused_not_raised(bases: Path, adapter: Path, key: str, junk: object) -> None:
    facts = json.loads((adapter / "halter.json").read_text())
    (adapter / "halter.json").write_text(json.dumps({**facts, key: junk}))
    reseal(adapter)
    try:
        open_subject(find(adapter, model=str(bases / "single")), print)
    except Refusal as refusal:
        assert refusal.id in ("adapter-unreadable", "date-malformed", "recipe"), refusal
    else:
        assert key in ("template_source", "template_date") and junk in ("x", [])


def test_the_identity_is_taken_when_the_weights_are_read(bases: Path, tmp_path: Path) -> None:
    shutil.copytree(bases / "single", tmp_path / "gone")
    model = load_model(tmp_path / "gone", device="cpu")
    shutil.rmtree(tmp_path / "gone")
    assert isinstance(model.identity, BaseIdentity)
    assert model.identity.fingerprint == digest_base(bases / "meta2").fingerprint
    assert model.identity.differences({"fingerprint": "0" * 64}) and not model.identity.differences({})
