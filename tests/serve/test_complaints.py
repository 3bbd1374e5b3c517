"""Complaints about other servers of adapters that no other test here would notice; which test has which of the fifteen
stands in docs/measured/serve.md."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import serving
import tiny
import torch
from serving import TALK
from test_admin import Admin

from halter.cli import main
from halter.generation.engine import Engine
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.model.decoder import Decoder

COMPLETE = "/v1/completions"
SHORT: dict[str, Any] = {"prompt": [1, 5, 9, 7, 60], "max_tokens": 6, "temperature": 0}


@pytest.mark.parametrize("names", [["lora"], ["lora", "dora", "ia3", "llama_adapter"], list(serving.METHODS)], ids=len)
def test_adapters_take_no_pass_of_their_own(world: Any, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """One adapter halved the throughput elsewhere. Here the base reads its weights as often, over as many tokens,
    whatever acts beside it; what the acts themselves cost is measured."""

    def passes(adapters: list[Any]) -> list[int]:
        engine, fed, hidden = Engine(world.model, world.tokenizer), [], Decoder.hidden
        for number, adapter in enumerate(adapters):
            options = GenerationOptions(max_new_tokens=6, ignore_stop_ids=True)
            engine.add(Request(EncodedPrompt((1, 5, 9, 40 + number), False), options, adapter))
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "hidden", lambda self, one: fed.append(len(one.tokens)) or hidden(self, one))
            while engine.busy:
                engine.step()
        return fed

    rows = len(names) + 1
    beside = passes([*map(world.loaded, names), None])
    assert beside == passes([None] * rows) == [4 * rows, rows, rows, rows, rows, rows]


def test_what_is_not_there_is_never_said_to_be_loaded(world: Any, tmp_path: Path, capsys: Any) -> None:
    """Neither at the start, nor where the folder goes afterwards."""
    assert main.run(["serve", "playground", "--adapters", str(tmp_path / "nowhere")]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
    world.adapter("lora", seed=41).save(tmp_path / "here")
    with world.server(also=[f"gone={tmp_path / 'here'}"], admin=tmp_path / "admin.json") as server:
        (tmp_path / "here").rename(tmp_path / "elsewhere")
        admin = Admin(tmp_path / "admin.json")
        for _ in range(2):
            status, told = admin.ask("/load", {"name": "gone"})
            assert status == 400 and told["error"]["code"] == "adapter_unusable" and str(tmp_path) not in str(told)
            assert admin.row("gone")["state"] == "broken"
            assert server.ask(COMPLETE, {**SHORT, "model": "gone"})[0] == 400
        (tmp_path / "elsewhere").rename(tmp_path / "here")
        assert admin.ask("/load", {"name": "gone"})[1]["state"] == "loaded"
        assert server.ask(COMPLETE, {**SHORT, "model": "gone"})[0] == 200


def test_an_adapter_of_pefts_is_answered_as_by_peft(world: Any, tmp_path: Path) -> None:
    """Beside another adapter and the base, by the scores of a prompt and the greedy answer."""
    peft = pytest.importorskip("peft")
    places = ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=places, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(tiny.peer(world.model), config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    ids = [1, 5, 9, 7, 60, 61, 200]
    with world.server(also=[f"theirs={tmp_path / 'theirs'}"]) as server, ThreadPoolExecutor(3) as threads:
        asked = [{**SHORT, "prompt": ids, "echo": True, "logprobs": 1, "model": m} for m in ("lora", "theirs", "tiny")]
        _, told, _ = (one[2]["choices"][0] for one in threads.map(lambda body: server.ask(COMPLETE, body), asked))
    found = told["logprobs"]["token_logprobs"]
    with torch.no_grad():
        whole = theirs.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=-1)
        scores = theirs(whole).logits.log_softmax(-1)[0, :-1].gather(-1, whole[0, 1:, None]).squeeze(-1)
    assert found[0] is None and found[1:] == pytest.approx(scores[: len(found) - 1].tolist(), abs=1e-4)
    text = world.tokenizer.decode(whole[0, len(ids) :].tolist())
    assert told["text"].endswith(text)


def test_more_adapters_than_there_is_room_for_stall_nobody_else(world: Any) -> None:
    """Each request of a working set that does not fit reads its adapter anew; who needs none of them goes on meanwhile,
    and every answer is its own adapter's."""
    names = list(serving.METHODS)
    with world.server() as server:
        want = {name: server.ask(COMPLETE, {**SHORT, "model": name})[2]["choices"][0]["text"] for name in names}
    with world.server(adapter_gb=1e-4) as server, ThreadPoolExecutor(2) as threads:
        client = server.client(retries=0)
        running = client.completions.create(
            model="tiny", prompt=TALK[1]["content"], max_tokens=200, temperature=0, stream=True
        )
        next(iter(running))
        heard = threads.submit(lambda: sum(1 for _ in running))
        for name in [*names, *names]:
            told = server.ask(COMPLETE, {**SHORT, "model": name})[2]
            assert told["choices"][0]["text"] == want[name], name
        assert heard.result(serving.PATIENCE) > 0
        assert len(server.opened) == 2 * len(names)
