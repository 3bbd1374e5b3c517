"""Adapters and runs of which something is gone or differs: what is said is so, and following it leads on."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from playground_run import recipe, write_rows
from safetensors.torch import load_file, save_file

import halter
from halter.adapters import misfit
from halter.cli import main
from halter.methods.lora import Lora
from halter.playground import base_folder
from halter.pretrained.save import save_model


def trained(folder: Path, name: str, method: str = "lora", **train: Any) -> None:
    """A finished run over base/, named as it is from here."""
    given = recipe(folder, name, **train)
    method_section = {"name": method} | ({"r": 2} if method == "lora" else {})
    halter.train(
        {**given, "model": {**given["model"], "path": "base"}, "method": method_section, "output_dir": name},
        say=lambda _: None,
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with base/, its own copy of the playground's, and runs/mine over it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(base_folder(), "base")
    trained(tmp_path, "runs/mine", save_steps=1)
    write_rows(tmp_path / "rows.jsonl", 4)
    yield tmp_path


def said(capsys: Any, words: str) -> str:
    code = main.run(shlex.split(words))
    lines = str(capsys.readouterr().err).splitlines(keepends=True)
    err = "".join(line for line in lines if "for which this CPU has no instructions" not in line)
    assert code == 2 and "Traceback" not in err and len(err.splitlines()) <= 6, err
    return err


ASK = "--prompt hi --max-new-tokens 1"


def test_a_run_without_its_recipe_is_no_circle(place: Path, capsys: Any) -> None:
    Path("runs/mine/recipe.yaml").rename("kept.yaml")
    fresh = "train --model base --data rows.jsonl --r 2 --max-steps 1 --per-device-train-batch-size 2"
    for words in ("train --resume --output runs/mine", f"{fresh} --output runs/mine"):
        err = said(capsys, words)
        assert "whose recipe.yaml is missing" in err and "--resume" not in err, err
        whole = re.search(r"halter chat (\S+?)\. ", err)
        assert whole is not None and main.run(["generate", whole[1], *ASK.split()]) == 0
        again = re.search(r"--output (\S+?);", err)
        assert again is not None
        assert main.run([*fresh.split(), "--output", again[1]]) == 0
        shutil.rmtree(again[1])
        capsys.readouterr()
    Path("kept.yaml").rename("runs/mine/recipe.yaml")
    assert "this run is finished" in said(capsys, "train --resume --output runs/mine")


def test_an_adapter_without_its_configuration_is_told_alike_however_it_is_named(place: Path, capsys: Any) -> None:
    shutil.copytree("runs/mine/adapter", "bare")
    Path("bare/adapter_config.json").unlink()
    for words in (f"generate bare {ASK}", f"generate --model base --adapter bare {ASK}", "merge bare --output m"):
        err = said(capsys, words)
        assert "adapter_config.json is missing" in err and "model's config.json" not in err, err


def test_shapes_that_differ_are_told_before_what_could_be_waived(place: Path, capsys: Any) -> None:
    shutil.copytree("base", "wider")
    config = json.loads(Path("wider/config.json").read_text())
    tensors = load_file("wider/model.safetensors")
    wide = config["intermediate_size"] + 8

    def grown(name: str, tensor: torch.Tensor) -> torch.Tensor:
        side = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}.get(name.split(".")[-2])
        if side is None:
            return tensor
        more = list(tensor.shape)
        more[side] = 8
        return torch.cat([tensor, torch.zeros(more, dtype=tensor.dtype)], side)

    save_file(
        {name: grown(name, tensor) for name, tensor in tensors.items()},
        "wider/model.safetensors",
        metadata={"format": "pt"},
    )
    Path("wider/config.json").write_text(json.dumps(config | {"intermediate_size": wide}))
    for words in (f"generate --model wider --adapter runs/mine {ASK}", "merge runs/mine --model wider --output m"):
        err = said(capsys, words)
        assert "[adapter-mismatch]" in err and "--allow" not in err and "it was trained on base" in err, err
    given = re.search(r"trained on (\S+): give that \((--\w+)\)", err)
    assert given is not None
    assert main.run(["generate", given[2], given[1], "--adapter", "runs/mine", *ASK.split()]) == 0


def test_another_rank_in_the_configuration_is_named_and_corrected(place: Path, capsys: Any) -> None:
    pytest.importorskip("peft")
    shutil.copytree("runs/mine/adapter", "other")
    for name in ("halter.json", "manifest.json"):
        Path("other", name).unlink()
    config = json.loads(Path("other/adapter_config.json").read_text())
    Path("other/adapter_config.json").write_text(json.dumps(config | {"r": 2 * config["r"]}))
    err = said(capsys, f"generate --model base --adapter other {ASK}")
    assert f"says r {2 * config['r']}, and the tensors are of rank {config['r']}" in err, err
    told = re.search(r'write ("r": \d+) there', err)
    assert told is not None
    Path("other/adapter_config.json").write_text(json.dumps(config | json.loads("{" + told[1] + "}")))
    assert main.run(shlex.split(f"generate --model base --adapter other {ASK}")) == 0


def test_of_two_sizes_that_differ_neither_is_the_rank() -> None:
    """Where the width of another base is the rank by chance."""
    assert misfit._other_rank(["x.lora_A.weight is (4, 4), not (8, 4)"], [Lora(r=8)]) == (8, 4)
    assert misfit._other_rank(["x.lora_A.weight is (4, 4), not (8, 8)"], [Lora(r=8)]) is None


def test_a_base_that_is_gone_is_named_as_the_runs_and_no_other_is_offered(place: Path, capsys: Any) -> None:
    shutil.copytree("base", "base2")
    Path("base").rename("moved")
    for words in (f"generate runs/mine {ASK}", "evaluate runs/mine --data rows.jsonl", "merge runs/mine --output m"):
        err = said(capsys, words)
        assert "runs/mine was trained on base, and there is no such folder now" in err and "base2" not in err, err
    flag = re.search(r"(--model) DIR", err)
    assert flag is not None
    assert main.run(["generate", "runs/mine", flag[1], "moved", *ASK.split()]) == 0


def test_weights_that_changed_in_place_are_told_as_changed(place: Path, capsys: Any) -> None:
    shutil.copytree("base", "earlier")
    tensors = {name: tensor + 0.25 for name, tensor in load_file("base/model.safetensors").items()}
    save_file(tensors, "base/model.safetensors", metadata={"format": "pt"})
    err = said(capsys, f"generate runs/mine {ASK}")
    assert "the weights in base have changed since this adapter was trained on them" in err, err
    assert "Expected: the weights of base" not in err and "--model" in err
    assert main.run(["generate", "runs/mine", "--model", "earlier", *ASK.split()]) == 0
    capsys.readouterr()
    shutil.copytree("base", "third")
    Path("base/model.safetensors").unlink()
    shutil.copy("earlier/model.safetensors", "base/model.safetensors")
    assert "other weights than these" in said(capsys, f"generate runs/mine --model third {ASK}")


def test_what_has_no_lora_form_is_told_so_and_the_way_on_works(place: Path, capsys: Any) -> None:
    trained(place, "runs/soft", "prompt_tuning")
    err = said(capsys, "adapters convert runs/soft --to lora --output low")
    assert "combine" not in err and "merge" not in err and "prompt_tuning has no LoRA form" in err, err
    told = re.search(r"or (--to peft) writes", err)
    assert told is not None
    assert main.run(["adapters", "convert", "runs/soft", *told[1].split(), "--output", "peft"]) == 0
    assert main.run(shlex.split(f"generate --model base --adapter peft {ASK}")) == 0


FRESH = "train --model base --data rows.jsonl --max-steps 1 --per-device-train-batch-size 2 --r 2 --output out"


@pytest.mark.parametrize(
    ("words", "told", "follow"),
    [
        ("--layers [0,99]", "method.layers names layers that this model has not. Found: layer 99", "--layers [0]"),
        (
            "--target-modules q_proj --exclude-modules q_proj",
            "method.exclude_modules takes away all that target_modules names",
            "--target-modules q_proj",
        ),
        (
            "--exclude-modules [q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]",
            "Found: target_modules all-linear, exclude_modules q_proj, ",
            "--exclude-modules [k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]",
        ),
    ],
)
def test_places_that_are_none_are_told_by_the_key_that_names_them(
    words: str, told: str, follow: str, place: Path, capsys: Any
) -> None:
    err = said(capsys, f"{FRESH} {words}")
    assert told in err and 'Expected: "all-linear"' not in err, err
    assert main.run(shlex.split(f"{FRESH} {follow}")) == 0


def test_a_comparison_of_one_file_twice_says_so(place: Path, capsys: Any) -> None:
    words = "compare --model base --train rows.jsonl --test rows.jsonl --methods lora --output which"
    assert main.run(words.split()) == 2
    err = str(capsys.readouterr().err)
    assert "all 4 training rows are test or validation rows too" in err and "--test" in err, err


def peft_folder(name: str, **config: Any) -> Path:
    """The run's adapter as PEFT's folder, its configuration changed."""
    shutil.copytree("runs/mine/adapter", name)
    for one in ("halter.json", "manifest.json"):
        Path(name, one).unlink()
    told = json.loads(Path(name, "adapter_config.json").read_text()) | config
    Path(name, "adapter_config.json").write_text(json.dumps(told))
    return Path(name)


COPY = "copy adapter_model.safetensors from where it was trained"
TRAIN = "train --model base --data rows.jsonl --max-steps 1 --r 2 --output x --init-from"


def test_what_is_missing_is_never_told_as_found(place: Path, capsys: Any) -> None:
    """Of a folder that lacks an adapter's files, however it is named; a base is told as a base."""
    (peft_folder("torn") / "adapter_model.safetensors").rename("kept")
    (peft_folder("bare") / "adapter_config.json").unlink()
    Path("empty").mkdir()
    both = "runs/mine/adapter torn"
    ways = (
        f"generate --model base --adapter X {ASK}",
        f"generate X {ASK}",
        "merge X --model base --output m",
        "adapters show X",
        "adapters convert X --output x",
        "adapters list X",
        f"{TRAIN} X",
    )
    for words in (*ways[:5], ways[6], f"adapters diff {both}"):
        err = said(capsys, words.replace("X", "torn"))
        assert "the weights are missing (adapter_model.safetensors)" in err and COPY in err and "Found" not in err, err
    for words in ways[2:]:
        err = said(capsys, words.replace("X", "bare"))
        assert "adapter_config.json is missing" in err and "Found" not in err, err
    for words in (ways[0], "merge X --output m", ways[3], ways[6]):
        for folder, told in (("base", "holds a model, not an adapter"), ("empty", "no adapter"), ("runs", "runs/mine")):
            err = said(capsys, words.replace("X", folder))
            assert told in err and "Found" not in err, err
    shutil.copy("kept", "torn/adapter_model.safetensors")
    assert main.run(["generate", "--model", "base", "--adapter", "torn", *ASK.split()]) == 0


