"""The block's element-wise stages, each keeping for backward only what it cannot rebuild."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _normal(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype), scale


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        y, scale = _normal(x, eps)
        ctx.save_for_backward(x, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, scale = ctx.saved_tensors
        normal, wide_grad = x.to(scale.dtype) * scale, grad.to(scale.dtype)
        along = (wide_grad * normal).mean(-1, keepdim=True)
        return ((wide_grad - normal * along) * scale).to(x.dtype), None


def normalise(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without its weight (arXiv 1910.07467): x / sqrt(mean(x²) + eps) over the last axis.

    Upcast to float32, normalised, cast back to x's dtype; the caller multiplies by the weight *afterwards*, which is
    the order of Meta's and Hugging Face's code (F.rms_norm multiplies before the cast and differs in bf16).
    """
    return _normal(x, eps)[0] if _plainly() else _Normalise.apply(x, eps)


def centred(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without its weight and bias (arXiv 1607.06450): (x - mean) / sqrt(variance + eps) over the last axis.

    Made in float32 at least and rounded to x's dtype; the caller multiplies and adds afterwards.
    """
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        d_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return d_gate, torch.nn.functional.silu(gate).mul_(grad)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202); both [..., ffn_dim], same dtype."""
    return torch.nn.functional.silu(gate) * up if _plainly() else _SwiGLU.apply(gate, up)


def _plainly() -> bool:
    """A compiler makes its own backward, which keeps as little; inference has none."""
    return torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
