"""The LLaMA decoder, generations 1 to 3: places visible where they act, and nothing about any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halter.arguments import bound
from halter.elsewhere import called_otherwise
from halter.model.cache import Cache
from halter.model.config import ModelConfig
from halter.model.extras import surrounded
from halter.model.inputs import CALL, Binds, Identity, checked_call, refuse_cast
from halter.model.keeping import Keeper, keeping
from halter.model.lane import Lane
from halter.model.linear import DenseLinear, Embedding, Linear, Norm
from halter.model.places import LINEARS, NORMS, NOTHING, Act, Acts, Context, LayerActs, Sublayer, path, run_at
from halter.model.rotation import Rotation, rotations
from halter.model.segments import Segments
from halter.model.streaming import Stream
from halter.numerics import rope
from halter.numerics.attention import attend
from halter.numerics.pointwise import normalise, swiglu

Store = tuple[Cache, int]
Tails = tuple[Segments, Tensor]


class Block(nn.Module):
    """One layer: h += attention(norm(h)); h += mlp(norm(h))."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    input_layernorm: Norm
    post_attention_layernorm: Norm

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.config = config
        for place in LINEARS:
            out_features, in_features = config.weight_shape(place)
            bias = torch.empty(out_features, dtype=dtype, device=device) if config.has_bias(place) else None
            weight = torch.empty(out_features, in_features, dtype=dtype, device=device)
            self.add_module(place, DenseLinear(weight, bias))
        for place in NORMS:
            self.add_module(place, Norm(torch.empty(config.dim, dtype=dtype, device=device)))

    def forward(
        self,
        h: Tensor,
        at: LayerActs,
        rotation: Rotation,
        segments: Segments,
        store: Store | None,
        tails: Tails | None = None,
    ) -> Tensor:
        """h [N, dim] -> [N, dim]; ``store`` is (cache, this layer's index) when decoding.

        With ``tails`` only those tokens leave the layer, [M, dim]; keys and values are of all.
        """
        x = run_at(at.input_layernorm, self.input_layernorm, normalise(h, self.config.norm_eps))
        every = x, at, rotation, segments
        if tails is not None:
            segments, index = tails
            h, x, rotation = h[index], x[index], (rotation[0][index], rotation[1][index])
            at = LayerActs(*(act.select(index) if isinstance(act, Act) else act for act in at))  # type: ignore[arg-type]
        q = rope.rotate(self.heads(run_at(at.q_proj, self.q_proj, x)), *rotation)  # [M, heads, head_dim]
        y = self.attention(q, *self.keys(*every, store), at, segments)
        h = h + (y if at.after_attention is None else at.after_attention.after(Sublayer(x, h), y))
        x = run_at(at.post_attention_layernorm, self.post_attention_layernorm, normalise(h, self.config.norm_eps))
        y = self.mlp(x, at)
        h = h + (y if at.after_mlp is None else at.after_mlp.after(Sublayer(x, h), y))
        return h if at.block is None else at.block.after(segments, h)

    def keys(
        self, x: Tensor, at: LayerActs, rotation: Rotation, segments: Segments, store: Store | None
    ) -> tuple[Tensor, Tensor]:
        """Keys as they are scored, and values, [N, kv_heads, head_dim]; the cache's whole buffers when decoding."""
        k = rope.rotate(self.heads(run_at(at.k_proj, self.k_proj, x)), *rotation)
        v = self.heads(run_at(at.v_proj, self.v_proj, x))
        if at.score_key is not None:
            k = at.score_key.after(x, k)
        if store is not None:
            cache, index = store
            k, v = cache.put(index, k, v, segments)
            if at.memory is not None:
                cache.remember(index, at.memory.tensors)
        elif at.memory is not None:
            k, v = (torch.cat(pair) for pair in zip((k, v), at.memory.tensors, strict=True))
        return k, v

    def attention(self, q: Tensor, k: Tensor, v: Tensor, at: LayerActs, segments: Segments) -> Tensor:
        spans = segments.spans
        y = attend(q, k, v, spans)
        if at.context is not None:
            y = at.context.after(Context(q, k, v, segments, spans, self.projector(at)), y)
        return run_at(at.o_proj, self.o_proj, y.flatten(1))

    def mlp(self, x: Tensor, at: LayerActs) -> Tensor:
        gate, up = run_at(at.gate_proj, self.gate_proj, x), run_at(at.up_proj, self.up_proj, x)
        return run_at(at.down_proj, self.down_proj, swiglu(gate, up))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.config.head_dim))

    def projector(self, at: LayerActs) -> Any:
        """Context.project for this layer and these acts."""

        def project(hidden: Tensor, adapted: bool) -> tuple[Tensor, Tensor]:
            k_act, v_act = (at.k_proj, at.v_proj) if adapted else (None, None)
            return self.heads(run_at(k_act, self.k_proj, hidden)), self.heads(run_at(v_act, self.v_proj, hidden))

        return project


