"""Every number that is read from a stranger's file has an upper bound: accepted there, refused one step beyond."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizers
import torch

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.adapters.unfit import MAX_ENTRIES
from halter.errors import Refusal
from halter.files import manifest, meta_archive, meta_config, reading, tensors
from halter.files.meta_config import read_params
from halter.files.tensors import TensorFile
from halter.model import config_limits
from halter.model.config import ModelConfig
from halter.text import patterns
from halter.text.codecs import bounds, codec
from halter.text.codecs.tokenizer_json import JsonCodec

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
PARAMS = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_scaling_factor": 8.0,
    "rope_high_freq_factor": 4.0,
}


def beyond(bound: float) -> float:
    return bound + 1 if isinstance(bound, int) else math.nextafter(bound, math.inf)


def below(bound: float) -> float:
    return bound - 1 if isinstance(bound, int) else math.nextafter(bound, -math.inf)


def named(action: Callable[[], object], name: str) -> bool:
    """Whether the refusal, if there is one, complains of this name."""
    try:
        action()
    except Refusal as refusal:
        return any(wrong.startswith(f"{name} ") for wrong in refusal.found)
    return False


@pytest.mark.parametrize("key", config_limits.COUNTS)
def test_counts_of_config_json(key: str) -> None:
    least, most = config_limits.COUNTS[key]
    for value, bad in ((most, False), (most + 1, True), (least, False), (least - 1, True), (float(least), True)):
        assert named(lambda v=value: ModelConfig.from_hf({**CONFIG, key: v}), key) == bad, value


@pytest.mark.parametrize("key", [*config_limits.FLOATS, *(f"rope_scaling.{k}" for k in config_limits.ROPE)])
def test_numbers_of_config_json(key: str) -> None:
    section, _, inner = key.rpartition(".")
    least, most = (config_limits.ROPE if section else config_limits.FLOATS)[inner]

    def read(value: float) -> None:
        rules = {**CONFIG["rope_scaling"], inner: value}  # type: ignore[dict-item]
        ModelConfig.from_hf({**CONFIG, **({"rope_scaling": rules} if section else {inner: value})})

    for value, bad in ((most, False), (beyond(most), True), (least, False), (below(least), True), (math.nan, True)):
        assert named(lambda v=value: read(v), key) == bad, value


def test_ids_of_config_json() -> None:
    top = config_limits.MAX_ID
    for ids, bad in (([top], False), ([top + 1], True), ([2] * 256, False), ([2] * 257, True), (-1, False), (-2, True)):
        assert named(lambda i=ids: ModelConfig.from_hf({**CONFIG, "eos_token_id": i}), "eos_token_id") == bad


@pytest.mark.parametrize("key", meta_config.BOUNDS)
def test_numbers_of_params_json(key: str, tmp_path: Path) -> None:
    least, most = meta_config.BOUNDS[key]
    for value, bad in ((most, False), (beyond(most), True), (least, False), (below(least), True)):
        if isinstance(PARAMS[key], int):
            value = int(value) if value == int(value) else value
        (tmp_path / "params.json").write_text(json.dumps({**PARAMS, key: value}))
        assert named(lambda: read_params(tmp_path / "params.json"), key) == bad, value


def header(path: Path, text: bytes, data: int, length: int | None = None) -> Path:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text) if length is None else length) + text)
        file.truncate(8 + len(text) + data)
    return path


def test_sizes_of_a_tensor_files_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length, says in ((tensors.MAX_HEADER_BYTES, "truncated"), (tensors.MAX_HEADER_BYTES + 1, "the limit is")):
        with pytest.raises(Refusal, match=says):
            TensorFile(header(path, b"{}", 0, length))
    data = 160_000
    entry = json.dumps({"a": {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}}).encode()
    most = tensors.SMALL_HEADER_BYTES + (8 + data) // 16
    assert TensorFile(header(path, entry.ljust(most), data)).specs["a"].nbytes == data
    with pytest.raises(Refusal, match=f"a header of {most + 1} bytes for {data}"):
        TensorFile(header(path, entry.ljust(most + 1), data))


@pytest.mark.parametrize(
    ("shape", "good"),
    [([1] * 16, True), ([1] * 17, False), ([2**60 - 1, 0], True), ([2**60, 0], False), ([2**59, 0, 2], False)],
    ids=str,
)
def test_shapes_of_a_tensor(shape: list[int], good: bool, tmp_path: Path) -> None:
    size = 0 if 0 in shape else 1
    entry = {"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}}
    path = header(tmp_path / "x.safetensors", json.dumps(entry).encode(), size)
    if good:
        assert TensorFile(path).read("a").shape == tuple(shape)
    else:
        with pytest.raises(Refusal, match="tensor-file-damaged"):
            TensorFile(path)


@pytest.mark.parametrize("limit", [reading.MAX_JSON_BYTES, reading.MAX_TEXT_BYTES], ids=["json", "text"])
def test_sizes_of_text_files(limit: int, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"{}".ljust(limit))
    assert reading.read_json(path, limit) == {}
    path.write_bytes(b"{}".ljust(limit + 1))
    with pytest.raises(Refusal, match="file-too-large"):
        reading.read_json(path, limit)


def test_the_parsed_form_of_the_largest_json_is_small(tmp_path: Path) -> None:
    """What takes most memory for its size, an object of empty lists, stays below the 64 MB that are allowed."""
    import tracemalloc

    path = tmp_path / "x.json"
    path.write_bytes(b'{"a":[' + b"[]," * (reading.MAX_JSON_BYTES // 3 - 4) + b"[]]}")
    tracemalloc.start()
    reading.read_json(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"2 MiB of JSON take at most {peak / 2**20:.0f} MB (limit 68)")
    assert peak <= 2 * reading.MAX_JSON_BYTES + (64 << 20)


def test_ids_of_a_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"a": 0, "b": 2 * 2 + codec.MAX_GAPS - 1}
    codec.check_ids(few, "x")
    with pytest.raises(Refusal, match="tokenizer-unreadable"):
        codec.check_ids({**few, "b": few["b"] + 1}, "x")
    monkeypatch.setattr(codec, "MAX_IDS", 100)
    codec.check_ids({"a": 99}, "x")
    with pytest.raises(Refusal, match="from 0 to 99"):
        codec.check_ids({"a": 100}, "x")


def tokenizer(tmp_path: Path, **changes: Any) -> JsonCodec:
    spec = json.loads(tiny_tokenizers.sentencepiece_like("prepend").to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**spec, **changes}))
    return JsonCodec(tmp_path / "tokenizer.json")


def replace(content: str, pattern: str = "a") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("parts", [{"type": "NFC"}] * (bounds.MAX_PARTS - 1), [{"type": "NFC"}] * bounds.MAX_PARTS),
        ("growth", [replace("b" * 16)], [replace("b" * 17)]),
        ("growth together", [replace("bb")] * 4, [replace("bb")] * 5),
        ("growth of nothing", [replace("b" * 16, "")], [replace("b" * 17, "")]),
        ("prepend", [{"type": "Prepend", "prepend": "a" * 240}], [{"type": "Prepend", "prepend": "a" * 241}]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_normalizers(kind: str, good: list[dict[str, Any]], bad: list[dict[str, Any]], tmp_path: Path) -> None:
    assert tokenizer(tmp_path, normalizer={"type": "Sequence", "normalizers": good}).size
    with pytest.raises(Refusal, match="tokenizer-unsupported"):
        tokenizer(tmp_path, normalizer={"type": "Sequence", "normalizers": bad})


@pytest.mark.parametrize(
    ("regex", "good"),
    [
        ("a" * bounds.MAX_PATTERN_CHARS, True),
        ("a" * (bounds.MAX_PATTERN_CHARS + 1), False),
        (tiny_tokenizers.LLAMA3_SPLIT, True),
        ("(a+)?", True),
        (r"\(+", True),
        ("(a+)+", False),
        ("(a|b)*", False),
        ("(a){2,}", False),
        (r"(a)\1", False),
        (r"(?<x>a)\k<x>", False),
    ],
    ids=lambda v: v[:20] if isinstance(v, str) else "",
)
def test_expressions_of_tokenizers(regex: str, good: bool, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    if good:
        assert tokenizer(tmp_path, pre_tokenizer=split).run("aab", False) is not None
    else:
        with pytest.raises(Refusal, match="tokenizer-unsupported"):
            tokenizer(tmp_path, pre_tokenizer=split)


def test_a_panic_of_the_library_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "_REPEATED_GROUP", bounds.re.compile("(?!)"))
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    slow = tokenizer(tmp_path, pre_tokenizer=split)
    with pytest.raises(Refusal, match="the tokenizers library fails at it"):
        slow.run("a" * 40 + "!", False)


def test_a_tokenizer_of_chance_is_refused(tmp_path: Path) -> None:
    spec = json.loads(tiny_tokenizers.sentencepiece_like("first").to_str())
    with pytest.raises(Refusal, match="dropout"):
        tokenizer(tmp_path, model={**spec["model"], "dropout": 0.1})


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"target_modules": ["q_proj"] * MAX_ENTRIES}, {"target_modules": ["q_proj"] * (MAX_ENTRIES + 1)}),
        (
            {"rank_pattern": {f"x{i}": 3 for i in range(patterns.MAX_PATTERNS - 1)}},
            {"rank_pattern": {f"x{i}": 3 for i in range(patterns.MAX_PATTERNS + 1)}},
        ),
        (
            {"target_modules": "q_proj|.*q_proj".ljust(patterns.MAX_CHARS, "|")},
            {"target_modules": "q_proj|.*q_proj".ljust(patterns.MAX_CHARS + 1, "|")},
        ),
    ],
    ids=["entries", "patterns", "characters"],
)
def test_options_of_adapters(good: dict[str, Any], bad: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.decoder()
    adapt(model, "lora", r=2, target_modules=["q_proj"]).save(tmp_path / "a")
    for name in ("halter.json", "manifest.json"):
        (tmp_path / "a" / name).unlink()
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, **good}))
    assert load_adapter(tmp_path / "a", model).num_trainable
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, **bad}))
    with pytest.raises(Refusal, match="pattern-too-large|adapter-unreadable"):
        load_adapter(tmp_path / "a", model)


def test_a_manifest_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b" " * (manifest.MAX_BYTES + 1))
    with pytest.raises(Refusal, match="not as it was written"):
        manifest.check_manifest(tmp_path, "adapter-damaged", "")


def pth(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def test_counts_of_a_pth_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth"
    monkeypatch.setattr(meta_archive, "MAX_TENSORS", 8)
    shared = torch.zeros(4)
    assert len(meta_archive.open_rank(pth(path, {str(i): shared for i in range(8)}))) == 8
    with pytest.raises(Refusal, match="more than 8"):
        meta_archive.open_rank(pth(path, {str(i): shared for i in range(9)}))
    with pytest.raises(Refusal, match="other things than text"):
        meta_archive.open_rank(pth(path, {1: shared}))
    description = len(_member(pth(path, {"a": shared}), "data.pkl"))
    monkeypatch.setattr(meta_archive, "MAX_PICKLE_BYTES", description)
    assert meta_archive.open_rank(path)["a"].shape == (4,)
    monkeypatch.setattr(meta_archive, "MAX_PICKLE_BYTES", description - 1)
    with pytest.raises(Refusal, match="unpack to more than it holds"):
        meta_archive.open_rank(path)


def _member(path: Path, end: str) -> bytes:
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith(end)))


def test_a_pth_file_that_promises_more_than_it_holds(tmp_path: Path) -> None:
    import zipfile

    size = pth(tmp_path / "x.pth", {"a": torch.zeros(500)}).stat().st_size
    most = 2 * size // 4
    assert meta_archive.open_rank(
        pth(tmp_path / "y.pth", {"a": torch.zeros(500), "b": torch.zeros(1).expand(most - 700)})
    )
    with pytest.raises(Refusal, match="does not hold"):
        meta_archive.open_rank(pth(tmp_path / "y.pth", {"a": torch.zeros(500), "b": torch.zeros(1).expand(2**40)}))
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "z.pth", "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(Refusal, match="unpack to more than it holds"):
        meta_archive.open_rank(tmp_path / "z.pth")


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("2.10.0", True),
        ("2.13.0+cpu", True),
        ("3.0", True),
        ("2.9.1", False),
        ("1.13", False),
        ("2.9.9+cu130", False),
        ("dev", False),
    ],
)
def test_torch_must_be_one_without_known_holes(version: str, good: bool) -> None:
    if good:
        meta_archive.refuse_old_torch(version)
    else:
        with pytest.raises(Refusal, match="torch-too-old"):
            meta_archive.refuse_old_torch(version)
