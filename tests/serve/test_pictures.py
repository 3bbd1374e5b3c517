"""Pictures as data URIs, for who sees; nobody else's are dropped in silence, and none is fetched."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sighted
import tiny
from PIL import Image

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.generation.engine import generate

CHAT = "/v1/chat/completions"


def shown(colour: str) -> dict[str, Any]:
    held = BytesIO()
    Image.new("RGB", (24, 16), colour).save(held, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"},
    }


def talk(colour: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [shown(colour), {"type": "text", "text": "What is it?"}]}]


@pytest.mark.usefixtures("small_encoder")
def test_an_adapter_that_sees_is_shown_pictures_and_others_refuse_them(world: Any, tmp_path: Path) -> None:
    adapter = adapt(world.model, sighted.method_of("llama_adapter+sight"), seed=3)
    tiny.jitter(adapter, 0.3, 4)
    adapter.save(tmp_path / "sees")
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "logprobs": True}
    with world.server(also=[str(tmp_path / "sees")]) as server:
        told = {}
        for colour in ("red", "blue"):
            status, _, body = server.ask(CHAT, {"model": "sees", "messages": talk(colour), **options})
            assert status == 200, body
            told[colour] = [one["logprob"] for one in body["choices"][0]["logprobs"]["content"]]
            held = load_adapter(tmp_path / "sees", world.model)
            template = world.opened.template
            (want,) = generate(
                world.model, world.tokenizer, [talk(colour)], held, template=template, max_new_tokens=8, logprobs=0
            )
            assert told[colour] == pytest.approx([one.logprob for one in want.logprobs], abs=1e-5)
        assert told["red"] != told["blue"]
        for blind in ("tiny", "lora"):
            status, _, body = server.ask(CHAT, {"model": blind, "messages": talk("red"), **options})
            assert status == 400 and "pictures" in body["error"]["message"]
        torn = talk("red")
        torn[0]["content"][0]["image_url"]["url"] = "data:image/png;base64,AAAA"
        status, _, body = server.ask(CHAT, {"model": "sees", "messages": torn, **options})
        assert status == 400 and "picture 1" in body["error"]["message"]
