"""Llama 4 and Llama 3.2 Vision on rows with pictures, from a folder, through every command: trained, asked, talked to,
scored and inspected. Both are tiny and random."""

from __future__ import annotations

import io
import json
from statistics import mode

import pytest
import seeing
import seeing_mllama
import tiny
import tiny_llama4
import tiny_tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file

import halter
from halter.cli import main
from halter.comparison.options import CompareOptions
from halter.comparison.setup import set_up
from halter.generation.prompts import encode_prompt
from halter.generation.seeing import Seeing
from halter.pretrained.save import save_model
from halter.text.tokenizer import Tokenizer

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (20, 180, 40)}


def llama4(tmp):
    files = tiny_tokenizers.llama4(tmp)
    known = Tokenizer.from_folder(files)
    ids, ends = tiny_llama4.ids_of(known)
    shape = tiny_llama4.config(vocab_size=known.vocab_size, chunk=16, seen=tiny_llama4.tower(**ids), **ends)
    return tiny.decoder(shape), files


def mllama(tmp):
    files = seeing.folder(tmp)
    known = Tokenizer.from_folder(files)
    ends = {"bos_token_id": known.bos_id, "eos_token_ids": (known.eos_id,)}
    picture = known.token_id("<|image|>")
    sizes = {"vocab_size": known.vocab_size, "picture_id": picture, "tile": 8, "patch": 4}
    shape = seeing_mllama.config(**sizes, **ends)
    return seeing_mllama.made(shape, torch.float32), files


