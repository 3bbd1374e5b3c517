"""A base whose files were cut, lengthened, emptied or never filled is refused by name, at once; a loaded one stays."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from tiny_models import tiny_llama, write_meta_folder

from halter.errors import Refusal
from halter.pretrained.digest import digest_model
from halter.pretrained.load import load_model

KINDS = {
    "hf": ("model.safetensors", "config.json"),
    "shards": (),
    "meta": ("consolidated.00.pth", "consolidated.01.pth", "params.json"),
}


def test_every_torn_base_is_refused(tmp_path: Path) -> None:
    """1,000 truncations, 300 tails, 50 empty or sparse files, over all layouts."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "hf")
    model.save_pretrained(tmp_path / "shards", max_shard_size="90KB")
    shard = sorted(p.name for p in (tmp_path / "shards").glob("*.safetensors"))[1]
    names = {**KINDS, "shards": (shard, "model.safetensors.index.json")}
    write_meta_folder(model, tmp_path / "meta", 2)
    whole = {(kind, name): (tmp_path / kind / name).read_bytes() for kind in names for name in names[kind]}
    held = {kind: load_model(tmp_path / kind, device="cpu") for kind in KINDS}
    before = {kind: digest_model(base) for kind, base in held.items()}
    assert len(set(before.values())) == 1
    rng, slowest, wrong = random.Random(0), 0.0, []
    for case in range(1350):
        kind, name = rng.choice(list(whole))
        path, data = tmp_path / kind / name, whole[kind, name]
        if case < 1000:
            path.write_bytes(data[: rng.randrange(len(data.rstrip()))])
        elif case < 1300:
            path.write_bytes(data + b"x" + rng.randbytes(rng.randrange(5000)))
        else:
            path.write_bytes(b"")
            os.truncate(path, rng.choice((0, len(data), 10 << 30)))
        begun = time.perf_counter()
        try:
            load_model(path.parent, device="cpu")
            wrong.append(f"{case} {kind}/{name} was read")
        except Refusal as refusal:
            # All of a torn shard's names are missing where only its header is whole; the index then names the file.
            if name not in str(refusal):
                wrong.append(f"{case} {kind}/{name}: {refusal}")
        slowest = max(slowest, time.perf_counter() - begun)
        path.write_bytes(data)
    done = f"1350, refused {1350 - len(wrong)}, slowest {slowest * 1000:.1f} ms"
    print(f"bases cut, lengthened, emptied: {done}")
    assert not wrong, "\n".join(wrong[:10])
    assert {kind: digest_model(base) for kind, base in held.items()} == before
    with pytest.raises(Refusal, match="file-too-large"):
        os.truncate(tmp_path / "hf/config.json", 10 << 30)
        load_model(tmp_path / "hf", device="cpu")
