"""`halter completion SHELL`: a script for the shell, made from the commands as they are; nothing runs at a TAB."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from halter.cli.main import ALWAYS, VERBS, built

OPEN = ("train", "doctor", "plan", "inspect", "compare")
"""Commands whose flags are the keys of a recipe too."""


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
    keys = [f"--{key.replace('_', '-')}" for key in _recipe_keys()]
    return {verb: sorted({*_of(built(verb)), *ALWAYS, *(keys if verb in OPEN else ())}) for verb in VERBS}


def _of(command: Any) -> list[str]:
    flags = [word for one in command.params for word in (*one.opts, *one.secondary_opts) if word.startswith("--")]
    return ["--help", *flags, *(w for second in vars(command).get("commands", {}).values() for w in _of(second)),
            *vars(command).get("commands", {})]  # fmt: skip


def _recipe_keys() -> set[str]:
    from halter.recipe.fields import keys_of
    from halter.recipe.sections import SECTIONS, method_class, method_names

    classes = (*SECTIONS.values(), *(method_class(name) for name in method_names()))
    return {key for options in classes for key in keys_of(options)}


def _methods() -> str:
    from halter.recipe.sections import method_names

    return " ".join(method_names())


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
