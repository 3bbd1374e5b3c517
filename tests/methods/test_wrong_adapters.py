"""Wrong and damaged adapters: refused with every name, before a tensor is handed out, and nothing is half applied."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bounds
import pytest
import tiny
import torch
from endless import ended
from safetensors.torch import load_file, save_file
from sealing import reseal

from halter.adapters import loading
from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.errors import Refusal
from halter.files.manifest import check_manifest
from halter.pretrained.digest import BaseIdentity, digest_model

FILES = ("adapter_model.safetensors", "adapter_config.json", "halter.json", "manifest.json")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same adapter as Halter's folder ("ours"), as PEFT's ("peft"), and those of a longer and a shorter base."""
    root = tmp_path_factory.mktemp("adapters")
    for name, layers in (("ours", 2), ("longer", 3), ("shorter", 1)):
        adapter = adapt(tiny.decoder(tiny.config(layers=layers)), "lora", r=4)
        tiny.jitter(adapter)
        adapter.facts = {"base": {"name": "tiny", "digest": "d" * 64, "fingerprint": "f" * 64}}
        adapter.save(root / name)
    shutil.copytree(root / "ours", root / "peft")
    for name in ("halter.json", "manifest.json"):
        (root / "peft" / name).unlink()
    return root


def refused(folder: Path, base: Any, id: str) -> list[str]:
    """What the refusal found that loading must end in."""
    with pytest.raises(Refusal) as caught:
        load_adapter(folder, base)
    assert caught.value.id == id, caught.value
    return [wrong.removeprefix(loading.PREFIX) for wrong in caught.value.found]


# Each takes tensors by their names in the file, wounds some of them, and says which names the refusal must have.


def _missing(rng: random.Random, tensors: Tensors, names: list[str]) -> set[str]:
    for name in names:
        del tensors[name]
    return set(names)


def _extra(rng: random.Random, tensors: Tensors, names: list[str]) -> set[str]:
    more = {name.replace("layers.", "layers.7"): tensors[name].clone() for name in names}
    tensors |= more
    return set(more)


def _renamed(rng: random.Random, tensors: Tensors, names: list[str]) -> set[str]:
    new = {name.replace("lora_", rng.choice(("lora.", "Lora_", "xlora_"))): tensors.pop(name) for name in names}
    tensors |= new
    return {*names, *new}


def _shape(rng: random.Random, tensors: Tensors, names: list[str]) -> set[str]:
    for name in names:
        changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
            lambda t: t.t().contiguous(),
            lambda t: t[:-1].clone(),
            lambda t: t.flatten(),
            lambda t: t[None],
            lambda t: t[:0].clone(),
            lambda t: torch.cat([t, t]),
        ]
        tensors[name] = rng.choice(changes)(tensors[name])
    return set(names)


def _not_finite(rng: random.Random, tensors: Tensors, names: list[str]) -> set[str]:
    for name in names:
        bad = rng.choice((float("nan"), float("inf"), -float("inf")))
        tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = bad
    return set(names)


def _too_large(rng: random.Random, tensors: Tensors, names: list[str]) -> set[str]:
    for name in names:  # finite as stored, not as held
        tensors[name] = tensors[name].double().add_(1e300)
    return set(names)


def _whole_numbers(rng: random.Random, tensors: Tensors, names: list[str]) -> set[str]:
    for name in names:
        tensors[name] = tensors[name].to(rng.choice((torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn)))
    return set(names)


WOUNDS = (_missing, _extra, _renamed, _shape, _not_finite, _too_large, _whole_numbers)


def test_two_hundred_wrong_adapters_are_refused_with_every_name(folders: Path, tmp_path: Path) -> None:
    """Wounds of tensors, alone and together; another rank, layer count, base; damage of sealed folders."""
    rng, base, kinds = random.Random(0), tiny.decoder(), Counter[str]()
    before = digest_model(base)
    whole = load_file(folders / "peft" / FILES[0])
    for case in range(120):
        folder = tmp_path / str(case)
        shutil.copytree(folders / "peft", folder)
        tensors, expected = {n: t.clone() for n, t in whole.items()}, set()
        chosen = rng.sample(WOUNDS, rng.choice((1, 1, 2, 3)))
        victims = rng.sample(sorted(whole), len(chosen) * rng.randrange(1, 8))
        for i, wound in enumerate(chosen):
            expected |= wound(rng, tensors, victims[i :: len(chosen)])
            kinds[wound.__name__] += 1
        save_file(tensors, folder / FILES[0])
        found = {wrong.split(" ")[0] for wrong in refused(folder, base, "adapter-mismatch")}
        assert found == {name.removeprefix(loading.PREFIX) for name in expected}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(30):
        folder, rank = tmp_path / f"r{case}", rng.choice((1, 2, 3, 5, 8, 4096, 10**6, 2**40, 2**62))
        shutil.copytree(folders / "peft", folder)
        config = json.loads((folder / FILES[1]).read_text())
        (folder / FILES[1]).write_text(json.dumps({**config, "r": rank}))
        with pytest.raises(Refusal) as caught:
            load_adapter(folder, base)
        huge = caught.value.id == "adapter-unreadable" and rank > 10**6
        assert huge or len(caught.value.found) == len(whole), caught.value
        kinds["rank"] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 64 << 10  # KiB; a rank of 10**6 would be 3 GB
    for name, layers in (("longer", 3), ("shorter", 1)):
        for _ in range(5):
            more = {n.removeprefix(loading.PREFIX) for n in load_file(folders / name / FILES[0])}
            less = {n.removeprefix(loading.PREFIX) for n in whole}
            found = {wrong.split(" ")[0] for wrong in refused(folders / name, base, "adapter-mismatch")}
            assert found == more ^ less and len(found) == 14 and layers != 2
            kinds["layers"] += 1
    for _ in range(40):
        base.identity = BaseIdentity(Path("x"), [], f"{rng.getrandbits(256):064x}")
        assert "fingerprint" in refused(folders / "ours", base, "base-differs")[0]
        kinds["base"] += 1
    base.identity = None
    assert digest_model(base) == before and load_adapter(folders / "ours", base).methods[0].r == 4  # type: ignore
    print(f"wrong adapters: 200 of 200 refused, every name listed; {dict(kinds)}")