def test_a_file_of_an_adapter_folder_is_told_as_such(place: Path, capsys: Any) -> None:
    peft_folder("new")
    old = peft_folder("old")
    tensors = load_file(old / "adapter_model.safetensors")
    (old / "adapter_model.safetensors").unlink()
    torch.save(tensors, old / "adapter_model.bin")
    torch.save(tensors, "alone.bin")
    save_file(tensors, "alone.safetensors")
    for file in ("new/adapter_model.safetensors", "old/adapter_model.bin"):
        for model in ("", "--model base "):
            err = said(capsys, f"adapters convert {file} {model}--output x")
            assert "--model" not in err.removeprefix("halter: ") and f"Fix: give its folder: {file[:3]}." in err, err
        assert main.run(f"adapters convert {file[:3]} --model base --output {file[:3]}x".split()) == 0
        capsys.readouterr()
    for file in ("alone.bin", "alone.safetensors"):
        err = said(capsys, f"adapters convert {file} --output x")
        told = re.search(r"into one folder, as (\S+) and adapter_config.json", err)
        assert told is not None and "authors'" not in err, err
        Path(file + ".folder").mkdir()
        shutil.copy(file, Path(file + ".folder", told[1]))
        shutil.copy("new/adapter_config.json", file + ".folder")
        assert main.run(["generate", "--model", "base", "--adapter", file + ".folder", *ASK.split()]) == 0
        capsys.readouterr()


