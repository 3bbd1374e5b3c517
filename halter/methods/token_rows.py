"""Token rows: the embeddings of a few tokens are trained, and nothing else of the tables (PEFT's TRAINABLE_TOKENS).

    y = E'[token],   y = E' x at the head,   E' = E with the rows of ``tokens`` replaced by trained ones

For tokens that the base never learned (an end of turn, a new marker), beside any other method: a list of methods in the
recipe. Embeddings and head that are tied stay tied, unless it is asked otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halter.contract.method import Method, Piece, Site
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.places import Act
from halter.text.tokenizer import Tokenizer

MOST = 8
"""Tokens of a text that is none that a refusal shows."""


@dataclass(frozen=True)
class TokenRowsAct(Act):
    """``ids`` int64 [n], ascending; ``rows`` [n, dim] instead of the table's; ``moved`` [n, dim] is what they have
    moved by, so that at the head an untrained row changes no bit. ``table`` [n, dim], the base's own rows: what others
    made of them before is added; None: it is dropped."""

    ids: Tensor
    rows: Tensor
    moved: Tensor
    table: Tensor | None

    def act(self, x: Tensor, y: Tensor) -> Tensor:
        if x.is_floating_point():  # the head: x hidden [N, dim], y logits [N, V]
            return y.index_add(1, self.ids, F.linear(x, self.moved).to(y.dtype))
        place = torch.searchsorted(self.ids, x.contiguous()).clamp(max=len(self.ids) - 1)
        rows = self.rows[place]
        if self.table is not None:  # first the difference: beside nothing the row is itself, to the bit
            rows = rows + (y - self.table[place])
        return torch.where((self.ids[place] == x)[:, None], rows, y)


class TokenRows(Piece):
    """The trained rows [n, dim] in float32 of one table, or of both where they are one."""

    saved_names = {"rows": "trainable_tokens_delta"}
    folds = True
    token_ids: tuple[int, ...]

    def __init__(self, ids: Sequence[int], dim: int) -> None:
        super().__init__()
        self.token_ids = tuple(ids)
        self.rows = nn.Parameter(torch.zeros(len(self.token_ids), dim))

    @torch.no_grad()
    def start(self, module: nn.Module) -> None:
        self.rows.copy_(_table(module)[list(self.token_ids)])

    def bind(self, site: Site) -> Act:
        ids, order = torch.tensor(self.token_ids, device=self.rows.device).sort()
        rows, table = self.rows[order], _table(site.module)[ids]
        moved = rows - table.to(rows)
        before = None if self.joins_as_formerly else table.to(site.dtype)
        return TokenRowsAct(ids, rows.to(site.dtype), moved.to(site.dtype), before)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight.index_copy(0, torch.tensor(self.token_ids, device=weight.device), self.rows.to(weight)), bias


def _one(text: str, tokenizer: Tokenizer) -> int | str:
    """The one id of a text inside a text, or why there is none."""
    ids = tokenizer.encode(text, control=True, continues=True)
    if len(ids) == 1 and (ids[0] != tokenizer.unk_id or text == tokenizer.token(ids[0])):
        return ids[0]
    parts = " + ".join(f"{tokenizer.token(id)!r} ({id})" for id in ids[:MOST]) + (" ..." if len(ids) > MOST else "")
    return f"{text!r} is {len(ids)} tokens: {parts}" if len(ids) > 1 else f"{text!r} is {parts or 'no token'}"


def _table(module: nn.Module) -> Tensor:
    """The embedding's or the head's weight [V, dim]."""
    return module.weight()  # type: ignore[operator]


@dataclass(frozen=True)
class TokenRowsMethod(Method):
    """Trains the embedding rows of chosen tokens."""

    tokens: Sequence[int | str] = ()
    """Ids of the tokens, or their texts as they stand inside a text ("<|new|>", " halter"), each exactly one token of
    the base's tokenizer; ids are what is saved. Not given: those that begin and end a text, by the base's
    configuration."""
    where: Literal["both", "embeddings", "head"] = "both"
    """Which table's rows; of tied tables both are one."""
    keep_tied: bool = True
    """Where embeddings and head are one matrix: true trains one row for both, false rows of the table that ``where``
    names alone, as PEFT trains rows of a tied lm_head."""

    peft_type: ClassVar[str] = "TRAINABLE_TOKENS"
    servable_by: ClassVar[tuple[str, ...]] = ("halter", "peft")
    note: ClassVar[str] = (
        "The remedy for header and end-of-turn tokens that a base model never learned (`halter doctor` names them): "
        "beside another method, `method: [{name: lora}, {name: token_rows, tokens: ['<|eot_id|>', 128006]}]`. With "
        "LoRA or DoRA it is one PEFT folder (`trainable_token_indices`), unless the pairs act on the same table."
    )
    agreement: ClassVar[str] = (
        "peft, on random models: logits within 1e-5, files both ways (TRAINABLE_TOKENS, and LoRA and DoRA with "
        "trainable_token_indices), tied and untied."
    )

    @property
    def tokenwise(self) -> bool:
        return True

    def ids(self, shape: ModelConfig) -> list[int]:
        """The tokens meant; texts count for nothing before ``named``."""
        own = [shape.bos_token_id, *shape.eos_token_ids]
        return [id for id in self.tokens if isinstance(id, int)] or sorted({id for id in own if id is not None})

    def named(self, tokenizer: Tokenizer) -> TokenRowsMethod:
        found = {text: _one(text, tokenizer) for text in self.tokens if isinstance(text, str)}
        wrong = [why for why in found.values() if isinstance(why, str)]
        if wrong:
            fix = "give texts that are one token each, or the ids of what they split into"
            raise Refusal("token-unknown", "these texts are not one token of the base's", found=wrong, fix=fix)
        ids = tuple(id if isinstance(id, int) else int(found[id]) for id in self.tokens)
        return replace(self, tokens=ids)

    def check(self, shape: ModelConfig) -> None:
        texts = [repr(text) for text in self.tokens if isinstance(text, str)]
        if texts:
            what = "which tokens these are, a tokenizer has to say"
            raise Refusal("token-unknown", what, found=texts, fix="give ids, or method.named(tokenizer)")
        ids = self.ids(shape)
        wrong = [f"{id}: the vocabulary ends at {shape.vocab_size - 1}" for id in ids if not 0 <= id < shape.vocab_size]
        wrong += sorted({f"{id} is named twice" for id in ids if ids.count(id) > 1})
        if wrong or not ids:
            raise Refusal("token-rows", "these are no tokens to train", found=wrong, fix="method.tokens: [ids]")

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        if layer is not None:
            return {}
        tables = {"both": ("embed_tokens", "lm_head"), "embeddings": ("embed_tokens",), "head": ("lm_head",)}
        if shape.tied and self.keep_tied:  # one matrix, trained as one
            one = TokenRows(self.ids(shape), shape.dim)
            return {"embed_tokens": one, "lm_head": one}
        return {place: TokenRows(self.ids(shape), shape.dim) for place in tables[self.where]}

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        one = shape.tied and self.keep_tied
        modules = ["embed_tokens"] if one else list(self.build(shape, None))
        return {"task_type": "CAUSAL_LM", "token_indices": self.ids(shape), "target_modules": modules}

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        """PEFT files tied rows twice."""
        table, head = (f"{shape.layout.path(None, p)}.trainable_tokens_delta" for p in ("embed_tokens", "lm_head"))
        if (
            shape.tied
            and self.keep_tied
            and table in stored
            and head in stored
            and torch.equal(stored[table], stored[head])
        ):
            return {name: tensor for name, tensor in stored.items() if name != head}
        return stored

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> TokenRowsMethod:
        given = config.get("target_modules") or ["embed_tokens"]
        asked = [given] if isinstance(given, str) else list(given)
        places = {name: place for place in ("embed_tokens", "lm_head") for name in (place, f"model.{place}")}
        strange = [str(name) for name in asked if name not in places]
        if strange:
            raise Refusal(
                "adapter-unsupported",
                "token rows are of embed_tokens and lm_head",
                found=strange,
                fix="merge it with PEFT (merge_and_unload)",
            )
        meant = sorted({places[name] for name in asked})
        where: Literal["both", "embeddings", "head"] = "both"
        if len(meant) == 1:
            where = "head" if meant[0] == "lm_head" else "embeddings"
        # Of tied tables PEFT ties rows of the embeddings to the head's, and not the other way.
        tied = "embed_tokens" in meant
        return cls(tokens=tuple(int(id) for id in config["token_indices"]), where=where, keep_tied=tied)
