"""Rendering conversations by a template: a built-in one here, a stranger's in the sandbox's process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halter.errors import Refusal
from halter.text.templates import rendering
from halter.text.templates.sandbox import sandbox

MAX_SOURCE_CHARS = 1 << 20

NO_TOOLS = "has no place for tools"
TOOLS_FIX = (
    "give a template that has one (data.template): llama-3.1 or llama-3 where the tokenizer has their tokens, else a "
    "Jinja file"
)


RenderJob = dict[str, Any]  # source, variables, date


class Renderer:
    """``trusted``: the template is Halter's own, needs no sandbox process and no bounds."""

    def __init__(self, name: str, trusted: bool) -> None:
        self._name = name
        self._trusted = trusted
        self._names: dict[str, list[str]] = {}

    def names(self, source: str) -> list[str]:
        """The variables the template reads."""
        if source not in self._names:
            reply = self._run([{"source": source, "names": True}])[0]
            if "names" not in reply:
                raise self._refusal(reply)
            self._names[source] = reply["names"]
        return self._names[source]

    def render(self, jobs: Sequence[RenderJob]) -> list[str | Refusal]:
        """The text of each job, or why there is none. Refusal ``template-too-slow`` ends them all."""
        return [reply["text"] if "text" in reply else self._refusal(reply) for reply in self._run(jobs)]

    def _run(self, jobs: Sequence[RenderJob]) -> list[dict[str, Any]]:
        if self._trusted:
            return [self._here(job) for job in jobs]
        if any(len(job["source"]) > MAX_SOURCE_CHARS for job in jobs):
            too_long = {"kind": "template", "error": f"its source is longer than {MAX_SOURCE_CHARS} characters"}
            return [too_long for _ in jobs]
        return sandbox.run(jobs)

    def _here(self, job: RenderJob) -> dict[str, Any]:
        if job.get("names"):
            return {"names": rendering.asked_for(job["source"])}
        try:
            return {"text": rendering.render(job["source"], job["variables"], job["date"], limit=None)}
        except Exception as error:  # what the conversation makes of the template's expressions
            return {"kind": "template", "error": rendering.described(error)}

    def _refusal(self, reply: dict[str, Any]) -> Refusal:
        where = f"chat template {self._name}"
        if reply["kind"] != "template":
            what = {
                "output": f"writes more than {rendering.OUTPUT_CHARS} characters",
                "memory": f"needs more than {rendering.MEMORY_BYTES >> 20} MiB",
            }[reply["kind"]]
            return Refusal("template-too-large", what, where=where, fix="shorten the conversation or fix the template")
        fix = ""
        if "strftime_now" in reply["error"]:
            fix = "say which date it shall be told: data.template_date (date= in Python)"
        elif NO_TOOLS in reply["error"]:
            fix = TOOLS_FIX
        elif "(line " in reply["error"]:
            fix = "correct that line of the Jinja file, or give a built-in template: --template alpaca"
        return Refusal("template-failed", f"will not render this conversation: {reply['error']}", where=where, fix=fix)
