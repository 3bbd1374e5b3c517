"""A folder with a Llama 4's text and its own tokenizer, asked: its turns, and where an answer ends."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_tokenizers

import halter
from halter.cli import main
from halter.export.merge import write_template
from halter.model.llama4_config import Llama4Config
from halter.pretrained.save import save_model
from halter.text.tokenizer import Tokenizer

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who <|eot|> are you?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = tiny_tokenizers.llama4(tmp_path_factory.mktemp("tokens"))
    known = Tokenizer.from_folder(tokens)
    shape = Llama4Config(
        layers=2,
        dim=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn_dim=24,
        vocab_size=known.vocab_size + 3,
        context=512,
        dense_dim=40,
        experts=4,
        moe_layers=(1,),
        rotated=(True, False),
        chunked=(True, False),
        chunk=16,
        bos_token_id=known.bos_id,
        eos_token_ids=known.stop_ids,
        pad_token_id=known.pad_id,
    )
    folder = tmp_path_factory.mktemp("llama4") / "base"
    save_model(tiny.decoder(shape), shape, folder, sorted(tokens.iterdir()))
    return folder


@pytest.mark.parametrize("ending", ["<|eot|>", "<|eom|>", "<|end_of_text|>"])
def test_a_conversation_is_written_in_its_turns_and_ends_with_any_of_three(folder: Path, ending: str) -> None:
    model, tokenizer = halter.load(folder, device="cpu")
    end = tokenizer.token_id(ending)
    (answer,) = halter.generate(model, tokenizer, [TALK], max_new_tokens=4, logit_bias={end: 100.0})
    asked = tokenizer.decode(answer.prompt_tokens, skip_control=False)
    turn = "<|header_start|>{}<|header_end|>\n\n{}<|eot|>"
    turns = turn.format("system", "Be brief.") + turn.format("user", TALK[1]["content"])
    assert asked == f"<|begin_of_text|>{turns}<|header_start|>assistant<|header_end|>\n\n"
    assert answer.prompt_tokens.count(tokenizer.token_id("<|eot|>") or -1) == 2  # nobody types an end
    assert answer.finish_reason == "stop" and answer.text == "" and answer.stop == end


def test_the_commands_ask_it_in_its_turns(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = Tokenizer.encode_runs
    monkeypatch.setattr(Tokenizer, "encode_runs", lambda *given, **more: _noted(seen, encode(*given, **more)))
    assert main.run(["generate", str(folder), "--prompt", "Hi", "--max-new-tokens", "2", "--device", "cpu"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/quit\n"))
    assert main.run(["chat", str(folder), "--max-new-tokens", "2", "--device", "cpu"]) == 0
    assert "chat template: llama-4" in capsys.readouterr().out
    assert seen.count(Tokenizer.from_folder(folder).token_id("<|header_start|>") or -1) >= 4


def _noted(seen: list[int], runs: Any) -> Any:
    seen += [id for run in runs for id in run.ids]
    return runs


def test_a_template_that_no_file_brings_is_written_beside_a_merged_model(folder: Path, tmp_path: Path) -> None:
    """transformers, which knows no built-in one, finds it there."""
    tokenizer = Tokenizer.from_folder(folder)
    used = tokenizer.chat_template
    assert used is not None
    facts = {"template": {"name": used.name, "digest": used.digest}, "template_source": used.source}
    write_template(tmp_path, SimpleNamespace(facts=facts), tokenizer)  # type: ignore[arg-type]
    assert (tmp_path / "chat_template.jinja").read_text("utf-8") == used.source
    again = SimpleNamespace(chat_template=used, template_in_files=True)
    (tmp_path / "own").mkdir()
    write_template(tmp_path / "own", SimpleNamespace(facts=facts), again)  # type: ignore[arg-type]
    assert not any((tmp_path / "own").iterdir())
