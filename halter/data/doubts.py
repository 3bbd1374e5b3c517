"""What is seldom meant in a row that can be used. It is told where enough of the rows have it (data.told)."""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import numpy as np

from halter.data.example import Example
from halter.data.meaning import Canonical
from halter.data.parts import text_of
from halter.text.chat.marks import begun, ended, families
from halter.text.odd_texts import spells_new_lines
from halter.text.tokenizer import Tokenizer

RowPair = tuple[int, int]
SPELT_OUT = re.compile(r"\\n(?=[A-Z0-9\s\\*#(-]|$)")
AS_OF = "text as of "
"""How what is counted of plain text begins that holds the marks of a template, whose name follows."""
LOST = "\ufffd"
"""What a reader writes for bytes that are no letter in the encoding that it reads."""
WINDOWS = {
    bytes([code]).decode("cp1252"): bytes([code])
    for code in range(0x80, 0xA0)
    if code not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}
_NEXT = rf"[\u0080-\u00bf{''.join(WINDOWS)}]"
MISREAD = re.compile(
    rf"[\u00c2\u00c3]{_NEXT}|\u00e2{_NEXT}{{2}}"
    rf"|(?:[\u00c4-\u00df]{_NEXT}|[\u00e0-\u00ef]{_NEXT}{{2}}|\u00f0{_NEXT}{{3}}){{2,}}"
)
"""The bytes of letters in UTF-8, each as a letter of its own: one letter of Latin-1 or one sign, or two of any others,
as one of those alone may be meant (a quotation mark behind a capital letter)."""


def end_marks(tokenizer: Tokenizer) -> frozenset[str]:
    """This tokenizer's own names of ends, as they might be typed."""
    names = (tokenizer.token(id) for id in tokenizer.stop_ids if id < tokenizer.vocab_size)
    return frozenset(name for name in names if len(name) > 2 and name[0] in "<[")


def of_row(meant: Canonical, row: Mapping[str, Any], ends: Collection[str]) -> Counter[str]:
    """The names in data.told of what looks wrong in one row."""
    found = Counter[str]()
    learned = [meant.completion or meant.text or ""]
    if meant.messages is not None:
        spoken = [(m["role"], text_of(m["content"])) for m in meant.messages if m.get("content") is not None]
        learned = [text for role, text in spoken if role == "assistant"]
        found["templated"] = any(begun(text) for _, text in spoken)
        roles = [m["role"] for m in meant.messages if m["role"] != "system"]
        if roles and roles[0] == "assistant" and roles[-1] == "user":
            found["swapped_human" if _speaks(row, "human") else "swapped_user"] = 1
        elif roles and roles[0] == "assistant":
            found["unprompted"] = 1
    if meant.text is not None:
        found.update(f"{AS_OF}{name}" for name in families(meant.text)[:1])
    asked, answer = question(meant)
    found["mojibake"] = any(map(misread, (*learned, asked)))
    found["unreadable"] = any(LOST in text for text in (*learned, asked))
    found["spelt_out"] = any(map(spells_out, (*learned, asked)))
    found["ended"] = any(ended(text, ends) for text in learned)
    found["echoed"] = bool(answer.strip()) and answer.strip() == asked.strip()
    return +Counter({name: int(count) for name, count in found.items()})


def spells_out(text: str) -> bool:
    r"""Whether the new lines of a text are a backslash and an n each: not of LaTeX (\nu), JSON, or code ("\n")."""
    return spells_new_lines(text) and text.lstrip()[:1] not in "{[" and SPELT_OUT.search(text) is not None


def misread(text: str) -> bool:
    """Whether letters of a text are UTF-8 that was read as Windows-1252 or Latin-1: Ã© of é."""
    if text.isascii():
        return False
    for run in MISREAD.findall(text):
        data = b"".join(WINDOWS.get(sign, sign.encode("latin-1", "ignore")) for sign in run)
        with suppress(UnicodeDecodeError):
            if len(data) > 1 and data.decode("utf-8"):
                return True
    return False


def _speaks(row: Mapping[str, Any], name: str) -> bool:
    """Whether somebody in a conversation of ShareGPT's spelling is called so."""
    turns = (said for value in row.values() if isinstance(value, list) for said in value if isinstance(said, Mapping))
    return any(str(said.get("from")).lower() == name for said in turns)


def question(meant: Canonical) -> tuple[str, str]:
    """(the last thing asked, the answer to it) as texts; ('', '') where a row asks nothing."""
    if meant.messages is None:
        return meant.prompt or "", meant.completion or ""
    place = max((n for n, m in enumerate(meant.messages) if m["role"] == "assistant"), default=0)
    before, answer = meant.messages[:place], meant.messages[place]["content"] if meant.messages else ""
    asked: dict[str, Any] = next((m for m in reversed(before) if m["role"] == "user"), {})
    words = [text_of(asked[key]) for key in ("content", "input") if asked.get(key) is not None]
    return "\n".join(words), text_of(answer)


def pair(meant: Canonical) -> RowPair | None:
    """(digest of everything before the last answer, digest of that answer); None where a row asks nothing."""
    seen = "".join(map(_named, meant.pictures))
    if meant.messages is None:
        asked = bool(meant.prompt and meant.completion)
        return (_digest(seen + (meant.prompt or "")), _digest(meant.completion or "")) if asked else None
    place = max((n for n, m in enumerate(meant.messages) if m["role"] == "assistant"), default=0)
    if not place:
        return None
    before = seen + json.dumps([meant.messages[:place], meant.tools], sort_keys=True, default=str)
    return _digest(before), _digest(json.dumps(meant.messages[place], sort_keys=True, default=str))


def _named(picture: Any) -> str:
    """What says where a picture lies, as a text that differs where pictures do."""
    if isinstance(picture, Mapping) and picture.get("bytes") is not None:
        picture = picture["bytes"]
    data = picture if isinstance(picture, bytes) else str(picture).encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=8).hexdigest()


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Contradictions:
    """Rows that ask the same and want different answers; 16 bytes a row are held."""

    def __init__(self) -> None:
        self._asked, self._wanted = array("Q"), array("Q")

    def add(self, pairs: Collection[RowPair]) -> None:
        """One more row's."""
        for asked, wanted in pairs:
            self._asked.append(asked)
            self._wanted.append(wanted)

    def notes(self) -> Counter[str]:
        """How many rows, of how many questions."""
        both = np.array([self._asked, self._wanted], np.uint64).T
        if not len(both):
            return Counter()
        different = np.unique(both, axis=0)[:, 0]
        questions, answers = np.unique(different, return_counts=True)
        several = questions[answers > 1]
        rows = int(np.isin(both[:, 0], several).sum())
        return +Counter(contradicting=rows, contradicted=len(several))


def unknown(examples: Collection[Example], tokenizer: Tokenizer) -> Counter[str]:
    """How many learned tokens say only that the tokenizer does not know a character, and in how many rows."""
    mark = tokenizer.unk_id
    if mark is None or mark == tokenizer.bos_id or mark in tokenizer.stop_ids:
        return Counter()
    counts = [int((one.supervised[1:] & (one.tokens[1:] == mark)).sum()) for one in examples]
    return +Counter(unknown=sum(counts), unknown_rows=sum(map(bool, counts)))
