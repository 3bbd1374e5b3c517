"""A forecast in words."""

from __future__ import annotations

from halter.planning.answer import Answer
from halter.planning.fit import ORDER
from halter.planning.forecast import Forecast

NAMES = {
    "base": "base weights",
    "constants": "quantisation constants",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "logits": "logits chunk",
    "temporary": "temporary buffers",
    "packed": "packed copy to write with",
    "cache": "cache",
    "passing": "reading the prompt",
}


def size(count: int) -> str:
    """Bytes for people, in powers of ten as memory is sold."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def as_text(found: Answer) -> str:
    """The answer for people."""
    return "\n".join([*_forecast(found.forecast), *_budget(found), *_times(found), *_choices(found)])


def _budget(found: Answer) -> list[str]:
    word = "fits" if found.fits else "does not fit"
    rows, length = found.largest.rows, found.largest.length
    wanted = found.forecast.setting.length
    at_most = f"at most {rows} rows of {wanted} tokens in one micro-batch, or one row of {length}"
    room = at_most if length else "not even one token"
    return [f"memory, {size(found.budget)} {found.budget_source}: training {word}; {room}"]


def _times(found: Answer) -> list[str]:
    if found.rates is None or found.times is None:
        return []
    rates = f"{found.rates.operations / 1e12:,.2f} T operations/s, {found.rates.bandwidth / 1e9:,.1f} GB/s"
    t = found.times
    copies = ["copies of layers from CPU memory are not in these times"] if found.forecast.host else []
    return [
        f"rates: {rates} ({found.rates.source})",
        f"1,000 tokens take at least {t.training:.3g} s in training, {t.prompt:.3g} s in reading a prompt, "
        f"{t.decoding:.3g} s in writing, one row",
        *copies,
    ]


def _choices(found: Answer) -> list[str]:
    if not found.choices:
        return []
    lines = [f"choices within {size(found.budget)}, rows of {found.forecast.setting.length} tokens; {ORDER}:"]
    lines.append(
        f"  {'method':<18}{'base':<7}{'checkpointing':<15}{'trained':>15}{'memory':>12}{'G ops':>8}{'rows':>6}"
    )
    for choice in found.choices:
        if not choice.fits or choice.operations is None:
            continue
        lines.append(
            f"  {choice.method:<18}{choice.quantize or '16/32':<7}{'on' if choice.checkpointing else 'off':<15}"
            f"{choice.trainable:>15,}{size(choice.need):>12}{choice.operations / 1e9:>8.3g}{choice.largest.rows:>6}"
        )
    outside = [choice for choice in found.choices if not choice.fits]
    if outside:
        least = min(outside, key=lambda choice: choice.need)
        what = f"{least.method}{f' on {least.quantize}' if least.quantize else ''}"
        needs = "needs" if least.operations is not None else "needs more than"
        lines.append(f"  {len(outside)} choices do not fit; the smallest of them, {what}, {needs} {size(least.need)}")
    return lines


def _forecast(found: Forecast) -> list[str]:
    s, total = found.setting, found.setting.shape.num_parameters
    dtype = str(s.dtype).removeprefix("torch.")
    held = f"{dtype}, linear layers in {s.quantize}" if s.quantize else dtype
    apart = (
        f"in CPU memory: {size(found.host)} of layers, two of them at a time on the device (in the base weights below)"
    )
    lines = [
        f"model: {s.name} ({total:,} parameters, {held})",
        *([apart] if found.host else []),
        f"method: {', '.join(str(method) for method in s.methods)}",
        f"trainable: {found.trainable:,} ({found.trainable / total:.4%})",
    ]
    if len(found.by_method) > 1:
        lines += [f"  {name}: {count:,}" for name, count in found.by_method.items()]
    lines += [f"  {place}: {count:,}" for place, count in found.by_place.items()]
    on = "with" if s.checkpointing else "without"
    more = f", {s.passes} passes a step" if s.passes > 1 else ""
    lines.append(f"training, {s.rows} rows of {s.length} tokens a micro-batch{more}, {on} activation checkpointing:")
    lines += _stack(found.training)
    lines += [
        f"  a micro-batch takes {size(found.plain_activations)} without activation checkpointing, "
        f"{size(found.checkpointed_activations)} with it",
        f"generation, one row of {s.length} tokens:",
        *_stack(found.generation),
        f"on disk: adapter {size(found.adapter_disk)}, a checkpoint {size(found.checkpoint_disk)}",
        f"operations a token: {found.operations / 1e9:,.2f} G in training, "
        f"{found.generation_operations / 1e9:,.2f} G in reading a prompt",
    ]
    return lines


def _stack(memory: object) -> list[str]:
    parts = {NAMES[key]: value for key, value in vars(memory).items() if value or key in ("base", "adapter")}
    parts["total"] = sum(vars(memory).values())
    return [f"  {name:<24}{size(value):>12}" for name, value in parts.items()]
