"""`halter adapters`: what it says of folders is what was saved, and what it writes is what the library makes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import bounds
import pytest
import tiny
import torch

from halter.adapters.adapter import adapt
from halter.adapters.describing import describe
from halter.adapters.loading import load_adapter
from halter.adapters.saving import state_of
from halter.adapters.stacked import stack
from halter.cli import main
from halter.pretrained.load import load_model
from halter.pretrained.save import save_model
from halter.run import adapter_folders

TOKENS = torch.randint(0, 96, (1, 16), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two LoRAs, a llama_adapter and a folder that is torn."""
    folder = tmp_path_factory.mktemp("desk")
    model = tiny.decoder()
    save_model(model, model.config, folder / "base")
    shelf_ = folder / "shelf"
    shelf_.mkdir()
    base = {"name": str(folder / "base"), "folder": str(folder / "base"), "fingerprint": "f" * 64}
    made = {
        "one": ("lora", {"r": 16, "target_modules": ["q_proj", "v_proj"]}),
        "two": ("lora", {"r": 2, "alpha": 4.0, "target_modules": ["q_proj"]}),
        "gates": ("llama_adapter", {"adapter_len": 3}),
    }
    for seed, (name, (method, options)) in enumerate(made.items()):
        adapter = adapt(model, method, **options)
        tiny.jitter(adapter, seed=seed + 1)
        adapter.facts = {"base": base}
        adapter.save(shelf_ / name)
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main.run(["adapters", *map(str, arguments)]) == code, capsys.readouterr().err
    return capsys.readouterr().out


