"""What looks wrong in rows that could be trained on all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halter.data import told
from halter.run.cautions import of_same_answers, of_single_rows, of_vocabulary
from halter.run.describe import lost_rows
from halter.run.prepare import Job
from halter.run.untrained_ends import of_untrained_ends

if TYPE_CHECKING:
    from halter.inspection.census import Census

MANY = 0.05
"""Share of rows from which on losing them is worth a warning."""


def warnings(job: Job, census: Census) -> list[str]:
    """One sentence for each thing that training would not refuse and that is seldom meant."""
    tokenizer, template = job.tokenizer, job.template
    found = []
    if census.doubled:
        found.append(f"{census.doubled} of {census.rows} rows have a double BOS; the base has seen one at a time")
    if tokenizer.bos_id is not None and census.bos.get(0):
        found.append(f"{census.bos[0]} of {census.rows} rows have no BOS, with which every text of this base begins")
    if census.pad_learned:
        pad = tokenizer.token(tokenizer.pad_id or 0)
        found.append(
            f"the pad token {pad} is learned {census.pad_learned} times: it is also something else, probably the end "
            "of a text. Halter never masks it; a tool that masks padding would teach this model never to stop"
        )
    if census.unended:
        found.append(
            f"{census.unended} of {census.rows} rows do not end in a learned token that ends a generation, so the "
            "model is not taught to stop there"
        )
    if template is not None and template.asks_date and job.recipe.data.template_date is None:
        found.append("the chat template asks for a date and none is pinned: give data.template_date")
    report = job.data.report
    found += [*of_vocabulary(job), *of_single_rows(job), *of_same_answers(job), *of_untrained_ends(job)]
    return found + told.notes(report, aside=False) + told.notes(report, aside=True) + lost_rows(job, MANY)