def flips(folders: Path, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Refuse ``count`` folders with one flipped bit, before a tensor is read; the slowest in seconds."""
    rng, base, slowest = random.Random(count), tiny.decoder(), 0.0
    shutil.copytree(folders / "ours", tmp_path / "a")
    load_adapter(tmp_path / "a", base)
    monkeypatch.setattr(loading, "read_tensors", None)  # a call would raise
    whole = {name: (tmp_path / "a" / name).read_bytes() for name in FILES}
    for _ in range(count):
        name = rng.choice(FILES)
        data = bytearray(whole[name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "a" / name).write_bytes(data)
        begun = time.perf_counter()
        wrong = refused(tmp_path / "a", base, "adapter-damaged")
        slowest = max(slowest, time.perf_counter() - begun)
        assert len(wrong) == 1 and wrong[0].startswith(f"{name} ")
        (tmp_path / "a" / name).write_bytes(whole[name])
    print(f"bit rot of an adapter: {count} of {count} flips refused, each naming its file, slowest {slowest:.3f} s")
    return slowest


def test_a_flipped_bit_is_refused_by_its_files_name(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flips(folders, tmp_path, 100, monkeypatch) < 1


@pytest.mark.nightly
def test_a_thousand_flipped_bits(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flips(folders, tmp_path, 1000, monkeypatch) < 1


def test_every_bit_of_a_small_manifest_counts(folders: Path, tmp_path: Path) -> None:
    """Spaces, line ends and letters whose case a number does not mind: exhaustively, the first 60 bytes."""
    shutil.copytree(folders / "ours", tmp_path / "a")
    whole = (tmp_path / "a/manifest.json").read_bytes()
    for bit in range(60 * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a/manifest.json").write_bytes(data)
        with pytest.raises(Refusal, match="manifest.json is not as it was written"):
            check_manifest(tmp_path / "a", "adapter-damaged", "")


def test_a_truncated_file_is_refused_without_reading_and_fast(folders: Path, tmp_path: Path) -> None:
    """1,000 truncations, 300 tails, 50 empty or sparse files, of folders with a manifest and without."""
    rng, base, slowest = random.Random(1), tiny.decoder(), 0.0
    before, refusals = digest_model(base), Counter[str]()
    for kind in ("ours", "peft"):
        shutil.copytree(folders / kind, tmp_path / kind)
    whole = {name: (folders / "ours" / name).read_bytes() for name in FILES}
    for case in range(1350):
        kind = rng.choice(("ours", "peft"))
        # The JSON files of PEFT's folder end in a line end, without which they are whole.
        name = rng.choice(FILES) if kind == "ours" else FILES[0]
        path, data = tmp_path / kind / name, whole[name]
        if case < 1000:
            path.write_bytes(data[: rng.randrange(len(data))])
        elif case < 1300:
            path.write_bytes(data + rng.randbytes(rng.randrange(1, 5000)))
        else:
            path.write_bytes(b"")
            os.truncate(path, rng.choice((0, len(data), 10 << 30)))
        begun = time.perf_counter()
        with pytest.raises(Refusal) as caught:
            load_adapter(tmp_path / kind, base)
        slowest = max(slowest, time.perf_counter() - begun)
        assert name in str(caught.value), caught.value
        refusals[caught.value.id] += 1
        path.write_bytes(data)
    assert digest_model(base) == before and refusals.keys() == {"adapter-damaged", "tensor-file-damaged"}
    print(f"adapters cut, lengthened, emptied: 1350 of 1350 refused, slowest {slowest * 1000:.1f} ms")


def test_a_lost_manifest_is_damage_and_a_peft_folder_has_none(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "ours", tmp_path / "a")
    (tmp_path / "a/manifest.json").unlink()
    assert refused(tmp_path / "a", tiny.decoder(), "adapter-damaged") == ["manifest.json is missing"]
    assert load_adapter(folders / "peft", tiny.decoder()).num_trainable > 0
    reseal(tmp_path / "a")
    (tmp_path / "a/halter.json").unlink()
    assert refused(tmp_path / "a", tiny.decoder(), "adapter-damaged") == ["halter.json is missing"]


@pytest.mark.parametrize("names", [["../x"], ["a/b"], [""], ["."], ["\x00"]], ids=str)
def test_a_manifest_names_files_of_its_own_folder_only(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    (tmp_path / "in").mkdir()
    from halter.files import manifest

    entry = {"bytes": 1, "sha256": manifest.sha256_of(tmp_path / "x")}
    (tmp_path / "in/manifest.json").write_text(manifest._rendered(dict.fromkeys(names, entry)))
    with pytest.raises(Refusal, match="manifest.json is not as it was written"):
        check_manifest(tmp_path / "in", "adapter-damaged", "")


def test_both_spellings_of_one_name_are_refused(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "peft", tmp_path / "a")
    tensors = load_file(tmp_path / "a" / FILES[0])
    name = sorted(tensors)[0]
    save_file({**tensors, name.removeprefix(loading.PREFIX): tensors[name] * 9}, tmp_path / "a" / FILES[0])
    assert "twice" in refused(tmp_path / "a", tiny.decoder(), "adapter-mismatch")[0]


@pytest.mark.parametrize("save", [True, "auto"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vocabulary_matrices_that_peft_saved_along_are_dropped_where_equal(
    save: object, dtype: torch.dtype, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    model = tiny.decoder(dtype=dtype)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj", "embed_tokens", "lm_head"]
    )
    theirs = peft.get_peft_model(tiny.peer(model), config).eval()
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=save)
    tensors = load_file(tmp_path / "a" / FILES[0])
    copies = sorted(n for n in tensors if "base_layer" in n)
    assert len(copies) == 2
    adapter = load_adapter(tmp_path / "a", model)
    tokens = torch.arange(20)[None]
    if dtype == torch.float32:
        with torch.no_grad():
            bounds.assert_same(model(tokens, adapter=adapter), theirs(tokens).logits)
    load_adapter(tmp_path / "a", tiny.decoder(dtype=torch.bfloat16) if dtype == torch.float32 else model)
    for name in copies:
        tensors[name][3] += 1
    save_file(tensors, tmp_path / "a" / FILES[0])
    found = refused(tmp_path / "a", model, "adapter-mismatch")
    assert found == [f"{n.removeprefix(loading.PREFIX)} differs from the base's" for n in copies]
    tensors = {n.replace(".base_layer.", "."): t[:-1].clone() if n in copies else t for n, t in tensors.items()}
    save_file(tensors, tmp_path / "a" / FILES[0])
    assert len(refused(tmp_path / "a", model, "adapter-mismatch")) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": "(.*)*[^.]$"},
        {"target_modules": "(a|b|.)+(a|b|.)+(a|b|.)+[^.]"},
        {"rank_pattern": {"((.+)+)+x": 3}},
        {"exclude_modules": "(.*a?)*[^_.a-z0-9]x"},
        {"rank_pattern": {f"q_proj{i}": 3 for i in range(600)}},
        {"target_modules": "q_proj" + "|q_proj" * 1000},
        {"target_modules": ["q_proj"] * 5000},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 1e999},
        {"alpha_pattern": {"q_proj": float("inf")}},
        {"r": -1},
        {"r": "x"},
        {"r": None},
        {"r": [4]},
        {"layers_to_transform": [9**9]},
        {"target_modules": 3},
        {"target_modules": "("},
        {"peft_type": []},
        {"peft_type": None},
        {"rank_pattern": [1]},
        {"lora_dropout": float("nan")},
    ],
    ids=lambda c: str(c)[:40],
)
def test_impossible_options_are_refused_and_not_tried_for_ever(
    change: dict[str, Any], folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "peft", tmp_path / "a")
    config = json.loads((tmp_path / "a" / FILES[1]).read_text())
    (tmp_path / "a" / FILES[1]).write_text(json.dumps({**config, **change}))
    with ended(), pytest.raises(Refusal):
        load_adapter(tmp_path / "a", tiny.decoder())


def test_norm_tuning_of_what_is_no_norm_is_refused_by_name():
    from halter.methods.norm_tuning import NormTuning

    shape = tiny.config()
    with pytest.raises(Refusal, match="targets-match-nothing") as caught:
        NormTuning.from_peft({"target_modules": ["input_layernorm", "q_proj"]}).check(shape)
    assert caught.value.found == ("q_proj",)
    with pytest.raises(Refusal, match="takes away all"):
        NormTuning(target_modules=["norm"], exclude_modules=["model.norm"]).check(shape)