@pytest.fixture(scope="module", params=[llama4, mllama], ids=["llama4", "mllama"])
def base(request, tmp_path_factory):
    model, files = request.param(tmp_path_factory.mktemp("tokens"))
    folder = tmp_path_factory.mktemp("model") / "base"
    save_model(model, model.config, folder, sorted(files.iterdir()))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for n in range(6):
        name, colour = list(COLOURS.items())[n % 3]
        size = (8 + 8 * (n % 2), 8)
        (folder / f"{n}.png").write_bytes(seeing.saved(Image.new("RGB", size, colour)))
        talk = [{"role": "user", "content": "<image>\nWhat is this?"}, {"role": "assistant", "content": name}]
        lines.append(json.dumps({"images": [f"{n}.png"], "messages": talk}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def run(base, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "--model", base, "--data", rows, "--method", "lora", "--output-dir", folder]
    words += ["--max-steps", 2, "--validation", 0.4, "--device", "cpu"]
    assert main.run([str(word) for word in words]) == 0
    return folder


@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_a_part_that_lies_before_the_text_learns_in_runs_of_many_epochs_and_under_noise(base, rows, noise, tmp_path):
    """Outputs of frozen layers are kept from three epochs on; noise is laid upon what enters the first of them."""
    method = {"name": "lora", "target_modules": ["projector"]}
    train = {"num_train_epochs": 4, "neftune_noise_alpha": noise}
    recipe = {"model": {"path": str(base), "device": "cpu"}, "data": str(rows), "method": method, "train": train}
    made = halter.train(recipe | {"output_dir": str(tmp_path / "run")}, say=lambda _: None)
    trained = load_file(made / "adapter" / "adapter_model.safetensors")
    moved = [name for name, tensor in trained.items() if "lora_B" in name and bool(tensor.any())]
    assert moved and len(moved) == sum("lora_B" in name for name in trained)


def test_the_embedding_of_most_of_a_pictures_tokens_may_be_untrained(base, rows, tmp_path):
    """What Llama 4's tower makes stands in its place, so that a base may have left it at zero."""
    model, tokenizer = halter.load(base, device="cpu", dtype="float32", say=lambda _: None)
    model.embed_tokens.matrix[mode(model.config.pictures.ids((1, 1)))] = 0
    save_model(model, model.config, tmp_path / "base", [path for path in base.iterdir() if "token" in path.name])
    recipe = {"model": {"path": str(tmp_path / "base"), "device": "cpu"}, "data": str(rows), "method": "lora"}
    made = halter.train(recipe | {"train": {"max_steps": 1}, "output_dir": str(tmp_path / "run")}, say=lambda _: None)
    assert (made / "adapter").is_dir()


def typed(capsys, *words):
    code = main.run([str(word) for word in words])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def test_a_run_learns_and_is_asked_and_scored(run, rows, capsys, tmp_path):
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line and line["loss"] > 0 for line in losses)
    short = ("--max-new-tokens", 2, "--device", "cpu")
    told = typed(capsys, "generate", run, "--input", rows, "--json", *short)
    answers = [json.loads(line) for line in told.splitlines()]
    assert len(answers) == 6 and all(one["finish_reason"] in ("length", "stop") for one in answers)
    found = typed(capsys, "evaluate", run, "--data", rows, "--output", tmp_path / "scored", "--json", *short)
    assert json.loads(found)
    shown = (tmp_path / "scored").glob("*.jsonl")
    assert any("<image>" in json.loads(line)["prompt"] for file in shown for line in file.read_text().splitlines())


def test_a_picture_is_asked_about_in_one_command(run, rows, capsys, monkeypatch, tmp_path):
    asked = ("--prompt", "What is this?", "--max-new-tokens", 2, "--device", "cpu")
    told = [typed(capsys, "generate", run, "--image", rows.parent / f"{n}.png", *asked, "--json") for n in (0, 1)]
    for n, one in enumerate(map(json.loads, told)):
        assert one["prompt"] == "What is this?" and one["images"] == [str(rows.parent / f"{n}.png")]
    with open(tmp_path / "row.jsonl", "w") as file:
        json.dump({"messages": [{"role": "user", "content": "<image>What is this?"}], "images": ["0.png"]}, file)
    short = ("--max-new-tokens", 2, "--device", "cpu", "--json")
    same = typed(capsys, "generate", run, "--input", tmp_path / "row.jsonl", f"data.image_folder={rows.parent}", *short)
    assert json.loads(same)["answer"] == json.loads(told[0])["answer"]
    for words, fault in ((("--image", "none.png", *asked), "no such file"), (("--image", "none.png"), "nothing")):
        assert main.run([str(word) for word in ("generate", run, *words)]) == 2
        assert fault in capsys.readouterr().err.replace("no prompt was given", "nothing")
    monkeypatch.setattr("sys.stdin", io.StringIO("What is this?\n/quit\n"))
    assert "8 x 8 pixels" in typed(capsys, "chat", run, "--image", rows.parent / "0.png", *asked[2:])


@pytest.fixture
def apart(tmp_path):
    """Rows to score, with pictures of their own, in a folder of their own."""
    here = tmp_path / "apart"
    here.mkdir()
    for n, colour in enumerate(COLOURS.values()):
        (here / f"{n}.png").write_bytes(seeing.saved(Image.new("RGB", (8, 8), colour)))
    talk = [{"role": "user", "content": "<image>\nWhich colour?"}, {"role": "assistant", "content": "red"}]
    lines = [json.dumps({"images": [f"{n}.png"], "messages": talk}) for n in range(3)]
    (here / "test.jsonl").write_text("\n".join(lines))
    return here / "test.jsonl"


def test_a_comparison_finds_the_pictures_and_is_another_when_one_of_them_is(base, rows, apart, tmp_path):
    """From a folder of its own, where the rows' paths lead nowhere. By its digests finished trials are found again."""
    source = {"model": {"path": str(base), "device": "cpu"}, "data": {"train": str(rows)}}
    found = []
    for name in ("one", "same", "other"):
        if name == "other":
            (apart.parent / "0.png").write_bytes((apart.parent / "1.png").read_bytes())
        setup = set_up(source, "lora", CompareOptions(test=str(apart)), tmp_path / name, lambda _: None)
        assert all(len(row.pictures) == 1 for row in setup.test) and all(row.pictures for row in setup.job.data.train)
        found.append(dict(setup.splits.digests))
    one, same, other = found
    assert one == same and {part for part in one if one[part] != other[part]} == {"pictures"}


@pytest.mark.nightly
def test_methods_are_compared_on_rows_with_pictures(base, rows, apart, capsys, tmp_path):
    words = ("--model", base, "--train", rows, "--test", apart, "--output", tmp_path / "which", "--methods", "ia3")
    few = ("--tokens", 30, "--seeds", 1, "--search-trials", 1, "--questions", 1, "--max-new-tokens", 2)
    assert "ia3" in typed(capsys, "compare", *words, *few, "--choices", "red", "--choices", "blue", "--skip-memory")
    record = json.loads((tmp_path / "which" / "record.json").read_text())
    assert all(row["status"] == "done" and "choice_accuracy" in row["mean"] for row in record["rows"])


def answers(told):
    return [json.loads(line)["answer"] for line in told.splitlines()]


def test_a_merged_model_and_combined_and_smaller_adapters_answer(base, run, rows, capsys, tmp_path):
    folders = {name: tmp_path / name for name in ("merged", "both", "small", "peft")}
    typed(capsys, "merge", run, "--output", folders["merged"], "--device", "cpu")
    typed(capsys, "adapters", "combine", run, run, "--output", folders["both"])
    typed(capsys, "adapters", "compress", run, "--output", folders["small"])
    typed(capsys, "adapters", "convert", run, "--to", "peft", "--output", folders["peft"])
    assert str(run) in typed(capsys, "adapters", "list", run.parent)
    assert "vLLM" not in typed(capsys, "adapters", "show", run)  # nobody has tried
    asked = ("--input", rows, "--max-new-tokens", 2, "--json", "--device", "cpu")
    told = {name: typed(capsys, "generate", folder, *asked) for name, folder in folders.items()}
    own = answers(typed(capsys, "generate", run, *asked))
    for name in ("merged", "peft"):
        assert answers(told[name]) == own
    assert all(len(answers(text)) == len(own) for text in told.values())


def test_a_recipe_is_planned_and_looked_through(base, rows, capsys):
    words = ("--model", base, "--data", rows, "--method", "lora")
    assert "no problem found" in typed(capsys, "doctor", *words)
    assert "training fits" in typed(capsys, "plan", *words)


def test_a_chat_takes_pictures_and_saves_them(base, rows, capsys, monkeypatch, tmp_path):
    saved = tmp_path / "chat.jsonl"
    lines = ["/image none.png", f"/image {rows.parent / '1.png'}", "What is this?", f"/save {saved}", "/retry", "/quit"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    told = typed(capsys, "chat", base, "--max-new-tokens", 2, "--device", "cpu")
    assert "there is no such file" in told and "16 x 8 pixels, 1 by 2 tiles" in told
    (row,) = [json.loads(line) for line in saved.read_text().splitlines()]
    assert row["messages"][0]["content"][0] == {"type": "image", "path": str(rows.parent / "1.png")}
    words = ["train", "--model", base, "--data", saved, "--method", "lora", "--output-dir", tmp_path / "again"]
    assert "picture-unusable" in told
    if row["messages"][1]["content"].strip():  # an answer of nothing teaches nothing
        typed(capsys, *words, "--max-steps", 1, "--device", "cpu")


def test_inspect_shows_pictures_tiles_and_tokens(base, rows, capsys, tmp_path):
    words = ("inspect", "--model", base, "--data", rows, "--method", "lora")
    told = typed(capsys, *words)
    assert "picture 1: 1.png, 16 x 8 pixels, 1 by 2 tiles, " in told and "<|image|>" in told
    assert "<|patch|>" not in told.partition("Labels")[0]
    found = json.loads(typed(capsys, *words, "--json"))
    for row in found["rows"]:
        assert row["length"] == len(row["tokens"]) + sum(one["tokens"] - 1 for one in row["pictures"])
    typed(capsys, *words, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3 and "img-src data:" in page


def test_what_a_picture_shows_changes_the_answer_and_equal_ids_share_nothing(base, rows):
    model, tokenizer = halter.load(base, device="cpu", dtype="float32", say=lambda _: None)
    asked = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "path": str(rows.parent / f"{n}.png")}, {"type": "text", "text": "?"}],
            }
        ]
        for n in (0, 2, 0)
    ]
    first, second, third = (encode_prompt(tokenizer, one, seeing=Seeing(model.config.pictures)) for one in asked)
    assert first.tokens == second.tokens == third.tokens and first.pictures[0].digest != second.pictures[0].digest
    options = {"max_new_tokens": 3, "ignore_stop_ids": True, "logprobs": 0}
    together = halter.generate(model, tokenizer, asked, **options)
    alone = [halter.generate(model, tokenizer, one, **options)[0] for one in asked]
    for one, by_itself in zip(together, alone, strict=True):
        told = [token.logprob for token in one.logprobs]
        assert told[0] == pytest.approx(by_itself.logprobs[0].logprob, abs=1e-4)
    assert together[0].logprobs[0].logprob == pytest.approx(together[2].logprobs[0].logprob, abs=1e-5)
    before, behind = together[0].logprobs[0], together[1].logprobs[0]
    assert before.token != behind.token or abs(before.logprob - behind.logprob) > 1e-4
    penalised = halter.generate(model, tokenizer, asked[0], prompt_logprobs=0, repetition_penalty=1.2, max_new_tokens=1)
    assert len(penalised[0].prompt_logprobs) == len(first.tokens)
