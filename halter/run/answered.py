"""Rows to score, which need answers: what is said where they have none."""

from __future__ import annotations

from halter.data.load import Loaded, RowSight, load_examples
from halter.data.options import DataOptions
from halter.errors import Refusal, Waivers
from halter.run.opening import Opened


def answered(options: DataOptions, opened: Opened, seed: int, system: str | None = None) -> Loaded:
    """``load_examples``, whose ways out for columns that nobody knows are about learning and not about scoring."""
    try:
        context = opened.model.config.context
        sight = RowSight(opened.rules, Waivers(opened.allow))
        tokenizer, template = opened.tokenizer, opened.template
        return load_examples(options, tokenizer, template, seed, system=system, context=context, sight=sight)
    except Refusal as refusal:
        alone = "{text:" in refusal.fix or "halter generate --input" in refusal.fix  # a column that asks, and no answer
        if refusal.id != "data-format" or not (alone or "data.columns" in refusal.fix):
            raise
        what, named = "nothing says what is asked and what is answered in these columns", opened.subject
        fix = refusal.fix
        if alone:
            ask = f"halter generate {named.run or named.adapter or named.base} --input {options.train}"
            what, fix = (
                "these rows hold no answers to score",
                f"give rows that have them; to have these answered: {ask}",
            )
        raise Refusal("data-format", what, where=refusal.where, found=refusal.found, fix=fix) from None
