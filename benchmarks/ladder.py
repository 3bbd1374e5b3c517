"""What each technique of the training step is worth, added one after the other to a plain step: run.py --ladder.

The plain step pads every row to the longest, makes all logits at once and leaves the rest to autograd. Each rung is
taken away from Halter's own step by putting the plain way in its place; losses stay the same, which is checked.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import frame
from workloads import Setting, find

ROW = "lora-all-step"
RUNGS = (
    "plain",
    "no padding",
    "head on supervised tokens only",
    "loss in chunks, its gradient made in the forward pass",
    "last layer on supervised tokens only",
    "freed memory kept for the next step",
    "denormals flushed",
)
CONTEXTS = RUNGS.index("freed memory kept for the next step")
"""From this one on the techniques are contexts around the step."""
TOLERANCE = 0.004


@contextmanager
def only(rungs: int | None) -> Iterator[bool]:
    """Halter's step with the first ``rungs`` techniques alone; all where None. Yields whether rows are padded.

    The last two are the contexts that halter.train works in.
    """
    from halter.numerics import allocation, denormals

    rungs = len(RUNGS) if rungs is None else rungs
    with ExitStack() as stack:
        stack.enter_context(allocation.kept(roomy=True) if rungs >= CONTEXTS else nullcontext())
        stack.enter_context(denormals.flushed() if rungs > CONTEXTS else nullcontext())
        _plain_head(stack, rungs)
        yield rungs < 1


def _plain_head(stack: ExitStack, rungs: int) -> None:
    """The plain ways of the last layer and of the loss."""
    import torch.nn.functional as F

    from halter.model.decoder import Decoder
    from halter.training import head

    hidden = Decoder.hidden
    seen: dict[str, Any] = {}

    def whole(self: Any, asked: Any) -> Any:
        seen["wanted"], states = asked.wanted, hidden(self, replace(asked, wanted=None))
        return states if rungs < 2 else states[asked.wanted]

    def at_once(project: Any, tensors: Any, states: Any, asked: Any, *_: Any) -> Any:
        """Every token's logits (without the second rung), through autograd."""
        targets, weights = asked.targets, asked.weights
        if rungs < 2:
            full = targets.new_zeros(len(states)).index_copy(0, seen["wanted"], targets)
        else:
            full = targets
        losses = F.cross_entropy(project(states, 0, len(states), tensors).float(), full, reduction="none")
        chosen = losses[seen["wanted"]] if rungs < 2 else losses
        return (chosen * weights).sum(), chosen.detach()

    if rungs < 4:
        stack.enter_context(patch.object(Decoder, "hidden", whole))
    if rungs < 3:
        stack.enter_context(patch.object(head, "head_loss", at_once))


def measure(base: Setting, rounds: int, say: Callable[[str], None], begin: frame.Start) -> list[dict[str, Any]]:
    """{name, seconds, tokens_per_second, peak_bytes, loss} of every rung, medians over the rounds."""
    work, taken = find(ROW), []
    begin("prepare", work, base, "")
    found: list[list[dict[str, Any]]] = [[] for _ in RUNGS]
    for _ in range(rounds):
        for number, name in enumerate(RUNGS):
            found[number].append(frame.undisturbed(begin, "halter", work, replace(base, rungs=number), say))
            say(f"  {name}: {min(found[number][-1]['seconds']):.3f} s")
    for name, results in zip(RUNGS, found, strict=True):
        seconds = statistics.median(min(one["seconds"]) for one in results)
        taken.append(
            {
                "name": name,
                "seconds": seconds,
                "tokens_per_second": results[0]["tokens"] / seconds,
                "peak_bytes": statistics.median(one["peak_bytes"] for one in results),
                "losses": results[0]["losses"],
                "same": frame.apart(results[0]["losses"], found[-1][0]["losses"]) <= TOLERANCE,
            }
        )
    return taken


def table(ladder: Sequence[dict[str, Any]]) -> str:
    """A line a rung."""
    lines = ["| with | tokens/s | times the rung before | peak GB | of the rung before |", "|---|---|---|---|---|"]
    for before, one in zip([None, *ladder], ladder):
        faster = f"{before['seconds'] / one['seconds']:.2f}x" if before else ""
        smaller = f"{one['peak_bytes'] / before['peak_bytes']:.0%}" if before else ""
        name = one["name"] if before is None else f"+ {one['name']}"
        name += "" if one["same"] else " (its loss differs)"
        lines.append(
            f"| {name} | {one['tokens_per_second']:.1f} | {faster} | {one['peak_bytes'] / 1e9:.2f} | {smaller} |"
        )
    return "\n".join(lines)
