"""The LLaMA decoder, generations 1 to 3: places visible where they act, and nothing about any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
from halter.model.layout import Place
from halter.model.linear import DenseLinear, Embedding, Linear, Norm
from halter.model.places import Acts, run_at
from halter.model.rotation import rotations
from halter.model.segments import Segments
from halter.model.streaming import Stream
from halter.numerics.pointwise import normalise


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
        self.layout = config.layout
        table = torch.empty(config.vocab_size, config.dim, dtype=dtype, device=device)
        self.embed_tokens = Embedding(table)
        self.layers = nn.ModuleList(one.make(config, one, dtype, device) for one in self.layout.blocks)
        self.norm = Norm(torch.empty(config.dim, dtype=dtype, device=device))
        self.lm_head: Linear = DenseLinear(table if config.tied else torch.empty_like(table))
        self.frequencies = config.frequencies()
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
                at = self.bare[index] if acts is None else acts.layers[index]
                seen = rows.seen(at.memory)
                last = index == len(self.layers) - 1
                if last and inside is not None and not any(getattr(at, place) for place in self._whole[index]):
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
                    yield f"{place.path}.{'bias' if buffer == 'bias' else 'weight'}", module, buffer

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

    def set_linear(self, place: Place, linear: Linear) -> None:
        """Put another storage at a place; shapes must agree (ValueError), and layers not be streamed yet."""
        self._refuse_streamed()
        old = self.module(place.layer, place.name)
        if (old.out_features, old.in_features) != (linear.out_features, linear.in_features):
            raise ValueError(f"{place.path}: {linear.out_features} x {linear.in_features} does not fit")
        (self if place.layer is None else self.layers[place.layer]).add_module(place.name, linear)
        self.__dict__.pop("_slot_table", None)

    def _refuse_streamed(self) -> None:
        if self.stream is not None:
            raise ValueError("the layers are streamed already")

    def _slots(self) -> dict[str, tuple[nn.Module, str]]:
        if "_slot_table" not in self.__dict__:
            self.__dict__["_slot_table"] = {name: (module, buffer) for name, module, buffer in self.tensors()}
        return self.__dict__["_slot_table"]
