"""The process in which a grammar is tried before it is used: a schema of 60 KB can end the process that compiles it.

Measured with llguidance 1.9.1: a chain of 1,500 ``$ref`` within ``allOf`` overflows the stack, which no language can
catch. What is compiled here within its bounds takes the same steps, and so the same stack, in the process that serves.
This file is run in a process of its own (halter.bounded), and so needs nothing but llguidance and the standard library.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

SECONDS, MEMORY_BYTES, STACK_BYTES = 1.0, 256 << 20, 1 << 20
"""Of processor time for one grammar, of memory besides the process itself, and of the stack: no more than any thread of
the process that serves has."""
MOST_LETTERS = 200
"""Of the library's reason: it may repeat what it was given."""
NO_ANSWER = "no answer satisfies it"


def limits() -> LLParserLimits:
    """The library's own limits, with less room for the states of one answer (1 to 2 kB each), and errors that do not
    repeat the grammar."""
    return LLParserLimits(max_lexer_states=32_000, verbose_errors=False)


def compiled(tokenizer: LLTokenizer, lark: str) -> tuple[LLMatcher, str]:
    """A grammar at its beginning, and what is wrong with it, '' where nothing is."""
    matcher = LLMatcher(tokenizer, lark, log_level=0, limits=limits())
    if matcher.is_error():
        return matcher, reason(matcher.get_error())
    matcher.compute_bitmask()
    dead = matcher.is_stopped() and not matcher.is_accepting()
    why = reason(matcher.get_error())
    return matcher, NO_ANSWER if why.startswith("NoExtension") or (dead and not why) else why


def reason(error: str) -> str:
    """The library's reason in one line, without the place in a grammar that nobody but us has seen."""
    told = error.partition("JSON schema: ")[2] or error
    for beside in ("\n   1 | ", "<backtrace>", "<non-verbose/>"):
        told = told.partition(beside)[0]
    return " ".join(line.strip() for line in told.splitlines())[:MOST_LETTERS]


def _tried(tokenizer: LLTokenizer, asked: dict[str, Any]) -> dict[str, Any]:
    """{"schemas", "lark"} -> {} or {"why", and "schema", its number, where one of them alone cannot be used}."""
    for number, schema in enumerate(asked["schemas"]):
        why = compiled(tokenizer, f"start: %json {schema}\n")[1]
        if why:
            return {"schema": number, "why": why}
    why = compiled(tokenizer, asked["lark"])[1] if len(asked["schemas"]) > 1 else ""
    return {"why": why} if why else {}


def _serve() -> None:
    tokenizer = LLTokenizer("byte")
    compiled(tokenizer, "start: %json {}\n")  # what the library makes once is not counted
    arm = globals()["limit_this_process"](MEMORY_BYTES)
    for line in sys.stdin:
        arm(SECONDS)
        told = _tried(tokenizer, json.loads(line))
        arm(0)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=_serve)
    worker.start()
    worker.join()
