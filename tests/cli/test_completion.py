"""Completion scripts, asked as a shell asks them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from halter.cli import main
from halter.cli.completion import WORDS, gathered, words


@pytest.fixture(scope="module")
def script() -> str:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main.run(["completion", "bash"]) == 0
    return out.getvalue()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (["halter", "tr"], {"train"}),
        (["halter", "train", "--learn"], {"--learning-rate"}),
        (["halter", "train", "--method", "lo"], {"loha", "lokr", "lora", "loreft"}),
        (["halter", "generate", "--temp"], {"--temperature", "--template"}),
        (["halter", "adapters", "comb"], {"combine"}),
        (["halter", "chat", "--qui"], {"--quiet"}),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else None,
)
def test_bash_completes(script: str, line: list[str], wanted: set[str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    quoted = " ".join(f"'{word}'" for word in line)
    asked = f'COMP_WORDS=({quoted}); COMP_CWORD={len(line) - 1}; _halter; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"complete() {{ :; }}\n{script}\n{asked}"], capture_output=True, text=True)
    assert done.returncode == 0 and set(done.stdout.split()) == wanted, done.stderr


def test_every_command_has_its_flags() -> None:
    known = words()
    assert known.keys() == main.VERBS.keys() and all("--help" in flags for flags in known.values())
    assert {"--rank-pattern", "--neftune-noise-alpha", "--on-long", "--quantize"} <= set(known["train"])


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "train" in out and "learning-rate" in out and "loreft" in out
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=out, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_words_are_those_of_the_commands_as_they_are() -> None:
    """`make pages` writes them anew."""
    assert json.loads(WORDS.read_text("utf-8")) == gathered()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_new_shell_does_not_wait_for_torch(shell: str) -> None:
    asked = (
        f"import sys; from halter.cli import main; main.run(['completion', '{shell}']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