@called_otherwise
class Decoder(nn.Module):
    """A frozen LLaMA. Adapters are an argument of a call; the decoder itself has no state but its weights.

    ``rope_fp32`` rotates in float32 as Meta's code does instead of in the model's dtype as transformers does; the two
    differ in bf16 only (lineage 2.2).
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "meta",
        rope_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.dtype, self.rope_fp32 = config, dtype, rope_fp32
        self.identity: Identity | None = None  # set by whoever read the weights from files
        self.stream: Stream | None = None
        self.keepers: list[Keeper] = []
        table = torch.empty(config.vocab_size, config.dim, dtype=dtype, device=device)
        self.embed_tokens = Embedding(table)
        self.layers = nn.ModuleList(Block(config, dtype, device) for _ in range(config.layers))
        self.norm = Norm(torch.empty(config.dim, dtype=dtype, device=device))
        self.lm_head: Linear = DenseLinear(table if config.tied else torch.empty_like(table))
        self.frequencies = config.frequencies()

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.matrix.device

    @bound("model", CALL)
    def forward(self, tokens: Tensor, adapter: Binds | None = None, lengths: Sequence[int] | None = None) -> Tensor:
        """Logits [B, T, V] in the model's dtype for ``tokens`` int64 [B, T].

        ``lengths`` says how many tokens of each row are real (right padding is then skipped and its logits are zero).
        ``adapter`` is anything that binds; None is the base, bit for bit. Refusals as of ``checked_call``.
        """
        batch, width = checked_call(tokens, adapter, lengths, self.config)
        counts = [width] * batch if lengths is None else list(lengths)
        segments = Segments.packed(counts, self.device)
        acts = None if adapter is None else adapter.bind(self, segments)
        if lengths is None:
            return self.head(self.hidden(tokens.flatten(), segments, acts), acts).unflatten(0, (batch, width))
        real = torch.arange(width, device=tokens.device)[None] < torch.tensor(counts, device=tokens.device)[:, None]
        packed = self.head(self.hidden(tokens[real], segments, acts), acts)
        return packed.new_zeros(batch, width, packed.shape[-1]).masked_scatter(real[..., None], packed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Decoder:
        """What torch's ``to``, ``cuda``, ``half`` and their kin do to every tensor. Refusals of ``refuse_cast``."""
        refuse_cast(fn, self.dtype, self.device, self.stream is not None)
        return super()._apply(fn, recurse)

    def hidden(
        self,
        tokens: Tensor,
        segments: Segments,
        acts: Acts | None = None,
        cache: Cache | None = None,
        checkpointing: bool = False,
        wanted: Tensor | None = None,
        entered: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, [N, dim], for ``tokens`` int64 [N] lying end to end.

        With a cache (segments from ``cache.segments``) the tokens continue its rows, which then count as seen.
        ``checkpointing`` keeps only each layer's input for backward and computes the layer again. ``wanted`` int64 [M],
        ascending: only these tokens' states are returned, [M, dim], and the last layer leaves out what they do not
        need. ``entered``: (layer, what enters it), where the layers below have been run already (model.entering).
        """
        first, h = entered or (0, run_at(acts and acts.embed_tokens, self.embed_tokens, tokens))
        h, rows = surrounded(h, segments, acts, cache)
        inside = rows.index(wanted)
        rotation = rotations(self.config, rows.alone, self.frequencies.to(h.device), self.rotation_dtype)
        tails = None
        with keeping(self.keepers):
            for index, block in list(enumerate(self.layers))[first:]:
                at = acts.layers[index] if acts is not None else NOTHING
                seen = rows.seen(at.memory)
                if inside is not None and index == len(self.layers) - 1 and at.context is None and at.block is None:
                    tails = seen.tails(inside)
                args = (h, at, rotation, seen, None if cache is None else (cache, index), tails)
                run = block if self.stream is None else partial(self.stream.run, index, block)
                if checkpointing and torch.is_grad_enabled():
                    h = checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)
                else:
                    h = run(*args)
        if cache is not None:
            cache.advance(rows.alone)
        if inside is not None:
            h = h[inside if tails is None else torch.searchsorted(tails[1], inside)]
        at_norm = acts and acts.norm
        at_norm = at_norm if at_norm is None or wanted is None else at_norm.select(wanted)
        return run_at(at_norm, self.norm, normalise(h, self.config.norm_eps))

    def head(self, hidden: Tensor, acts: Acts | None = None) -> Tensor:
        """Logits [M, V] of final hidden states [M, dim]; the caller selects acts where M is not every token."""
        return run_at(acts and acts.lm_head, self.lm_head, hidden)

    def stream_layers(self, capacity: int | None = None, lane: Lane | None = None) -> Stream:
        """Hold the layers in CPU memory from now on; each visits ``device`` when it is its turn (model.streaming), all
        else stays where it is. Refusal ``offload-too-small`` where ``capacity`` bytes hold no layer."""
        self.stream = Stream([*self.layers], self.device, capacity, lane)
        self.keepers.append(self.stream)
        return self.stream

    @property
    def rotation_dtype(self) -> torch.dtype:
        return torch.float32 if self.rope_fp32 else self.dtype

    def places(self) -> Iterator[tuple[int | None, str, nn.Module]]:
        """Every place that holds base weights: (layer or None, place, module)."""
        yield None, "embed_tokens", self.embed_tokens
        for index, block in enumerate(self.layers):
            for place in (*LINEARS, *NORMS):
                yield index, place, getattr(block, place)
        yield None, "norm", self.norm
        yield None, "lm_head", self.lm_head

    def outer(self) -> list[Tensor]:
        """Every tensor outside the layers, tied ones once."""
        return [tensor for name, tensor in self.named_buffers() if not name.startswith("layers.")]

    def module(self, layer: int | None, place: str) -> nn.Module:
        """The module that holds a place's base weights."""
        return getattr(self if layer is None else self.layers[layer], place)

    def tensors(self) -> Iterator[tuple[str, nn.Module, str]]:
        """(Hugging Face tensor name, module, buffer name) of every tensor; a tied head is the embedding's."""
        for layer, place, module in self.places():
            if place == "lm_head" and self.config.tied:
                continue
            for buffer, tensor in module.named_buffers(recurse=False):
                if tensor is not None:
                    yield f"{path(layer, place)}.{'bias' if buffer == 'bias' else 'weight'}", module, buffer

    def expected(self) -> dict[str, torch.Size]:
        """What a checkpoint must hold: {tensor name: shape}."""
        return self.config.tensor_shapes()

    def set_tensor(self, name: str, tensor: Tensor) -> None:
        """Take over a dense tensor under its Hugging Face name. KeyError: no such name; ValueError: shape or dtype, or
        layers are streamed already."""
        module, buffer = self._slots()[name]
        self._refuse_streamed()
        if getattr(module, buffer).shape != tensor.shape or tensor.dtype != self.dtype:
            raise ValueError(f"{name}: {tuple(tensor.shape)} {tensor.dtype} does not fit this model")
        setattr(module, buffer, tensor)
        if self.config.tied and module is self.embed_tokens:
            self.lm_head = DenseLinear(tensor)

    def set_linear(self, layer: int | None, place: str, linear: Linear) -> None:
        """Put another storage at a place; shapes must agree (ValueError), and layers not be streamed yet."""
        self._refuse_streamed()
        old = self.module(layer, place)
        if (old.out_features, old.in_features) != (linear.out_features, linear.in_features):
            raise ValueError(f"{path(layer, place)}: {linear.out_features} x {linear.in_features} does not fit")
        (self if layer is None else self.layers[layer]).add_module(place, linear)
        self.__dict__.pop("_slot_table", None)

    def _refuse_streamed(self) -> None:
        if self.stream is not None:
            raise ValueError("the layers are streamed already")

    def _slots(self) -> dict[str, tuple[nn.Module, str]]:
        if "_slot_table" not in self.__dict__:
            self.__dict__["_slot_table"] = {name: (module, buffer) for name, module, buffer in self.tensors()}
        return self.__dict__["_slot_table"]
