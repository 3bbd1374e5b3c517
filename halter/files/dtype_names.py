"""How people spell the dtypes that Halter computes in: one meaning wherever one is named."""

from __future__ import annotations

from typing import Any

SPELLINGS = {
    "float32": ("fp32", "f32", "float", "single"),
    "bfloat16": ("bf16",),
    "float16": ("fp16", "f16", "half"),
}
"""{torch's name: what else it is called}; the first is the short one."""
_LONG = {word: name for name, others in SPELLINGS.items() for word in (name, *others)}


def long_name(word: Any) -> Any:
    """torch's name of a dtype, in any of its spellings; whatever is none as it is."""
    return _LONG.get(word.lower().removeprefix("torch."), word) if isinstance(word, str) else word


def short_name(word: Any) -> Any:
    """fp32, bf16, fp16 of a dtype in any of its spellings; whatever is none as it is."""
    long = long_name(word)
    return SPELLINGS[long][0] if isinstance(long, str) and long in SPELLINGS else word


def with_long_names(words: list[str], flag: str = "--dtype") -> list[str]:
    """A command's words, the value of ``flag`` in torch's spelling."""
    made = [f"{flag}={long_name(w.partition('=')[2])}" if w.startswith(f"{flag}=") else w for w in words]
    return [long_name(w) if i and words[i - 1] == flag else w for i, w in enumerate(made)]
