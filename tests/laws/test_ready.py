"""An adapter made ready is the adapter, bit for bit, for rows that it has never seen; alone, mixed and with a cache."""

from __future__ import annotations

import bounds
import pytest
import sighted
import tiny
import tiny_tokenizers
import torch

import halter
from halter.adapters.adapter import adapt
from halter.adapters.ready import Ready
from halter.errors import HalterError
from halter.generation.engine import generate
from halter.generation.prompts import EncodedPrompt
from halter.text.tokenizer import Tokenizer

every_method = pytest.mark.parametrize("name", sighted.CASES)


@every_method
def test_ready_is_the_adapter(name, tmp_path):
    model = tiny.decoder(tiny.config(vocab_size=512, dim=64, head_dim=16))
    adapter = adapt(model, sighted.method_of(name), seed=1)
    tiny.jitter(adapter)
    ready = halter.ready(model, adapter)
    assert isinstance(ready, Ready) == adapter.tokenwise
    tokens = torch.randint(3, 512, (3, 21), generator=torch.Generator().manual_seed(2))
    rows, short = (sighted.rows_of(adapter.sight, some, (0, None, 1)) for some in (tokens, tokens[:, :7]))
    plain = sighted.rows_of(None, tokens)
    with torch.no_grad():
        want = sighted.logits(model, adapter, rows)
        for own, some in ((want, rows), (sighted.logits(model, adapter, short), short)):
            assert all(map(torch.equal, sighted.logits(model, ready, some), own))
        both = [rows[0], plain[1], rows[2]]
        mixed = [sighted.logits(model, [one, None, one], both) for one in (adapter, ready)]
        assert all(map(torch.equal, *mixed))
        (base,) = sighted.logits(model, None, plain[1:2])
        bounds.assert_same(mixed[0][1], base)
        same = torch.equal(mixed[0][1], want[1])
        assert (
            not same or adapter.sight is not None and adapter.sight.tokens
        )  # else a row without pictures is no base.s
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path))
    prompts = sighted.rows_of(adapter.sight, [[1, 9, 4], [1, 7, 30, 2, 9]], (0, None))
    asked = [EncodedPrompt(tuple(row.tokens.tolist()), True, pictures=row.pictures) for row in prompts]
    answers = [generate(model, tokenizer, asked, one, max_new_tokens=9) for one in (adapter, ready)]
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
