"""LangChain and LiteLLM ask the server, as their documents say; extra ``clients``, which make test does not install."""

from __future__ import annotations

from typing import Any

import pytest
from serving import PATIENCE, TALK

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


def wanted(served: Any, name: str) -> str:
    """What openai's own client is told."""
    answer = served.client().chat.completions.create(model=name, messages=TALK, **GREEDY)
    return answer.choices[0].message.content


@pytest.mark.parametrize("name", ["tiny", "loreft"])
def test_langchain_asks_and_streams(name: str, served: Any) -> None:
    langchain = pytest.importorskip("langchain_openai")
    url = f"http://127.0.0.1:{served.port}/v1"
    chat = langchain.ChatOpenAI(
        base_url=url, model=name, api_key="any", timeout=PATIENCE, max_retries=0, stream_usage=True, **GREEDY
    )
    said = chat.invoke([(turn["role"], turn["content"]) for turn in TALK])
    assert said.content == wanted(served, name) and said.usage_metadata["output_tokens"] > 0
    assert said.response_metadata["model_name"].partition("@")[0] == name
    parts = list(chat.stream([(turn["role"], turn["content"]) for turn in TALK]))
    assert "".join(part.content for part in parts) == said.content and len(parts) > 3
    told = [part.usage_metadata for part in parts if part.usage_metadata]
    assert told[-1]["output_tokens"] == said.usage_metadata["output_tokens"]
    with pytest.raises(Exception, match="nobody"):
        chat.bind(model="nobody").invoke("Hello")


@pytest.mark.parametrize("name", ["tiny", "prefix_tuning"])
def test_litellm_asks_and_streams(name: str, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices
    litellm = pytest.importorskip("litellm")
    monkeypatch.setattr(litellm, "telemetry", False)
    url = f"http://127.0.0.1:{served.port}/v1"
    asked = {"api_base": url, "api_key": "any", "messages": TALK, "timeout": PATIENCE, "num_retries": 0, **GREEDY}
    said = litellm.completion(model=f"openai/{name}", **asked)
    assert said.choices[0].message.content == wanted(served, name) and said.usage.completion_tokens > 0
    parts = list(litellm.completion(model=f"openai/{name}", stream=True, **asked))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == said.choices[0].message.content
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nobody", **asked)
