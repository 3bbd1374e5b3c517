"""Hub ids against a hub of our own on 127.0.0.1: what is fetched, what is not, and what is said when it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import FakeHub, serving

from halter.errors import HalterError, Refusal
from halter.files.hub import resolve

WEIGHTS = os.urandom(200_000)
LLAMA = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"sp",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE.txt": b"terms",
    "USE_POLICY.md": b"policy",
    "README.md": b"card",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": b"{}",
}
DUPLICATES = {
    "original/consolidated.00.pth": WEIGHTS,
    "original/params.json": b"{}",
    "pytorch_model-00001-of-00002.bin": WEIGHTS,
    "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": WEIGHTS,
    "llama.Q4_K_M.gguf": WEIGHTS,
    "onnx/model.onnx": WEIGHTS,
    "onnx/config.json": b"{}",
    "flax_model.msgpack": WEIGHTS,
    "figure.png": WEIGHTS,
}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeHub]:
    with serving(FakeHub()) as hub:
        yield hub


@pytest.fixture
def hub(server: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    server.requests.clear()
    server.repos = {"meta-llama/Tiny": {**LLAMA, **DUPLICATES}}
    server.gated, server.members, server.cut_after, server.tags = set(), {}, None, {}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return server


def fetch(hub: FakeHub, tmp_path: Path, name: str = "meta-llama/Tiny", **options) -> Path:
    return resolve(name, cache=tmp_path / "cache", endpoint=hub.url, **{"say": lambda text: None, **options})


def refused(hub: FakeHub, tmp_path: Path, *arguments, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        fetch(hub, tmp_path, *arguments, **options)
    return caught.value


def test_a_folder_is_taken_as_it_is(hub: FakeHub, tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path and resolve(str(tmp_path)) == tmp_path
    assert not hub.requests


def test_one_format_is_fetched_and_nothing_twice(hub: FakeHub, tmp_path: Path) -> None:
    said: list[str] = []
    folder = fetch(hub, tmp_path, say=said.append)
    held = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert held == LLAMA
    assert len(said) == 1 and "meta-llama/Tiny" in said[0] and "400 kB" in said[0] and str(tmp_path) in said[0]
    hub.requests.clear()
    assert fetch(hub, tmp_path, say=said.append) == folder
    assert len(said) == 1 and hub.fetched() == []


def test_without_weights_only_small_files_come(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path, weights=False)
    assert (folder / "config.json").is_file() and not list(folder.glob("*.safetensors"))
    assert hub.fetched("safetensors") == []


def test_metas_layout_is_fetched_where_it_is_all_there_is(hub: FakeHub, tmp_path: Path) -> None:
    files = {"params.json": b"{}", "consolidated.00.pth": b"0", "consolidated.01.pth": b"1", "tokenizer.model": b"t"}
    hub.repos["meta-llama/Old"] = {**files, "checklist.chk": b"x"}
    folder = fetch(hub, tmp_path, "meta-llama/Old")
    assert {p.name for p in folder.iterdir()} == set(files)


def test_pickles_and_exports_are_refused_before_a_byte_comes(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["a/bin"] = {"config.json": b"{}", "pytorch_model.bin": WEIGHTS}
    hub.repos["a/gguf"] = {"README.md": b"", "x.gguf": WEIGHTS}
    refusal = refused(hub, tmp_path, "a/bin")
    assert refusal.id == "pickle-weights" and refusal.found == ("pytorch_model.bin",)
    refusal = refused(hub, tmp_path, "a/gguf")
    assert refusal.id == "no-weights" and ".gguf" in str(refusal)
    assert hub.fetched() == []


def test_a_broken_connection_goes_on_where_it_broke(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the hub's library waits a second to try again, lines say how far it is: no terminal is attached here."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    monkeypatch.setattr("halter.files.hub.LINE_EVERY_SECONDS", 0.3)
    hub.cut_after = 150_000
    said: list[str] = []
    folder = fetch(hub, tmp_path, say=said.append)
    assert (folder / "model-00001-of-00002.safetensors").read_bytes() == WEIGHTS
    assert (folder / "model-00002-of-00002.safetensors").read_bytes() == WEIGHTS[::-1]
    assert [r for m, _, r in hub.requests if m == "GET" and r] == ["bytes=150000-"]
    assert len(said) > 1 and all(" of 400 kB" in line for line in said[1:])
    assert any(line.endswith(" s left") for line in said[1:])


def test_what_is_complete_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    whole = dict(hub.repos["meta-llama/Tiny"])
    second = "model-00002-of-00002.safetensors"
    hub.repos["meta-llama/Tiny"] = {n: b for n, b in whole.items() if n != second}
    fetch(hub, tmp_path)
    hub.repos["meta-llama/Tiny"] = whole
    hub.requests.clear()
    said: list[str] = []
    fetch(hub, tmp_path, say=said.append)
    assert hub.fetched() == [second] and "1 file, 200 kB" in said[0]


def test_a_revision_is_fetched_by_name_or_commit_and_refused_if_unknown(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.commit("meta-llama/Tiny")
    by_commit = fetch(hub, tmp_path, revision=commit)
    assert by_commit == fetch(hub, tmp_path, revision="main")
    hub.tags["meta-llama/Tiny", "v1"] = {**LLAMA, "config.json": b'{"model_type": "llama", "old": true}'}
    tagged = fetch(hub, tmp_path, revision="v1")
    assert b"old" in (tagged / "config.json").read_bytes() and tagged != by_commit
    assert fetch(hub, tmp_path, revision=hub.commit("meta-llama/Tiny", "v1")) == tagged
    refusal = refused(hub, tmp_path, revision="v9")
    assert refusal.id == "hub-revision" and "'v9'" in str(refusal)
    with pytest.raises(Refusal, match="hub-revision"):
        resolve(tmp_path, "main")


@pytest.mark.parametrize(
    ("token", "says"),
    [(None, "no token"), ("hf_stranger", "no token that the hub knows"), ("hf_member", "not been granted")],
)
def test_a_gated_model_says_which_page_and_where_the_token_goes(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, says: str
) -> None:
    hub.gated, hub.members = {"meta-llama/Tiny"}, {"hf_member": set()}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    refusal = refused(hub, tmp_path)
    assert refusal.id == "hub-gated" and says in str(refusal)
    assert f"{hub.url}/meta-llama/Tiny" in refusal.fix
    assert "HF_TOKEN" in refusal.fix and "hf auth login" in refusal.fix and "huggingface-cli login" in refusal.fix
    assert token is None or token not in str(refusal)


def test_a_token_that_was_granted_access_fetches(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated, hub.members = {"meta-llama/Tiny"}, {"hf_member": {"meta-llama/Tiny"}}
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert (fetch(hub, tmp_path) / "model-00001-of-00002.safetensors").read_bytes() == WEIGHTS


def test_offline_uses_the_cache_and_says_when_it_is_empty(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(hub, tmp_path)
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(hub, tmp_path) == folder
    refusal = refused(hub, tmp_path, "meta-llama/Other")
    assert refusal.id == "hub-offline" and "HF_HUB_OFFLINE" in str(refusal)
    assert not hub.requests


def test_offline_a_cache_without_weights_is_not_enough(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(hub, tmp_path, weights=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(hub, tmp_path, weights=False).is_dir()
    assert refused(hub, tmp_path).id == "hub-offline"


def test_a_hub_that_cannot_be_reached_leaves_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    folder = fetch(hub, tmp_path)
    nowhere = "http://127.0.0.1:9"
    assert resolve("meta-llama/Tiny", cache=tmp_path / "cache", endpoint=nowhere) == folder
    with pytest.raises(Refusal) as caught:
        resolve("meta-llama/Other", cache=tmp_path / "cache", endpoint=nowhere)
    assert caught.value.id == "hub-unreachable" and nowhere in str(caught.value)


@pytest.mark.parametrize(
    "name", ["nobody/nothing", "a--b/c", "./missing", "/missing/model", "a/b/c", "x.safetensors/..", ""]
)
def test_names_that_lead_nowhere(hub: FakeHub, tmp_path: Path, name: str) -> None:
    refusal = refused(hub, tmp_path, name)
    assert refusal.id == "model-not-found"


def test_a_path_is_never_asked_of_the_hub(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match="no such folder"):
        resolve(Path("meta-llama/Tiny"), endpoint=hub.url)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(Refusal, match="is a file"):
        resolve(str(tmp_path / "model.safetensors"), endpoint=hub.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").write_text("{}")
    with pytest.raises(Refusal, match="did you mean runs/mine"):
        resolve("runs/mien", endpoint=hub.url)
    assert not hub.requests


def test_a_full_disk_is_a_failure_that_names_the_model(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("halter.files.hub.snapshot_download", full)
    with pytest.raises(HalterError, match=r"meta-llama/Tiny.*No space left"):
        fetch(hub, tmp_path)
