"""The LLaMA decoder, generations 1 to 3: places visible where they act, and nothing about any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halter.arguments import bound
from halter.elsewhere import called_otherwise
from halter.model.config import ModelConfig
from halter.model.copy_stream import CopyStream
from halter.model.experts import ExpertStack
from halter.model.extras import Surrounded, surrounded
from halter.model.inputs import CALL, Binds, Identity, checked_call, refuse_cast
from halter.model.layout import MEMORY, Place
from halter.model.linear import DenseLinear, Embedding, Linear, Norm
from halter.model.passes import Here, Pass
from halter.model.places import Acts, run_at
from halter.model.residence import Residence, Resident
from halter.model.rotation import Rotation, rotations
from halter.model.saved_tensors import TensorSaver, keeping
from halter.model.segments import Segments
from halter.model.streaming import Stream
from halter.numerics.pointwise import normalise


@dataclass
class _Way:
    """A pass on its way through the layers: its ``states`` so far, and the rows as the layers see them."""

    asked: Pass
    states: Tensor
    rows: Surrounded
    rotation: Rotation
    beside: Any
    tails: tuple[Segments, Tensor] | None = None


def _through(block: nn.Module, heres: Sequence[tuple[Any, Here]], *states: Tensor) -> list[Tensor]:
    return [block(h, *here) for h, here in zip(states, heres, strict=True)]


@called_otherwise
class Decoder(nn.Module):
    """A frozen LLaMA. Adapters are an argument of a call; the decoder itself has no state but its weights.

    ``rope_fp32`` rotates in float32 as Meta's code does instead of in the model's dtype as transformers does; the two
    differ in bf16 only.
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
        self.residence: Residence = Resident()
        self.tensor_savers: list[TensorSaver] = []
        self.layout = config.layout
        table = torch.empty(config.table_rows, config.dim, dtype=dtype, device=device)
        self.embed_tokens = Embedding(table)
        self.layers = nn.ModuleList(one.make(config, one, dtype, device) for one in self.layout.blocks)
        self.norm = Norm(torch.empty(config.dim, dtype=dtype, device=device))
        self.lm_head: Linear = DenseLinear(table if config.tied else table.new_empty(config.vocab_size, config.dim))
        self.frequencies = config.frequencies()
        self.order = self.layout.stack()
        """The layers that a pass goes through, by number."""
        self.bare = [one.acts() for one in self.layout.blocks]
        """What acts in each layer of the base alone: nothing."""
        self._whole = [[place.name for place in one if place.whole_rows] for one in self.layout.blocks]

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
            return self.head(self.hidden(Pass(tokens.flatten(), segments, acts)), acts).unflatten(0, (batch, width))
        real = torch.arange(width, device=tokens.device)[None] < torch.tensor(counts, device=tokens.device)[:, None]
        packed = self.head(self.hidden(Pass(tokens[real], segments, acts)), acts)
        return packed.new_zeros(batch, width, packed.shape[-1]).masked_scatter(real[..., None], packed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Decoder:
        """What torch's ``to``, ``cuda``, ``half`` and their kin do to every tensor. Refusals of ``refuse_cast``."""
        refuse_cast(fn, self.dtype, self.device, not self.residence.resident)
        return super()._apply(fn, recurse)

    def hidden(self, asked: Pass) -> Tensor:
        """States after the final norm, [M, dim], of the tokens of a pass that are wanted, or of all."""
        return self.hidden_of([asked])[0]

    def hidden_of(self, passes: Sequence[Pass]) -> list[Tensor]:
        """``hidden`` of several passes through the same layers, each computed by itself. They go through one layer
        after the other together, so that a layer that lives elsewhere comes once."""
        ways = [self._begin(one) for one in passes]
        first, _ = passes[0].entered or (0, None)
        again = passes[0].checkpointing and torch.is_grad_enabled()
        with keeping(self.tensor_savers):
            for index in self.order[first : passes[0].stop]:
                heres = [self._here(way, index) for way in ways]
                run = partial(self.residence.run, index, _through, self.layers[index], heres)
                states = [way.states for way in ways]  # by themselves: what a keeper may take of a call are its tensors
                if again:
                    states = checkpoint(run, *states, use_reentrant=False, preserve_rng_state=False)
                else:
                    states = run(*states)
                for way, left in zip(ways, states, strict=True):
                    way.states = left
        return [self._end(way) for way in ways]

    def _begin(self, asked: Pass) -> _Way:
        at = asked.acts and asked.acts.embed_tokens
        first, states = asked.entered or (0, run_at(at, self.embed_tokens, asked.tokens))
        if self.layout.fuse is not None and first == 0:  # what enters the first block may be given, with noise upon it
            with keeping(self.tensor_savers):
                states = self.layout.fuse(self, asked, states)
        states, rows = surrounded(states, asked)
        rotation = rotations(self.config, rows.alone, self.frequencies.to(states.device), self.rotation_dtype)
        with keeping(self.tensor_savers):
            beside = None if self.layout.beside is None else self.layout.beside(self, asked)
        return _Way(asked, states, rows, rotation, beside)

    def _here(self, way: _Way, index: int) -> tuple[Any, Here]:
        """What acts in block ``index``, and what it sees."""
        asked, rows = way.asked, way.rows
        at = self.bare[index] if asked.acts is None else asked.acts.layers[index]
        seen = rows.seen(getattr(at, MEMORY, None))
        if index == self.order[-1] and rows.wanted is not None and not any(getattr(at, p) for p in self._whole[index]):
            way.tails = seen.tails(rows.wanted)
        return at, Here(way.rotation, seen, asked.cache, index, way.tails, way.beside)

    def _end(self, way: _Way) -> Tensor:
        asked, rows, states = way.asked, way.rows, way.states
        if asked.cache is not None:
            asked.cache.advance(rows.alone)
        if rows.wanted is not None:
            states = states[rows.wanted if way.tails is None else torch.searchsorted(way.tails[1], rows.wanted)]
        if asked.stop is not None:
            return states
        act = asked.acts and asked.acts.norm
        act = act if act is None or asked.wanted is None else act.select(asked.wanted)
        return run_at(act, self.norm, normalise(states, self.config.norm_eps))

    def head(self, hidden: Tensor, acts: Acts | None = None, index: Tensor | None = None) -> Tensor:
        """Logits [M, V] of final hidden states [M, dim], of all tokens of a pass or of the tokens ``index`` (int64 [M],
        ascending)."""
        act = acts and acts.lm_head
        return run_at(act if act is None or index is None else act.select(index), self.lm_head, hidden)

    def head_matrix(self, acts: Acts | None = None) -> Tensor | None:
        """The matrix [V, dim] that is all there is to the head, the base's or an adapter's own; None: there is more."""
        act = acts and acts.lm_head
        if act is None:
            return self.lm_head.matrix if isinstance(self.lm_head, DenseLinear) else None
        weight, bias = act.own_weight or (None, None)
        return weight if bias is None else None

    def stream_layers(self, capacity: int | None = None, copy_stream: CopyStream | None = None) -> Stream:
        """Hold the layers in CPU memory from now on; each visits ``device`` when it is its turn (model.streaming), all
        else stays where it is. Refusal ``offload-too-small`` where ``capacity`` bytes hold no layer."""
        stream = Stream([*self.layers], self.device, capacity, copy_stream)
        self.residence = stream
        self.tensor_savers.append(stream)
        return stream

    @property
    def rotation_dtype(self) -> torch.dtype:
        return torch.float32 if self.rope_fp32 or self.config.rotates_wide else self.dtype

    def places(self) -> Iterator[tuple[Place, nn.Module]]:
        """Every place that holds base weights, with its module."""
        return ((place, self.module(place.layer, place.name)) for place in self.layout if place.shape)

    def outer(self) -> list[Tensor]:
        """Every tensor outside the layers, tied ones once."""
        return [tensor for name, tensor in self.named_buffers() if not name.startswith("layers.")]

    def module(self, layer: int | None, place: str) -> nn.Module:
        """The module that holds a place's base weights."""
        return getattr(self if layer is None else self.layers[layer], place)

    def tensors(self) -> Iterator[tuple[str, nn.Module, str]]:
        """(Hugging Face tensor name, module, buffer name) of every tensor; a tied head is the embedding's."""
        for place, module in self.places():
            if place.tied:
                continue
            for buffer, tensor in module.named_buffers(recurse=False):
                if tensor is not None:
                    yield f"{place.path}.bias" if buffer == "bias" else place.weight_name, module, buffer

    def expected(self) -> dict[str, torch.Size]:
        """What a checkpoint must hold: {tensor name: shape}."""
        return self.layout.tensors

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

    def set_linear(self, place: Place, linear: Linear | ExpertStack) -> None:
        """Put another storage at a place; shapes must agree (ValueError), and layers not be streamed yet."""
        self._refuse_streamed()
        if self.module(place.layer, place.name).shape != linear.shape:
            raise ValueError(f"{place.path}: {' x '.join(map(str, linear.shape))} does not fit")
        (self if place.layer is None else self.layers[place.layer]).add_module(place.name, linear)
        self.__dict__.pop("_slot_table", None)

    def _refuse_streamed(self) -> None:
        if not self.residence.resident:
            raise ValueError("the layers are streamed already")

    def _slots(self) -> dict[str, tuple[nn.Module, str]]:
        if "_slot_table" not in self.__dict__:
            self.__dict__["_slot_table"] = {name: (module, buffer) for name, module, buffer in self.tensors()}
        return self.__dict__["_slot_table"]
