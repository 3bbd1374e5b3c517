"""What must hold of any adapter, of one method or several, whatever its options: test_pairs, test_option_sets."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace

import bounds
import covering
import numpy as np
import pytest
import sighted
import tiny
import torch

from halter.adapters.adapter import Adapter, adapt
from halter.adapters.loading import load_adapter
from halter.contract.registry import find
from halter.data.pack import pack
from halter.errors import Refusal
from halter.export.foldable import refuse_unfoldable
from halter.model.decoder import Decoder
from halter.model.layout import EXPERTS, HEAD
from halter.training.schedule import make as make_schedule
from halter.training.step import gather
from halter.training.trainee import Trainee

SIZES = {"dim": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_dim": 24, "vocab_size": 48}
BASES = ({}, {"attention_bias": True, "mlp_bias": True}, {"tied": True}, {"experts": 2, "dense_dim": 24})
DENSE = 3
"""So many of them, the first ones, have no routed experts."""
TOKENS = torch.randint(0, 48, (3, 12), generator=torch.Generator().manual_seed(5))
TOKENS[:, 0:4] = torch.tensor([1, 2, 3, 5])  # begin and end of a text, which token_rows trains, and two that are named
PROMPT = 8
BASE = "(base)"
"""The option beside a method's own: which of BASES it is used on."""
KINDS = {"attention_bias": ".self_attn.", "mlp_bias": ".mlp."}


@functools.cache
def model(number=0):
    return tiny.decoder(tiny.config(**SIZES, **BASES[number]))


def made(method, number=0, seed=0, moved=True):
    """An adapter of a method, or of a list of them, on a base; every parameter off its start."""
    adapter = adapt(model(number), method, seed=seed)
    if moved:
        tiny.jitter(adapter, 0.1, seed + 1)
    return adapter


def in_order(methods, parts):
    """One adapter of the methods with the parts' tensors, as a recipe's list has it."""
    shape = parts[0].shape
    both = Adapter(shape, [method.equipped() for method in methods])
    with torch.no_grad():
        for slot, own in zip(both.slots, [slot for part in parts for slot in part.slots], strict=True):
            for mine, theirs in zip(slot.piece.parameters(), own.piece.parameters(), strict=True):
                mine.copy_(theirs)
            for mine, theirs in zip(slot.piece.buffers(), own.piece.buffers(), strict=True):
                mine.copy_(theirs)
    return both


def rows_for(adapter):
    """TOKENS as rows; for who sees the first and the last with pictures."""
    return sighted.rows_of(None if adapter is None else adapter.sight, TOKENS, (0, None, 1))


def prompts_of(rows):
    """Tokens of each prompt: ``PROMPT``, and its pictures'."""
    return [PROMPT + sum(one.length for one in row.pictures) for row in rows]


def logits(number, adapter, seen_by=None):
    """[tokens, vocabulary] of the rows that ``adapter``, or another one, sees."""
    rows = rows_for(seen_by or adapter)
    with torch.no_grad():
        return torch.cat(sighted.logits(model(number), adapter, rows, prompts_of(rows)))


def batch(adapter):
    """The rows, every next word a target, that of prompts too: what acts on a prompt in the last layer has a
    gradient."""
    rows = rows_for(adapter)
    placed = [[n for one in row.pictures for n in range(one.start, one.end)] for row in rows]
    learned = [~np.isin(np.arange(len(row.tokens)), own) for row, own in zip(rows, placed, strict=True)]
    whole = pack([replace(row, supervised=own) for row, own in zip(rows, learned, strict=True)])
    return replace(whole, prompt_lengths=prompts_of(rows))


