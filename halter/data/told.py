"""What there is to say about rows that can be used: one sentence for each kind of thing, with how often it was met."""

from __future__ import annotations

from collections.abc import Mapping

NOTES: dict[str, str] = {
    "reasoning_restored": "{n} answers are learned with their reasoning, which the chat template leaves out: "
    "data.reasoning=drop learns them without",
    "reasoning_closed": "{n} answers have no reasoning and follow a prompt that opens one (<think>): it is closed at "
    "once, as </think> and the answer",
    "reasoning_dropped": "{n} answers are learned without their reasoning (data.reasoning: drop)",
    "own_rows": "{n} more rows than conversations: each answer is learned after the prompt that generation gives, in "
    "which earlier answers stand without their reasoning",
    "unreasoned": "{n} answers are learned without their reasoning: the chat template leaves it out and cannot be "
    "followed with it; give another template",
    "content_cut": "{n} messages are written in part only by the chat template: halter inspect shows what is left",
    "last_turn_unlearned": "{n} conversations do not end with the assistant: what stands after its last answer is "
    "not learned",
}
"""{what was met: its sentence}; ``Rows.notes`` and ``DataReport.notes`` count by these names."""
ASIDE = frozenset({"reasoning_dropped", "own_rows"})
"""What the user asked for, or what costs nothing: told, and no warning."""


def notes(counts: Mapping[str, int], aside: bool) -> list[str]:
    """The sentences that are no warnings (``aside``), or those that are."""
    return [text.format(n=f"{counts[name]:,}") for name, text in NOTES.items()
            if counts.get(name) and (name in ASIDE) == aside]  # fmt: skip
