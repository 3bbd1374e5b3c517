"""What may be asked of a decoder by hand, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from halter import arguments, kinds
from halter.elsewhere import TOKENS
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.rotation import within

if TYPE_CHECKING:
    from halter.model.decoder import Decoder
    from halter.model.places import Acts
    from halter.model.segments import Segments

CALL = "model(tokens, adapter=adapter)"


class Binds(Protocol):
    """An adapter, as far as the decoder is concerned."""

    def bind(self, base: Decoder, segments: Segments) -> Acts: ...


class Identity(Protocol):
    """Where a decoder's weights were read from, as far as adapters must know (pretrained.digest)."""

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Why these weights are not those that an adapter's facts name as its base; [] if nothing speaks against."""


def checked_call(tokens: Tensor, adapter: Any, lengths: Sequence[int] | None, config: ModelConfig) -> tuple[int, int]:
    """(B, T) of what a decoder is called with. Refusals: those of ``checked_shape``; ``wrong-argument`` for an adapter
    that is none, and for ``lengths`` that are not one number from 0 to T a row."""
    shape = checked_shape(tokens, config)
    if adapter is not None and (isinstance(adapter, type) or not callable(getattr(adapter, "bind", None))):
        found = f"adapter: {kinds.shown(adapter)}"
        what = "an argument is not what the function takes"
        expected = "adapter: an Adapter, what halter.stack or halter.ready give, or None"
        fix = f"{arguments.MAKES['Adapter']}; such as {CALL}"
        raise Refusal("wrong-argument", what, where="model", found=[found], expected=expected, fix=fix)
    if lengths is not None and not _counts(lengths, *shape):
        what = "lengths are the tokens of each row that are real"
        found = f"lengths: {kinds.shown(lengths)}"
        expected = f"a whole number from 0 to {shape[1]} for each row, {shape[0]} in all"
        raise Refusal("wrong-argument", what, where="model", found=[found], expected=expected, fix=f"such as {CALL}")
    return shape


def moved(change: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What torch's ``to`` and its kin make of a tensor without numbers. Refusal ``device-missing`` for a device that is
    not here."""
    try:
        return change(torch.empty(0, dtype=dtype, device=device))
    except NotImplementedError:  # from a device without numbers
        raise
    except (AssertionError, RuntimeError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).split("\n")[0]
        raise Refusal("device-missing", f"it cannot be moved: {reason}", fix=f"leave it on {device}") from None


def refuse_cast(change: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device, streamed: bool) -> None:
    """Refusals before torch moves or casts a base: ``base-cast`` for another dtype, in which only its tensors would be
    and not its computing, and for layers that visit the device; and of ``moved``."""
    changed = moved(change, dtype, device)
    if changed.dtype != dtype:
        names = [str(one).removeprefix("torch.") for one in (dtype, changed.dtype)]
        what = f"this base was loaded to compute in {names[0]}, and its tensors alone would become {names[1]}"
        fix = f'model, tokenizer = halter.load("path/or/hub-id", dtype="{names[1]}")'
        other = "" if names[1] in ("float16", "bfloat16", "float32") else "float32, bfloat16 or float16"
        raise Refusal("base-cast", what, expected=other, fix=fix if not other else fix.replace(names[1], "float32"))
    if streamed and changed.device != device:
        what = "the layers of this base lie in CPU memory and visit its device; it cannot be moved to another"
        fix = f'model, tokenizer = halter.load("path/or/hub-id", device="{changed.device}")'
        raise Refusal("base-cast", what, fix=fix)


def _counts(lengths: Any, rows: int, width: int) -> bool:
    try:
        return not isinstance(lengths, str | dict) and [0 <= index(n) <= width for n in lengths] == [True] * rows
    except TypeError:
        return False


def checked_shape(tokens: Tensor, config: ModelConfig) -> tuple[int, int]:
    """(B, T) of ``tokens`` int64 [B, T]. Refusals: ``tokens-wanted`` for anything else, ``tokens-too-long``, rows
    beyond the context that the model was trained with (``dynamic-rotation`` where that is why), and ``token-ids``, ids
    outside of its vocabulary (on a CPU; elsewhere looking would wait for it)."""
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise _not_tokens(tokens)
    if tokens.shape[1] > config.context:
        within(config, tokens.shape[1])
        what = f"rows of {tokens.shape[1]} tokens; the model has learned positions up to {config.context}"
        fix = "cut the rows, or load the model with a larger max_position_embeddings in its config.json"
        raise Refusal("tokens-too-long", what, fix=fix)
    if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
        outside = tokens[(tokens < 0) | (tokens >= config.table_rows)]
        if outside.numel():
            known = f"0 .. {config.table_rows - 1}"
            fix = f"encode with the tokenizer that halter.load gave: {TOKENS}"
            raise Refusal("token-ids", "the model has no such tokens", found=outside.tolist(), expected=known, fix=fix)
    return tokens.shape[0], tokens.shape[1]


def _not_tokens(given: object) -> Refusal:
    found = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
    fix = f"{TOKENS}; halter.generate takes texts as they are"
    if isinstance(given, Tensor) and given.dim() == 1:
        fix = "tokens[None], a batch of one row"
    return Refusal("tokens-wanted", "a model takes token ids", found=[found], expected="int64 [batch, tokens]", fix=fix)