def followed(call: str, names: dict[str, Any]) -> None:
    """Run what a refusal says to call in Python."""
    for one in call.rpartition(": ")[2].split("; "):
        if one.startswith(("model, tokenizer = ", "adapter = ", "halter.load_adapter(")):
            exec(one, names)


def test_python_is_told_what_to_call(place: Path, capsys: Any) -> None:
    small = halter.load("base")[0]
    names: dict[str, Any] = {"halter": halter, "model": small}
    for folder in ("runs/mine", "runs/mine/adapter"):
        with pytest.raises(halter.Refusal, match="not a model") as caught:
            halter.load(folder)
        assert "--" not in str(caught.value) and "--init-from" in caught.value.fix
        followed(caught.value.call, names)
        assert names["adapter"].num_trainable > 0
    err = said(capsys, f"generate --model runs/mine {ASK}")
    told = re.search(r"without --model: (\S+);", err)
    assert told is not None and main.run(["generate", told[1], *ASK.split()]) == 0
    capsys.readouterr()
    told = re.search(r"train on from it, (.*?)\. \[", err)
    assert told is not None
    assert main.run([*f"{FRESH} {told[1]}".replace("--model base", "", 1).split()]) == 0
    shutil.copytree("base", "other")
    tensors = {name: tensor + 0.25 for name, tensor in load_file("base/model.safetensors").items()}
    save_file(tensors, "other/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(halter.Refusal, match="base-differs") as caught:
        halter.load_adapter("runs/mine", halter.load("other")[0])
    assert "--model" not in str(caught.value).partition("To continue")[0]
    followed(caught.value.call, names)


def test_an_adapter_of_another_base_shows_three_places(place: Path, capsys: Any) -> None:
    shapes = halter.load("base")[0].config
    deeper = tiny.decoder(tiny.config(layers=shapes.layers + 2))
    with pytest.raises(halter.Refusal, match="adapter-mismatch") as caught:
        halter.load_adapter("runs/mine", deeper)
    text = str(caught.value)
    assert len(text) < 700 and len(caught.value.found) > 20 and "--model" not in text, text
    assert f"and {len(caught.value.found) - 3} more" in text and caught.value.whole() is False
    followed(caught.value.call, {"halter": halter})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"fan_in_fan_out": True, "target_modules": ["c_attn"], "base_model_name_or_path": "gpt2"}, "model, gpt2."),
        ({"target_modules": ["query_key_value", "dense"], "base_model_name_or_path": "pythia"}, "model, pythia."),
        ({"target_modules": r".*\.h\.\d+\.attn", "base_model_name_or_path": None}, "another kind of model."),
    ],
)
def test_an_adapter_of_another_kind_of_model_is_told_as_such(
    config: dict[str, Any], told: str, place: Path, capsys: Any
) -> None:
    peft_folder("theirs", **config)
    err = said(capsys, f"generate --model base --adapter theirs {ASK}")
    assert f"this adapter was trained on another kind of {told}"[-20:] in err and "open it with peft" in err, err
    assert "targets-match-nothing" not in err and "--model" not in err
    peft_folder("partly", target_modules=["q_proj", "qproj"])
    assert "did you mean q_proj for qproj?" in said(capsys, f"generate --model base --adapter partly {ASK}")