def without_gradient(number, adapter):
    """Names of trained tensors that a step would not move."""
    assert adapter.num_trainable
    for parameter in adapter.parameters():
        parameter.grad = None
    groups = adapter.groups(1e-2, 0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainee = Trainee(adapter, torch.optim.SGD(groups, lr=1e-2), make_schedule("constant", 10, 0), scaler, 0.0)
    gather(model(number), [trainee], [[part] for part in trainee.halves(batch(adapter))])
    still = [name for name, p in adapter.trainable().items() if p.grad is None or not bool(p.grad.any())]
    unused = tuple(slot.path for slot in adapter.slots if slot.at.kind == EXPERTS)  # to which no token of these went
    return [name for name in still if adapter.trainable()[name].grad is not None or not any(p in name for p in unused)]


def is_saved_as_it_is(number, adapter, folder):
    adapter.save(folder)
    again = load_adapter(folder, model(number), say=lambda note: pytest.fail(f"a new folder is read with: {note}"))
    shutil.rmtree(folder)
    assert again.methods == tuple(method.plain() for method in adapter.methods)
    assert torch.equal(logits(number, again), logits(number, adapter))


def folds_or_says_where(number, adapter):
    """The base with folded weights gives the adapter's logits within 1e-5 relative, or every place is named."""
    base = model(number)
    if stuck := adapter.unfoldable():
        with pytest.raises(Refusal, match="cannot-merge") as caught:
            adapter.fold(stuck[0], torch.zeros(16, 16), None)
        assert caught.value.found == tuple(stuck)
        return False
    folded = {}
    with torch.no_grad():
        for place, module in base.places():
            bias = getattr(module, "bias", None)
            weight, bias = adapter.fold(place.path, module.weight(), bias)
            if bias is not None and place.kind != HEAD and not place.bias_option:  # which no checkpoint has room for
                with pytest.raises(Refusal, match="cannot-merge"):
                    refuse_unfoldable(adapter)
                return False
            folded[place.weight_name] = weight
            if bias is not None:
                folded[f"{place.path}.bias"] = bias
        brought = {
            kind: any(part in name and name.endswith(".bias") for name in folded) for kind, part in KINDS.items()
        }
        tied = base.config.tied and torch.equal(folded["model.embed_tokens.weight"], folded["lm_head.weight"])
        after = Decoder(replace(base.config, tied=tied, **brought))
        head = folded.pop("lm_head.bias", 0)  # no LLaMA's file holds one, and export refuses it
        for name, shape in after.expected().items():
            after.set_tensor(name, folded.get(name, torch.zeros(shape)))
        bounds.assert_same((after(TOKENS) + head).flatten(0, 1), logits(number, adapter))
    return True


def is_alone_in_a_mixed_batch(number, adapters):
    """Rows of any of the adapters and plain ones, in any order."""
    owners = [adapters[0], None, *adapters, adapters[0]]
    rows = [rows_for(own)[place % 3] for place, own in enumerate(owners)]
    base = model(number)
    with torch.no_grad():
        mixed = sighted.logits(base, owners, rows, prompts_of(rows))
        for own, row, found in zip(owners, rows, mixed, strict=True):
            bounds.assert_same(found, sighted.logits(base, own, [row], prompts_of([row]))[0])


@functools.cache
def option_sets(name):
    """Of one method: [(base, options)] in which every two values meet, and the pairs of values that are refused."""
    kind = find(name)
    space = {BASE: list(range(len(BASES))), **covering.space_of(kind)}

    def accepts(values):
        own = {key: value for key, value in values.items() if key != BASE}
        try:
            method, shape = kind(**own).equipped(), model(values[BASE]).config
            method.check_new(shape)
            Adapter(shape, [method])
        except Refusal:
            return False
        return True

    return space, covering.covering(space, accepts)


def sets_of(name):
    """[(base, the method)]."""
    _, covered = option_sets(name)
    return [(s[BASE], find(name)(**{k: v for k, v in s.items() if k != BASE})) for s in covered.sets]


def few_of(name):
    """The first of ``sets_of`` in which every value of every option is met."""
    _, covered = option_sets(name)
    met, found = set(), []
    for one, made in zip(covered.sets, sets_of(name), strict=True):
        fresh = {(key, repr(value)) for key, value in one.items()} - met
        met |= fresh
        found += [made] if fresh else []
    return found
