"""A forecast in words."""

from __future__ import annotations

import textwrap

from halter.contract.method import in_words
from halter.model.layout import EXPERTS
from halter.planning.answer import Answer
from halter.planning.fit import ORDER
from halter.planning.forecast import Forecast
from halter.planning.setting import Setting

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


LEGEND = (
    "base: what its linear layers are held in; checkpoints: activation checkpointing; trained: learned numbers; "
    "memory: of training on one row; work: billions of operations per token; most rows: in one micro-batch"
)


def size(count: int) -> str:
    """Bytes for people, in powers of ten as memory is sold."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.2f} {unit}"
    return f"{count / 1e3:,.1f} kB"


WIDTH = 80
"""Columns of a line, at most."""


def as_text(found: Answer) -> str:
    """The answer for people."""
    model, *rest = _forecast(found.forecast)
    told = [f"note: {found.note}"] if found.note else []
    lines = [model, *told, *rest, *_budget(found), *_times(found), *_choices(found)]
    return "\n".join(part for line in lines for part in _folded(line))


def _folded(line: str) -> list[str]:
    """One line in lines of at most WIDTH columns; what goes on is set in."""
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    further = f"{indent}  "
    return textwrap.wrap(line, WIDTH, subsequent_indent=further, break_long_words=False, break_on_hyphens=False)


def _budget(found: Answer) -> list[str]:
    word = "fits" if found.fits else "does not fit"
    rows, length = found.largest.rows, found.largest.length
    wanted = found.forecast.setting.length
    if rows:
        room = f"at most {_rows(rows)} of {wanted} tokens in one micro-batch, or one row of {length}"
    elif length:
        room = f"no row of {wanted} tokens fits, one of {length} does (--max-length {length})"
    else:
        room = "no row fits, not even one of a single token"
    lines = [f"memory, {size(found.budget)} {found.budget_source}: training {word}; {room}"]
    return lines if rows else [*lines, _way_out(found)]


def _way_out(found: Answer) -> str:
    """What would fit where no row does: the same method in another way, else another one."""
    own = {method.name() for method in found.forecast.setting.methods}
    fitting = [choice for choice in found.choices if choice.fits]
    if not found.choices:
        return "what would fit: name the memory (--memory 8GB), and every method is tried in 16, 8 and 4 bits"
    if not fitting:
        return "what would fit: no method on this base; a smaller base, shorter rows (--max-length) or more memory"
    best = next((choice for choice in fitting if choice.method in own), fitting[0])
    flags = [f"--method {best.method}"]
    flags += [f"--quantize {best.quantize}"] if best.quantize else []
    flags += ["--activation-checkpointing on"] if best.checkpointing else []
    length = found.forecast.setting.length
    return f"what would fit: {' '.join(flags)}, {size(best.need)} with one row of {length} tokens"


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _times(found: Answer) -> list[str]:
    if found.rates is None or found.times is None:
        return []
    operations, bandwidth = found.rates.operations / 1e12, found.rates.bandwidth / 1e9
    rates = f"{operations:,.2f} trillion operations and {bandwidth:,.1f} GB a second"
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
    dtype = str(found.forecast.setting.dtype).removeprefix("torch.").replace("float", "fp").replace("bfp", "bf")
    wanted = found.forecast.setting.length
    inside = [choice for choice in found.choices if choice.fits and choice.operations is not None]
    lines = [f"choices within {size(found.budget)}, rows of {wanted} tokens; {ORDER}:"] if inside else []
    if inside:
        lines.append(f"  {LEGEND}")
        lines.append(
            f"  {'method':<17}{'base':<6}{'checkpoints':<13}{'trained':>14}{'memory':>11}{'work':>7}{'most rows':>10}"
        )
    lines += [
        f"  {choice.method:<17}{choice.quantize or dtype:<6}{'on' if choice.checkpointing else 'off':<13}"
        f"{choice.trainable:>14,}{size(choice.need):>11}{(choice.operations or 0) / 1e9:>7.3g}{choice.largest.rows:>10}"
        for choice in inside
    ]
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
    held = f"{dtype}, {_quantised(s)} in {s.quantize}" if s.quantize else dtype
    active = s.shape.active_parameters
    passed = f", {active:,} of them for a token" if active < total else ""
    apart = (
        f"in CPU memory: {size(found.host)} of layers, two of them at a time on the device (in the base weights below)"
    )
    lines = [
        f"model: {s.name} ({total:,} parameters{passed}, {held})",
        *([apart] if found.host else []),
        f"method: {'; '.join(f'{method.name()}{in_words(method)}' for method in s.methods)}",
        f"trainable: {found.trainable:,} ({found.trainable / total:.4%})",
    ]
    if len(found.by_method) > 1:
        lines += [f"  {name}: {count:,}" for name, count in found.by_method.items()]
    lines += [f"  {place}: {count:,}" for place, count in found.by_place.items()]
    on = "with" if s.checkpointing else "without"
    more = f", {s.passes} micro-batches in a step" if s.passes > 1 else ""
    passes = f"{_rows(s.rows)} of {s.length} tokens in a micro-batch{more}"
    lines.append(f"training, {passes}, {on} activation checkpointing:")
    lines += _stack(found.training)
    lines += [
        f"  a micro-batch takes {size(found.plain_activations)} without activation checkpointing, "
        f"{size(found.checkpointed_activations)} with it",
        f"generation, one row of {s.length} tokens:",
        *_stack(found.generation),
        f"on disk: adapter {size(found.adapter_disk)}, a checkpoint {size(found.checkpoint_disk)}",
        f"operations per token: {found.operations / 1e9:,.2f} billion in training, "
        f"{found.generation_operations / 1e9:,.2f} billion in reading a prompt",
    ]
    return lines


def _quantised(setting: Setting) -> str:
    """What is held in few bits, where there is more than linear layers."""
    layout = setting.shape.layout
    if not layout.of(EXPERTS):
        return "linear layers"
    few = any(place.kind == EXPERTS for place in layout.in_few_bits())
    return "linear layers and routed experts" if few else "linear layers but no routed experts"


def _stack(memory: object) -> list[str]:
    parts = {NAMES[key]: value for key, value in vars(memory).items() if value or key in ("base", "adapter")}
    parts["total"] = sum(vars(memory).values())
    return [f"  {name:<24}{size(value):>12}" for name, value in parts.items()]
