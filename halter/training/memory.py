"""How much memory this process has used, and how much there is."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

import torch

from halter.adapters.adapter import Adapter
from halter.model.config import ModelConfig
from halter.model.layout import HEAD, LINEAR, TABLE
from halter.numerics import nf4_kernels
from halter.numerics.allocation import available_bytes

OWN_BYTES = 8
"""A float32 number that a piece's product keeps, and its copy in the dtype computed in or its gradient."""
"""Places whose pieces are rows of tokens."""
BYTES_A_NUMBER = 12
"""A float32 gradient and the two moments of Adam, the most that an optimizer here keeps."""


def load_libraries(quantize: str | None, device: str | None = None) -> None:
    """Bring in what the first step would, so that it is not taken for memory of base or step: torch's optimizers import
    its compiler, some 85 MB of modules that nobody calls, and so does the first 4-bit product, with bitsandbytes."""
    import torch._dynamo

    if quantize == "nf4":
        nf4_kernels.usable("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def peak_memory_bytes() -> int:
    """High-water mark: of the accelerator's allocator where there is one, else of resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory_bytes(device: torch.device) -> int:
    """Memory that could still be taken on ``device``; on a CPU what the system calls available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()


def activation_bytes(config: ModelConfig, tokens: int, width: int) -> int:
    """What one pass over ``tokens`` keeps for backward without checkpointing; ``width`` bytes a number."""
    return tokens * width * config.layers * config.numbers_a_token


def own_numbers(adapter: Adapter) -> int:
    """Numbers that an adapter's own products keep for one token: the ranks and widths of its pieces."""
    config, found = adapter.shape, 0
    for slot in adapter.slots:
        sides = sum(slot.at.shape) if slot.at.kind == LINEAR else 2 * config.dim
        matrices = [p for p in slot.piece.parameters() if p.dim() == 2 and slot.at.kind not in (TABLE, HEAD)]
        # Two matrices, [r, in] and [out, r]; one in the place of the base's weight counts for less than that.
        found += sum(p.numel() for p in matrices) // sides
    return found


def needs_checkpointing(
    config: ModelConfig,
    tokens: int,
    width: int,
    device: torch.device,
    adapters: Sequence[Adapter] = (),
    free: int | None = None,
) -> bool:
    """Whether activations, the adapters' own among them, would take more than half of what gradients and optimizer
    states leave ``free`` (bytes beside the base; None: what the device has now)."""
    own, trained = sum(map(own_numbers, adapters)), sum(adapter.num_trainable for adapter in adapters)
    room = (free_memory_bytes(device) if free is None else free) - BYTES_A_NUMBER * trained
    return activation_bytes(config, tokens, width) + OWN_BYTES * own * tokens > room // 2


def keeps_freed(config: ModelConfig, tokens: int, width: int, device: torch.device, trained: int) -> bool:
    """Whether a pass's activations, with gradients and the optimizer's states of ``trained`` numbers, would take less
    than half of what is free: room for the gaps that freed memory, kept, leaves between them."""
    return activation_bytes(config, tokens, width) + BYTES_A_NUMBER * trained < free_memory_bytes(device) // 2


def micro_tokens(config: ModelConfig) -> int:
    """Tokens of one pass where the recipe does not say: enough for the matrix products, bounded by activations."""
    return max(512, min(8192, (2 * 2**30) // activation_bytes(config, 1, 4)))
