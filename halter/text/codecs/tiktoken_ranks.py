"""tokenizer.model as Meta writes it since Llama 3: one line per merge, "base64 rank", through ``tiktoken``.

Split pattern, control tokens and the cutting of long texts follow Meta's tokenizer (facts: lineage 5.2).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from pathlib import Path

from halter.errors import Refusal
from halter.files.extras import missing_extra
from halter.files.reading import read_text
from halter.text.codecs.codec import Control

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = (
    "begin_of_text",
    "end_of_text",
    "reserved_special_token_0",
    "reserved_special_token_1",
    "finetune_right_pad_id",
    "step_id",
    "start_header_id",
    "end_header_id",
    "eom_id",
    "eot_id",
    "python_tag",
    "image",
)
CONTROLS = 256
LLAMA4_MERGES = 200_000
MAX_CHARS = 400_000  # per call: longer texts crash or stall the library
MAX_SAME_CLASS = 25_000  # characters in a row that are all white space, or all not

_LINE = re.compile(r"[A-Za-z0-9+/=]+ \d+")
_RUNS = re.compile(r"\s+|\S+")


def looks_like_tiktoken(path: Path) -> bool:
    with open(path, "rb") as file:
        first = file.readline(4096)
    return _LINE.fullmatch(first.decode("latin-1").strip()) is not None


class TiktokenCodec:
    """Llama 3's tokenizer.model; the 256 control tokens follow the merges (128000 in the real file)."""

    drops_first_space = False
    unk_id: int | None = None

    def __init__(self, path: str | Path) -> None:
        try:
            import tiktoken
        except ImportError as error:
            raise missing_extra("meta", "tokenizer.model files of Llama 3", path, error) from None
        self._merges = _read_merges(Path(path))
        count = len(self._merges)
        if count == LLAMA4_MERGES:
            raise Refusal(
                "tokenizer-unsupported",
                "is Llama 4's, which splits text otherwise",
                where=str(path),
                expected="Llama 3's tokenizer.model",
                fix="use the folder's tokenizer.json",
            )
        names = [*NAMED, *(f"reserved_special_token_{i + 2}" for i in range(CONTROLS - len(NAMED)))]
        self.controls = tuple(Control(f"<|{name}|>", count + i) for i, name in enumerate(names))
        self.size = count + CONTROLS
        self._control_ids = {c.text: c.id for c in self.controls}
        self.bos_id: int | None = count
        self.eos_id: int | None = count + 1
        # Meta's own folders do not say whether the model is a base or a chat model; its code stops at all three.
        self.stop_ids: tuple[int, ...] = tuple(
            self._control_ids[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id")
        )
        self._library = tiktoken.Encoding("llama3", pat_str=PATTERN, mergeable_ranks=self._merges, special_tokens={})

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
        return repr((PATTERN, sorted(self._merges.items()), self.controls)).encode()


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
