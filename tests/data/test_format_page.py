"""docs/guide/add-a-data-format.md: its format reads rows, and says of bad ones what is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from halter.data import formats
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.errors import Refusal
from halter.playground import base_folder
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "add-a-data-format.md").read_text("utf-8")
ROWS = [{"qa": "Q: Who has the lamp?\nA: Ann."}, {"qa": "Q: Where?\nA: In the barn.", "page": 3}]


def test_the_format_of_the_page_reads_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    monkeypatch.setattr(formats, "READINGS", dict(formats.READINGS))
    exec(compile(source, "add-a-data-format.md", "exec"), {"__name__": "page"})
    tokenizer, template = Tokenizer.from_folder(base_folder()), ChatTemplate.builtin("alpaca")

    def read(name: str, rows: list[dict[str, object]]):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return load_examples(DataOptions(train=str(path), validation=None, cache=False), tokenizer, template)

    loaded = read("rows.jsonl", ROWS)
    asked = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("Who has the lamp?", "Ann."), ("Where?", "In the barn."))
    ]
    want = read("messages.jsonl", asked).train
    assert [one.tokens.tolist() for one in loaded.train] == [one.tokens.tolist() for one in want]
    assert [one.supervised.tolist() for one in loaded.train] == [one.supervised.tolist() for one in want]
    (told,) = loaded.report.readings.values()
    (left,) = loaded.report.ignored.values()
    assert told == "asked: Q of qa; learned: A of qa" and left == ["page"]
    with pytest.raises(Refusal, match="qa without a line that begins with A:"):
        read("bad.jsonl", [*ROWS, {"qa": "Q: Who?"}])