def test_list_says_what_was_saved(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {Path(r["folder"]).name: r for r in json.loads(said(capsys, "list", desk / "shelf", "--json"))}
    model = tiny.decoder()
    for name, row in rows.items():
        adapter = load_adapter(desk / "shelf" / name, model)
        assert row["parameters"] == adapter.num_trainable and row["method"] == adapter.methods[0].name()
        assert row["bytes"] == sum(f.stat().st_size for f in (desk / "shelf" / name).iterdir())
        assert row["base"]["fingerprint"] == "f" * 64
    assert (rows["one"]["rank"], rows["two"]["rank"], rows["gates"]["rank"]) == ("16", "2", "")
    table = said(capsys, "list", desk / "shelf").splitlines()
    assert len(table) == 4 and re.search(r"^lora +3,584 +16 +32 ", table[2]) and "base ffffffffffff" in table[1]


def test_a_torn_adapter_is_listed_with_its_fault(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(desk / "shelf" / "one", tmp_path / "x" / "torn")
    shutil.copytree(desk / "shelf" / "two", tmp_path / "x" / "whole")
    data = (tmp_path / "x" / "torn" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "x" / "torn" / "adapter_model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    rows = json.loads(said(capsys, "list", tmp_path / "x", "--json", code=2))
    assert rows[0]["problem"] == "adapter-damaged" and rows[1]["method"] == "lora"
    assert main.run(["adapters", "list", str(desk / "base")]) == 2
    assert "this folder holds a model, not an adapter" in capsys.readouterr().err
    assert main.run(["adapters", "list", str(desk / "base"), str(tmp_path)]) == 2
    assert "there is no adapter in these folders" in capsys.readouterr().err


def test_show_names_options(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", desk / "shelf" / "gates")
    assert "llama_adapter: adapter_len 3" in text and "gate_activation tanh" in text and "fingerprint ffff" in text
    found = json.loads(said(capsys, "show", desk / "shelf" / "two", "--json"))
    assert found["methods"][0]["alpha"] == 4.0 and "peft" in found["servable_by"]


def test_diff_is_numpys(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = desk / "shelf" / "one", desk / "shelf" / "two"
    found = json.loads(said(capsys, "diff", one, two, "--json"))
    assert found["options"]["0.r"] == [16, 2] and found["options"]["0.alpha"] == [32.0, 4.0]
    a, b = (state_of(load_adapter(f, tiny.decoder())) for f in (one, two))
    assert set(found["only_a"]) == {n for n in a if "v_proj" in n} and not found["only_b"]
    assert set(found["misshapen"]) == set(b)  # ranks differ, so only products can be compared
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj"
        x, y = ((s[f"{name}.lora_B.weight"] @ s[f"{name}.lora_A.weight"]).double().flatten() for s in (a, b))
        assert found["updates"][name] == pytest.approx(float(x @ y / x.norm() / y.norm()), abs=1e-6)
    assert said(capsys, "diff", one, one).strip() == "the two adapters are equal"
    text = said(capsys, "diff", one, two)
    assert "0.r: 16 | 2" in text and "changes of weights: cosine" in text


def test_the_figures_of_one_tensor() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, -3.0]])
    assert adapter_folders.compared(a, b) == {
        "norm_a": 5.0,
        "norm_b": 5.0,
        "difference": pytest.approx(50**0.5),
        "cosine": 0.0,
    }
    assert adapter_folders.compared(a, 2 * a)["cosine"] == pytest.approx(1.0)
    assert adapter_folders.compared(a, 0 * a)["cosine"] == 0.0


def test_combine_writes_the_weighted_sum(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, out = desk / "shelf" / "one", desk / "shelf" / "two", tmp_path / "sum"
    report = json.loads(said(capsys, "combine", one, two, "--weights", "1.5,-1", "--output", out, "--json"))
    assert report["error"] == 0 and report["ranks"]["model.layers.0.self_attn.q_proj"] == 18
    model = load_model(desk / "base", "float32", say=lambda _: None)
    a, b, made = (load_adapter(f, model, {"base-differs"}) for f in (one, two, out))
    zero = torch.zeros(32, 32)
    name = "model.layers.1.self_attn.q_proj"
    parts = [x.fold(name, zero, None)[0] for x in (a, b, made)]
    bounds.assert_same(parts[2], 1.5 * parts[0] - parts[1])
    assert made.facts["combined"]["of"] == [str(one), str(two)]
    text = said(capsys, "combine", out, "--mode", "svd", "--rank", "2", "--output", tmp_path / "low")
    assert "svd over 4 places, rank 2: relative error 0." in text
    assert "made_by" in said(capsys, "show", tmp_path / "low")


@pytest.mark.parametrize(
    ("weights", "told"), [("50,50", "as shares: 0.5,0.5"), ("70,-30", "as shares: 0.7,-0.3"), ("3,-2", ""), ("1,1", "")]
)
def test_percentages_as_weights_are_told(
    weights: str, told: str, desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (str(desk / "shelf" / name) for name in ("one", "two"))
    assert main.run(["adapters", "combine", one, two, "--weights", weights, "--output", str(tmp_path / "sum")]) == 0
    err = capsys.readouterr().err
    assert ("warning: with the weights" in err) == bool(told) and told in err
    adapters = [adapt(tiny.decoder(), "lora", r=2) for _ in weights.split(",")]
    stack(adapters, [float(weight) for weight in weights.split(",")])
    assert ("warning: with the weights" in capsys.readouterr().err) == bool(told)
    if told:
        shares = told.removeprefix("as shares: ")
        assert main.run(["adapters", "combine", one, two, "--weights", shares, "--output", str(tmp_path / "new")]) == 0
        assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["combine", "one", "gates", "--output", "x"], "no low-rank matrix added to a weight"),
        (["combine", "one"], "--output FOLDER"),
        (["combine", "one", "--weights", "a,b", "--output", "x"], "not numbers with commas"),
        (["combine", "one", "two", "--weights", "1", "--output", "x"], "1 weights for 2 adapters"),
        (["combine", "one", "two", "--weights", "1", "--output", "x"], "such as --weights 0.5,0.5"),
        (["combine", "one", "two", "--weights", "50%,50%", "--output", "x"], "Fix: --weights 0.5,0.5"),
        (["combine", "one", "two", "--weights", "0.7:0.3", "--output", "x"], "Fix: --weights 0.7,0.3"),
        (["combine", "one", "--rank", "2", "--output", "x"], "rank with cat"),
        (["convert", "gates", "--to", "lora", "--output", "x"], "no low-rank matrix"),
        (["convert", "one", "--alpha", "3", "--output", "x"], "belong to files"),
        (["compress", "one", "--keep", "2", "--output", "x"], "keep 2.0"),
        (["show", "nowhere"], "there is no such folder"),
    ],
)
def test_mistakes_are_refused_and_write_nothing(
    arguments: list[str], told: str, desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"one", "two", "gates", "nowhere"}
    given = [str(desk / "shelf" / a) if a in names else str(tmp_path / a) if a == "x" else a for a in arguments]
    assert main.run(["adapters", *given]) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err and not (tmp_path / "x").exists()


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_compress_tells_the_loss_and_the_folder_is_listed(
    bits: int, desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, out = desk / "shelf" / "one", tmp_path / "small"
    report = json.loads(said(capsys, "compress", one, "--bits", bits, "--output", out, "--json"))
    model = tiny.decoder()
    before, after = (state_of(load_adapter(f, model)) for f in (one, out))
    lost = sum(float((before[n] - after[n]).square().sum()) for n in before) ** 0.5
    whole = sum(float(t.square().sum()) for t in before.values()) ** 0.5
    assert report["error"] == pytest.approx(lost / whole, abs=1e-6)
    (row,) = json.loads(said(capsys, "list", out, "--json"))
    assert (row["parameters"], row["bits"], row["rank"]) == (report["of"], bits, "16")
    assert report["of"] == sum(t.numel() for t in before.values()) and report["error"] > 0.001
    found = json.loads(said(capsys, "diff", one, out, "--json"))
    assert found["options"]["bits"] == [32, bits] and found["total"]["difference"] == pytest.approx(lost, abs=1e-5)


def test_the_held_out_loss_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against halter evaluate's own figures, on the playground's base and rows."""
    from halter.playground import base_folder
    from halter.pretrained.load import load

    model, _ = load(base_folder(), "float32", say=lambda _: None)
    adapter = adapt(model, "lora", r=8)
    tiny.jitter(adapter, 0.02)
    adapter.facts = {"base": {"name": str(base_folder()), "folder": str(base_folder())}}
    adapter.save(tmp_path / "a")
    rows = [{"prompt": "the cat", "completion": " sat on the mat"}, {"prompt": "a dog", "completion": " ran"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["--data", str(tmp_path / "rows.jsonl")]
    out = tmp_path / "small"
    report = json.loads(said(capsys, "compress", tmp_path / "a", "--bits", 1, "--output", out, *common, "--json"))
    scores = {}
    for name in ("a", "small"):
        capsys.readouterr()
        assert main.run(["evaluate", str(tmp_path / name), *common, "--questions", "0", "--json"]) == 0
        scores[name] = json.loads(capsys.readouterr().out)
    assert report["loss"]["base"] == pytest.approx(scores["a"]["base"]["loss"], abs=1e-5)
    assert report["loss"]["before"] == pytest.approx(scores["a"]["adapter"]["loss"], abs=1e-5)
    assert report["loss"]["after"] == pytest.approx(scores["small"]["adapter"]["loss"], abs=1e-5)
    assert len(set(report["loss"].values())) == 3
    print(report["loss"])


def test_convert_imports_files_and_says_what_is_lost(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g = torch.Generator().manual_seed(3)
    state = {f"layers.{i}.attention.gate": torch.randn(1, 4, 1, 1, generator=g) for i in range(2)}
    torch.save(state | {"adapter_query.weight": torch.randn(6, 32, generator=g)}, tmp_path / "theirs.pth")
    common = ["--model", desk / "base", "--adapter-len", 3]
    text = said(capsys, "convert", tmp_path / "theirs.pth", "--output", tmp_path / "ours", *common)
    assert "LLaMA-Adapter V1, the authors', 200 numbers" in text
    ours = load_adapter(tmp_path / "ours", tiny.decoder())
    gates = {n: p for n, p in ours.trainable().items() if n.endswith("gate")}
    for layer, gate in enumerate(gates.values()):
        assert torch.equal(gate.detach(), state[f"layers.{layer}.attention.gate"].flatten())
    lossy = said(capsys, "convert", tmp_path / "ours", "--to", "peft", "--output", tmp_path / "peft", "--json")
    assert len(json.loads(lossy)["lossy"]) == 2
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["peft_type"] == "ADAPTION_PROMPT"
    assert main.run(["adapters", "convert", str(tmp_path / "theirs.pth"), "--output", str(tmp_path / "y")]) == 2
    assert "give --model" in capsys.readouterr().err


def test_a_base_without_weights_takes_what_only_they_could_tell_apart(tmp_path: Path) -> None:
    """PEFT's copies of the base's vocabulary matrices: their shape is checked, their numbers need the weights."""
    from halter.errors import Refusal
    from halter.files.tensors import read_tensors
    from halter.files.writing import write_tensors
    from halter.model.decoder import Decoder

    model = tiny.decoder()
    adapter = adapt(model, "lora", r=2, target_modules=["lm_head"])
    tiny.jitter(adapter)
    adapter.save(tmp_path / "a")
    for name in ("manifest.json", "halter.json"):
        (tmp_path / "a" / name).unlink()  # as PEFT leaves it
    file = tmp_path / "a" / "adapter_model.safetensors"
    stored = read_tensors(file)
    copy = "base_model.model.lm_head.base_layer.weight"
    write_tensors(file, stored | {copy: torch.zeros(96, 32)}, replace=True)
    bare = load_adapter(tmp_path / "a", Decoder(model.config))
    assert {p.device.type for p in bare.parameters()} == {"cpu"}
    assert all(torch.equal(t, state_of(adapter)[name]) for name, t in state_of(bare).items())
    with pytest.raises(Refusal, match="differs from the base's"):
        load_adapter(tmp_path / "a", model)
    assert describe(tmp_path / "a")["parameters"] == adapter.num_trainable
    write_tensors(file, stored | {copy: torch.zeros(97, 32)}, replace=True)
    with pytest.raises(Refusal, match=r"is \(97, 32\), not \(96, 32\)"):
        load_adapter(tmp_path / "a", Decoder(model.config))


def test_help_needs_no_torch_and_second_words_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("list", "show", "diff", "combine", "compress", "convert"):
        assert f"Usage: halter adapters {word}" in said(capsys, word, "--help")
    code = "import sys, halter.cli.main as m; m.run(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
