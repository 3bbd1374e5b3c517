"""docs/guide/add-a-server-route.md: its route stands beside the server's own, and asks the same engine."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import serving

from halter.generation.engine import generate

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "add-a-server-route.md").read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    path = tmp_path_factory.mktemp("serve") / "route.py"
    path.write_text(source, "utf-8")
    spec = importlib.util.spec_from_file_location("route_of_the_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_pages_route_scores_a_text(page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from halter.serve import app, running

    def with_score(service: object) -> object:
        made = app.app_of(service)
        made.router.routes.append(page.route(service))
        return made

    monkeypatch.setattr(running, "app_of", with_score)
    world = serving.World(tmp_path)
    with world.server() as server:
        status, _, told = server.ask("/score", {"model": "lora", "text": "The dog"})
        wrong = server.ask("/score", {"model": "nobody", "text": "The dog"})
        odd = server.ask("/score", {"model": "lora", "text": "", "x": 1})
        assert server.service.admission.answers == 0
    options = {"max_new_tokens": 1, "prompt_logprobs": 0}
    (want,) = generate(world.model, world.tokenizer, ["The dog"], world.loaded("lora"), **options)
    total = sum(one.logprob for one in want.prompt_logprobs[1:])
    assert status == 200 and told["logprob"] == pytest.approx(total, abs=1e-4)
    assert wrong[0] == 404 and odd[0] == 400 and odd[2]["error"]["code"] == "unsupported_parameter"
