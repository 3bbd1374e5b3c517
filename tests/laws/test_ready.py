"""An adapter made ready is the adapter, bit for bit, for rows that it has never seen; alone, mixed and with a cache."""

from __future__ import annotations

import pytest
import tiny
import tiny_tokenizers
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.mixed import Mixed
from halter.adapters.ready import Ready
from halter.contract.registry import names
from halter.errors import HalterError
from halter.generation.engine import generate
from halter.text.tokenizer import Tokenizer

every_method = pytest.mark.parametrize("name", names())


@every_method
def test_ready_is_the_adapter(name, tmp_path):
    model = tiny.decoder(tiny.config(vocab_size=512, dim=64, head_dim=16))
    adapter = adapt(model, name, seed=1)
    tiny.jitter(adapter)
    ready = halter.ready(model, adapter)
    assert isinstance(ready, Ready) == adapter.tokenwise
    rows = torch.randint(3, 512, (3, 21), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = model(rows, adapter=adapter)
        assert torch.equal(model(rows, adapter=ready), want)
        assert torch.equal(model(rows[:, :7], adapter=ready), model(rows[:, :7], adapter=adapter))
        mixed = [model(rows, adapter=Mixed([one], [0, -1, 0])) for one in (adapter, ready)]
        base = model(rows)
        assert torch.equal(*mixed) and torch.allclose(mixed[0][1], base[1], rtol=1e-5, atol=1e-5)
        assert adapter.sight is not None or not torch.equal(want, base)  # rows without pictures may be the base's
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path))
    prompts = [[1, 9, 4], [1, 7, 30, 2, 9]]
    answers = [generate(model, tokenizer, prompts, one, max_new_tokens=9) for one in (adapter, ready)]
    assert answers[0] == answers[1]


def test_another_base_is_refused_and_nothing_is_bound_again(monkeypatch):
    model = tiny.decoder()
    adapter = adapt(model, "llama_adapter")
    ready = halter.ready(model, adapter)
    monkeypatch.setattr(type(adapter), "bind", None)
    rows = torch.zeros(1, 4, dtype=torch.int64)
    model(rows, adapter=ready)
    with pytest.raises(HalterError, match="another base"):
        tiny.decoder(seed=3)(rows, adapter=ready)