@pytest.mark.parametrize("words", ["merge X --output m", f"generate X {ASK}", "evaluate X --data rows.jsonl", "chat X"])
@pytest.mark.parametrize("named", ["base runs/mine", "runs/mine base"])
def test_a_base_beside_a_run_is_named_with_its_flag(words: str, named: str, place: Path, capsys: Any) -> None:
    err = said(capsys, words.replace("X", named))
    told = re.search(r"with --model: (.*?)\. \[usage\]", err)
    assert told is not None and told[1] == "runs/mine --model base", err
    if not words.startswith("chat"):
        assert main.run(shlex.split(words.replace("X", told[1]))) == 0


def test_a_chat_tells_what_to_type_and_three_places(place: Path, capsys: Any, monkeypatch: Any) -> None:
    shapes = halter.load("base")[0].config
    deeper = tiny.decoder(tiny.config(layers=shapes.layers + 2))
    adapter = halter.adapt(deeper, "lora", r=2)
    adapter.facts = {"base": {"name": "deeper"}}
    adapter.save("strange")
    monkeypatch.setattr("sys.stdin", io.StringIO("/adapter strange\n/quit\n"))
    assert main.run(["chat", "base"]) == 0
    out = str(capsys.readouterr().out)
    assert "it was trained on deeper: give that (--model)" in out and "halter.load" not in out, out
    assert " more." in out and out.count("is unexpected") + out.count("is missing") + out.count(", not (") == 3, out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("merge runs/mine new", "Fix: halter merge runs/mine --output new."),
        ("adapters compress runs/mine new", "Fix: halter adapters compress runs/mine --output new."),
        ("adapters convert base/model.safetensors --output new", "these are a model's weights, not an adapter's"),
        ("adapters show runs/mine/checkpoints", "did you mean runs/mine?"),
        ("merge runs/mine --output new --into q4_k_m", "convert_hf_to_gguf.py makes GGUF of new"),
    ],
)
def test_small_words_that_lead_on(words: str, told: str, place: Path, capsys: Any) -> None:
    err = said(capsys, words)
    assert told in err, err
    if (follow := re.search(r"Fix: halter (.* --output new)\.", err)) is not None:
        assert main.run(shlex.split(follow[1])) == 0 and Path("new").is_dir()


