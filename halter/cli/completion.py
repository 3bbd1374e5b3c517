"""`halter completion SHELL`: a script for the shell, made from the commands as they are; nothing runs at a TAB."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from halter.cli.main import ALWAYS, VERBS, built

OPEN = ("train", "doctor", "plan", "inspect", "compare")
"""Commands whose flags are the keys of a recipe too."""
WORDS = Path(__file__).with_suffix(".json")
"""What ``gathered`` says, written by docs/make_completion.py (`make pages`)."""


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def command(shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print a completion script: eval "$(halter completion bash)" in ~/.bashrc, or the same with zsh in ~/.zshrc;
    halter completion fish | source in config.fish."""
    print({"fish": _fish, "bash": _bash, "zsh": _zsh}[shell.value](words()))


def words() -> dict[str, list[str]]:
    """{command: its second words and flags}; for commands that read a recipe its keys as flags too."""
    known = _known()
    return {verb: [*own, *(known["keys"] if verb in OPEN else ())] for verb, own in known["commands"].items()}


@cache
def _known() -> dict[str, Any]:
    """What ``gathered`` said when this Halter was made: a shell that starts cannot wait until torch is imported."""
    return json.loads(WORDS.read_text("utf-8"))


def gathered() -> dict[str, Any]:
    """Second words and flags of the commands, keys of recipes, methods, from what declares them; takes seconds."""
    from halter.recipe.fields import keys_of
    from halter.recipe.sections import SECTIONS, method_class, method_names

    classes = (*SECTIONS.values(), *(method_class(name) for name in method_names()))
    keys = {f"--{key.replace('_', '-')}" for options in classes for key in keys_of(options)}
    commands = {verb: sorted({*_of(built(verb)), *ALWAYS} - (keys if verb in OPEN else set())) for verb in VERBS}
    return {"commands": commands, "keys": sorted(keys), "methods": list(method_names())}


def _of(command: Any) -> list[str]:
    flags = [word for one in command.params for word in (*one.opts, *one.secondary_opts) if word.startswith("--")]
    return [
        "--help",
        *flags,
        *(w for second in vars(command).get("commands", {}).values() for w in _of(second)),
        *vars(command).get("commands", {}),
    ]


def _methods() -> str:
    return " ".join(_known()["methods"])


def _bash(known: dict[str, list[str]]) -> str:
    cases = "\n".join(f'    {verb}) words="{" ".join(flags)}" ;;' for verb, flags in known.items())
    return f"""_halter() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(known)}" -- "$word")); return
  fi
  case "${{COMP_WORDS[COMP_CWORD-1]}}" in
    --method|--methods|init) COMPREPLY=($(compgen -W "{_methods()}" -- "$word")); return ;;
  esac
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W "$(echo "$words" | tr " " "\\n" | grep -v "^-")" -- "$word") $(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _halter halter"""


def _zsh(known: dict[str, list[str]]) -> str:
    return f"autoload -Uz bashcompinit && bashcompinit\n{_bash(known)}"


def _fish(known: dict[str, list[str]]) -> str:
    lines = [f"complete -c halter -n __fish_use_subcommand -f -a {verb} -d '{VERBS[verb]}'" for verb in known]
    for verb, flags in known.items():
        seen = f"-n '__fish_seen_subcommand_from {verb}'"
        lines += [f"complete -c halter {seen} -l {flag[2:]}" for flag in flags if flag.startswith("--")]
        lines += [f"complete -c halter {seen} -a {word}" for word in flags if not word.startswith("-")]
    lines.append(f"complete -c halter -n '__fish_seen_subcommand_from train' -l method -x -a '{_methods()}'")
    return "\n".join(lines)
