"""tokenizer.model as Meta writes it since Llama 3: one line per merge, "base64 rank", through ``tiktoken``.

Split patterns, control tokens and the cutting of long texts follow Meta's tokenizers (facts: lineage 5.2 and 5.3). The
file says nothing of its generation but how many merges it has.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from halter.errors import Refusal
from halter.files.extras import missing_extra
from halter.files.reading import read_text
from halter.text.codecs.codec import Control

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER, _SHORT = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
LLAMA4_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words end where small letters give way to capitals, and keep their apostrophes."""


def _reserved(count: int, first: int = 0, of: str = "") -> tuple[str, ...]:
    return tuple(f"{of}reserved_special_token_{number}" for number in range(first, first + count))


@dataclass(frozen=True)
class Dialect:
    """What the file of one generation leaves unsaid. ``names``: its control tokens, whose ids follow the merges."""

    pattern: str
    names: tuple[str, ...]
    stops: tuple[str, ...]
    pad: str | None = None


LLAMA3 = Dialect(
    PATTERN,
    (
        *("begin_of_text", "end_of_text", *_reserved(2), "finetune_right_pad_id", "step_id", "start_header_id"),
        *("end_header_id", "eom_id", "eot_id", "python_tag", "image", *_reserved(244, 2)),
    ),
    ("end_of_text", "eom_id", "eot_id"),
)
_LLAMA4_NAMED = (
    *("begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"),
    *("header_start", "header_end", "eom", "eot", "step", *_reserved(6, of="text_post_train_")),
    *("python_start", "python_end", "finetune_right_pad", *_reserved(61, 8, "text_post_train_")),
    *("image_start", "image_end", *_reserved(2, of="vision_"), "tile_x_separator", "tile_y_separator"),
    *(*_reserved(4, 2, "vision_"), "image", *_reserved(1, 6, "vision_"), "patch", *_reserved(1041, 7, "vision_")),
    *(*_reserved(8, of="reasoning_"), "reasoning_thinking_start", "reasoning_thinking_end"),
)
LLAMA4 = Dialect(
    LLAMA4_PATTERN,
    (*_LLAMA4_NAMED, *_reserved(2048 - len(_LLAMA4_NAMED))),
    ("end_of_text", "eom", "eot"),
    "finetune_right_pad",
)
LLAMA4_MERGES = 200_000
"""How many a Llama 4's file has; a Llama 3's has 128,000, and a file of any other length is read as one of its kind."""
MAX_CHARS = 400_000  # per call: longer texts crash or stall the library
MAX_SAME_CLASS = 25_000  # characters in a row that are all white space, or all not

_LINE = re.compile(r"[A-Za-z0-9+/=]+ \d+")
_RUNS = re.compile(r"\s+|\S+")


def looks_like_tiktoken(path: Path) -> bool:
    with open(path, "rb") as file:
        first = file.readline(4096)
    return _LINE.fullmatch(first.decode("latin-1").strip()) is not None


class TiktokenCodec:
    """A tokenizer.model of Llama 3 or Llama 4; the control tokens follow the merges."""

    drops_first_space = False
    unk_id: int | None = None

    def __init__(self, path: str | Path) -> None:
        try:
            import tiktoken
        except ImportError as error:
            raise missing_extra("meta", "tokenizer.model files of Llama 3 and 4", path, error) from None
        self._merges = _read_merges(Path(path))
        count = len(self._merges)
        self._dialect = LLAMA4 if count == LLAMA4_MERGES else LLAMA3
        names = self._dialect.names
        self.controls = tuple(Control(f"<|{name}|>", count + i) for i, name in enumerate(names))
        self.size = count + len(names)
        self._control_ids = {c.text: c.id for c in self.controls}
        self.bos_id: int | None = count
        self.eos_id: int | None = count + 1
        self.pad_id = self._control_ids.get(f"<|{self._dialect.pad}|>")
        # Meta's own folders do not say whether the model is a base or a chat model; its code stops at all three.
        self.stop_ids: tuple[int, ...] = tuple(self._control_ids[f"<|{name}|>"] for name in self._dialect.stops)
        self._library = tiktoken.Encoding(
            "llama", pat_str=self._dialect.pattern, mergeable_ranks=self._merges, special_tokens={}
        )

    def run(self, text: str, prefix: bool) -> list[int]:
        ids: list[int] = []
        for part in chunks(text):
            ids.extend(self._library.encode_ordinary(part))
        return ids

    def prefix_after(self, control: Control | None) -> bool:
        return False

    def piece(self, id: int) -> bytes:
        base = len(self._merges)
        return self.controls[id - base].text.encode() if id >= base else self._library.decode_single_token_bytes(id)

    def token(self, id: int) -> str:
        base = len(self._merges)
        return self.controls[id - base].text if id >= base else self._library.decode([id])

    def token_id(self, token: str) -> int | None:
        return self._control_ids.get(token, self._merges.get(token.encode()))

    def canonical(self) -> bytes:
        return repr((self._dialect.pattern, sorted(self._merges.items()), self.controls)).encode()


def chunks(text: str) -> Iterator[str]:
    """Cut at 400,000 characters, then wherever 25,000 in a row are all white space or all not (Meta's limits)."""
    for at in range(0, len(text), MAX_CHARS):
        part = text[at : at + MAX_CHARS]
        start = 0
        for run in _RUNS.finditer(part):
            for cut in range(run.start() + MAX_SAME_CLASS, run.end(), MAX_SAME_CLASS):
                yield part[start:cut]
                start = cut
        yield part[start:]


def _read_merges(path: Path) -> dict[bytes, int]:
    merges: dict[bytes, int] = {}
    bad: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            merges[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            bad.append(f"line {number}")
    missing = [bytes([b]) for b in range(256) if bytes([b]) not in merges]
    if bad or missing or sorted(merges.values()) != list(range(len(merges))):
        raise Refusal(
            "tokenizer-unreadable",
            "is not a whole tiktoken file",
            where=str(path),
            found=bad or missing,
            expected="one 'base64 rank' per line, ranks 0 to n-1, all 256 single bytes among them",
            fix="fetch the file again",
        )
    return merges