def test_an_adapter_of_mlx_is_told_as_such_however_it_is_named(place: Path, capsys: Any) -> None:
    tensors = {"model.layers.0.self_attn.q_proj.lora_a": torch.zeros(4, 2)}
    told = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 20.0}, "model": "base", "num_layers": 2}
    for folder, name in (("mlx", "adapters"), ("renamed", "adapter_model"), ("alone", "adapters")):
        Path(folder).mkdir()
        save_file(tensors, f"{folder}/{name}.safetensors")
        if folder != "alone":
            Path(folder, "adapter_config.json").write_text(json.dumps(told))
    ways = [f"generate --model base --adapter X {ASK}", f"generate X {ASK}", "merge X --model base --output m"]
    ways += ["adapters show X", "adapters convert X --output x", f"{TRAIN} X", "evaluate X --data rows.jsonl"]
    for words in ways:
        for folder in ("mlx", "renamed"):
            err = said(capsys, words.replace("X", folder))
            assert f"mlx_lm.fuse --model base --adapter-path {folder} --save-path merged" in err, (words, err)
            assert "missing" not in err and "PEFT (merge" not in err, err
    for file in ("mlx/adapters.safetensors", "alone/adapters.safetensors"):
        err = said(capsys, f"adapters convert {file} --model base --output x")
        assert f"--adapter-path {file.partition('/')[0]} --save-path" in err, err


@pytest.mark.parametrize("kept", ["modules_to_save", "along"])
def test_an_enlarged_vocabulary_is_told_as_such(kept: str, place: Path, capsys: Any) -> None:
    """PEFT keeps the whole table where tokens were added: as trained ones, or along with the adapter."""
    folder = peft_folder("resized", **({"modules_to_save": ["embed_tokens", "lm_head"]} if kept != "along" else {}))
    tensors = load_file(folder / "adapter_model.safetensors")
    base = load_file("base/model.safetensors")
    rows = len(base["model.embed_tokens.weight"])
    for name in ("model.embed_tokens", "lm_head"):
        weight = base.get(f"{name}.weight", base["model.embed_tokens.weight"]).float()
        tensors[f"base_model.model.{name}.weight"] = torch.cat([weight, weight[:3]])
    save_file(tensors, folder / "adapter_model.safetensors")
    err = said(capsys, f"generate --model base --adapter resized {ASK}")
    assert f"its vocabulary was enlarged by 3 ({rows} to {rows + 3}) before it was trained" in err, err
    assert "give that" not in err and f"resize_token_embeddings({rows + 3})" in err


def test_the_base_that_is_given_is_never_advised(place: Path, capsys: Any) -> None:
    """The weights there are no longer those that the adapter was trained on, and their shapes differ."""
    Path("base").rename("kept")
    model, tokenizer = halter.load("kept", dtype="float32")
    narrow = tiny.decoder(tiny.config(layers=1, vocab_size=model.config.vocab_size))
    save_model(narrow, narrow.config, "base", tokenizer.files)
    for words in (f"generate runs/mine {ASK}", f"generate --model base --adapter runs/mine {ASK}"):
        err = said(capsys, f"{words}")
        assert "[adapter-mismatch]" in err and "it was trained on base: give that" not in err, err
        assert "which is this very model" in err and "--model" in err, err
    assert main.run(["generate", "runs/mine", "--model", "kept", *ASK.split()]) == 0
