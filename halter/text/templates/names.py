"""Names of built-in chat templates as people type them, and what a name that is none may have meant."""

from __future__ import annotations

import json
import re
import shlex
from difflib import get_close_matches
from pathlib import Path

from halter.errors import Refusal
from halter.telling import tell

BUILTIN = ("llama-2", "llama-3", "llama-3.1", "llama-3.2-vision", "llama-4", "alpaca", "vicuna", "chatml", "zephyr")
BESIDE = re.compile(r"instruct|chat(?!ml)|template|meta|beta|hf|\d+b|scout|maverick|stanford")
"""Words of models and tools that say nothing about which template is meant."""
SPELT = {
    "llama2": "llama-2",
    "llama3": "llama-3",
    "llama30": "llama-3",
    "llama31": "llama-3.1",
    "llama32": "llama-3.1",
    "llama32vision": "llama-3.2-vision",
    "mllama": "llama-3.2-vision",
    "llama33": "llama-3.1",
    "llama4": "llama-4",
    "alpaca": "alpaca",
    "vicuna": "vicuna",
    "vicunav1": "vicuna",
    "vicunav11": "vicuna",
    "vicunav15": "vicuna",
    "chatml": "chatml",
    "zephyr": "zephyr",
}
NONE = ("raw", "none", "null", "no", "false", "off", "plain", "text")
"""Names by which people ask for no template."""
FILES = (".jinja", ".jinja2", ".j2", ".txt", ".json")


def spelt(name: str) -> str | None:
    """The built-in template of that name, whatever its case, dashes and the model it is named after."""
    if name in BUILTIN:
        return name
    plain = re.sub(r"chat[^a-z0-9]ml", "chatml", name.strip().lower())
    return SPELT.get(re.sub(r"[^a-z0-9]", "", BESIDE.sub("", re.sub(r"[-_ ]?\d+[be]\b", "", plain))))


def means_file(name: str) -> bool:
    """Whether a file that is there is meant: of a built-in template's name it is where a folder or a suffix says so."""
    path = Path(name).expanduser()
    if not path.is_file():
        return False
    if path.name != name or path.suffix.lower() in FILES or (found := spelt(name)) is None:
        return True
    tell(f"note: the built-in chat template {found} is taken; for the file of that name give ./{name}")
    return False


def refuse_json(name: str, text: str) -> None:
    """Refusal ``template-unknown`` of a file of JSON, as other programs keep templates in."""
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(held, dict):
        return
    fix = "give a Jinja file, or a built-in name"
    if isinstance(held.get("chat_template"), str):
        turn = f'import json; print(json.load(open({json.dumps(name)}))["chat_template"], end="")'
        fix = f"write the one that it holds into a file: python -c {shlex.quote(turn)} > template.jinja, and give that"
    elif {"prompt_input", "prompt_no_input"} & held.keys():  # alpaca-lora's
        fix = "the built-in one of this kind is --template alpaca"
    raise Refusal("template-unknown", "is JSON, and a chat template is Jinja", where=name, fix=fix)


def unknown(name: str) -> Refusal:
    """Refusal ``template-unknown``, or ``file-missing`` for what can only be a file."""
    path = Path(name).expanduser()
    if "/" in name or path.suffix.lower() in FILES:
        beside = (
            [one.name for one in path.parent.iterdir() if one.suffix.lower() in FILES] if path.parent.is_dir() else []
        )
        near = get_close_matches(path.name, beside, 1)
        fix = f"did you mean {path.parent / near[0]}?" if near else "give a Jinja file that exists, or a built-in name"
        return Refusal("file-missing", "there is no such file", where=name, expected="a chat template", fix=fix)
    if name.strip().lower() in NONE:
        fix = "" if name == "raw" else "prompts are asked without one by --template raw; "
        fix += "rows are learned without one where they are prompt and completion: leave --template out and name your "
        fix += "columns, as in data.columns='{prompt: instruction, completion: output}'"
        return Refusal("template-unknown", f"no chat template is called {name!r}", fix=fix)
    near = get_close_matches(re.sub(r"[^a-z0-9]", "", name.lower()), SPELT, 1, cutoff=0.5)
    fix = f"did you mean {SPELT[near[0]]}? " if near else ""
    return Refusal(
        "template-unknown",
        f"there is no built-in chat template {name!r}",
        expected=", ".join(BUILTIN),
        fix=f"{fix}name one of these, or give a Jinja file",
    )
