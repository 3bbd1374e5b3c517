"""Tokenised rows from the cache: the same to the last bit, never stale, never damaged, bounded; and off when told."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers as tiny

from halter.data import cache, cache_entry, cache_key, examples, tokenise
from halter.data.load import Loaded, load_examples
from halter.data.options import DataOptions, Source
from halter.errors import Refusal
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

ALPACA, VICUNA = ChatTemplate.builtin("alpaca"), ChatTemplate.builtin("vicuna")


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny.llama3(tmp_path_factory.mktemp("llama3")))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own that keeps the smallest files, in small pieces; its entries' folder."""
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_BYTES", 0)
    monkeypatch.setattr(examples, "PIECE_BYTES", 1000)
    return tmp_path / "cache" / "tokenised"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The origin of every row that is encoded."""
    seen: list[str] = []
    real = tokenise.Encoder.examples

    def example(self: Any, meant: Any, origin: str) -> Any:
        seen.append(origin)
        return real(self, meant, origin)

    monkeypatch.setattr(tokenise.Encoder, "examples", example)
    return seen


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def rows(count: int, word: str = "row") -> list[Any]:
    return [{"instruction": f"{word} {n}", "output": f"answer {n} " * (n % 7 + 1)} for n in range(count)]


def load(tokenizer: Tokenizer, template: ChatTemplate | None = ALPACA, seed: int = 0, **options: Any) -> Loaded:
    return load_examples(DataOptions(**options), tokenizer, template, seed)


def told(loaded: Loaded) -> Any:
    """Everything that a load gives, but whence."""
    rows = [
        [(e.tokens.tolist(), e.supervised.tolist(), e.origin) for e in part]
        for part in (loaded.train, loaded.validation)
    ]
    numbers = [getattr(loaded.train, name).tolist() for name in ("lengths", "targets", "weights")]
    return rows, numbers, {**loaded.report.as_dict(), "cached": 0}


VARIANTS: list[dict[str, Any]] = [
    {},
    {"on_bad": "skip", "on_long": "cut", "max_length": 60},
    {"on_bad": "skip", "validation": 0.2, "seed": 3},
    {"on_bad": "skip", "limit": 20, "seed": 5},
    {"on_bad": "skip", "train_on": "all", "on_long": "drop", "max_length": 60},
]


@pytest.mark.parametrize("options", VARIANTS, ids=[str(sorted(v)) for v in VARIANTS])
def test_from_the_cache_is_as_without(
    llama3: Tokenizer, tmp_path: Path, kept: Path, encoded: list[str], options: dict[str, Any]
) -> None:
    """Rows, labels, origins, weights and the whole account are equal to a load without cache; nothing is encoded."""
    faults = ["{", {"instruction": "x"}] if options else []
    a, b = write(tmp_path / "a.jsonl", rows(60) + faults), write(tmp_path / "b.jsonl", rows(30, "other"))
    options = {"train": (Source(a), Source(b, weight=2.0)), **options}
    plain = load(llama3, **options, cache=False)
    count = len(encoded)
    first, second = load(llama3, **options), load(llama3, **options)
    assert len(encoded) == 2 * count
    assert told(plain) == told(first) == told(second)
    assert (first.report.cached, second.report.cached) == (0, second.report.rows)
    assert len(list(kept.glob("*/rows-*.bin"))) > 4  # pieces, so that their borders are crossed


def test_another_mixture_of_the_same_files_is_not_encoded_anew(
    llama3: Tokenizer, tmp_path: Path, kept: Path, encoded: list[str]
) -> None:
    a, b = write(tmp_path / "a.jsonl", rows(40)), write(tmp_path / "b.jsonl", rows(30, "other"))
    load(llama3, train=a)
    encoded.clear()
    mixed = load(llama3, train=(Source(a, weight=0.5), Source(b)), validation=0.1, seed=9)
    assert len(encoded) == 30 and all(origin.startswith(b) for origin in encoded)
    assert set(mixed.train.weights.tolist()) == {0.5, 1.0}
    assert len(np.unique(mixed.train.documents)) == len(mixed.train)


def test_nothing_stale_is_used(
    llama3: Tokenizer, tmp_path: Path, kept: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever decides a token makes another entry: one changed byte under the old size and time, options, template,
    tokenizer, its stop tokens, Halter's own code. Twelve changes, twelve loads equal to one without cache."""
    path = tmp_path / "a.jsonl"
    write(path, rows(40))
    other = Tokenizer.from_folder(tiny.write(tmp_path / "other", tiny.sentencepiece_like("first")))
    stopped = Tokenizer.from_folder(tiny.llama3(tmp_path / "stopped"))
    stopped.stop_ids = frozenset({*stopped.stop_ids, 5})  # type: ignore[assignment]
    dated = ChatTemplate.from_source(tiny.CHATML_TEMPLATE + "{{ strftime_now('%Y') }}")
    changes: list[tuple[Tokenizer, ChatTemplate, dict[str, Any]]] = [
        (llama3, ALPACA, {}),
        (llama3, VICUNA, {}),
        (other, ALPACA, {}),
        (stopped, ALPACA, {}),
        (llama3, ALPACA, {"train_on": "all"}),
        (llama3, ALPACA, {"max_length": 50}),
        (llama3, ALPACA, {"max_length": 50, "on_long": "cut"}),
        (llama3, ALPACA, {"limit": 10}),
        (llama3, ALPACA, {"limit": 10, "seed": 1}),
        (llama3, ALPACA, {"columns": {"output": "{output}!"}}),
        (llama3, dated, {"template_date": "2024-01-02"}),
        (llama3, dated, {"template_date": "2025-01-02"}),
    ]
    for number, (tokenizer, template, options) in enumerate(changes, 1):
        plain = load(tokenizer, template, train=str(path), **options, cache=False)
        encoded.clear()
        assert told(load(tokenizer, template, train=str(path), **options)) == told(plain)
        assert encoded and len(list(kept.iterdir())) == number
    stamp, text = path.stat(), path.read_bytes()
    path.write_bytes(text.replace(b"row 7", b"rov 7"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    encoded.clear()
    assert "rov 7" in llama3.decode(load(llama3, train=str(path)).train[7].tokens.tolist()) and len(encoded) == 40
    encoded.clear()
    monkeypatch.setattr(cache_key, "_code", lambda: "another version")
    load(llama3, train=str(path))
    assert len(encoded) == 40
    print(f"{len(changes) + 2} changes, none read from a stale entry")


def test_a_large_file_is_known_by_its_stamp(
    llama3: Tokenizer, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are read once, unless it was written to a moment ago."""
    monkeypatch.setattr(cache_key, "LARGE_BYTES", 1000)
    read: list[str] = []
    real = cache_key._digest
    monkeypatch.setattr(cache_key, "_digest", lambda path: read.append(path) or real(path))
    path = write(tmp_path / "a.jsonl", rows(40))
    for _ in range(2):
        load(llama3, train=path)
    assert len(read) == 2
    os.utime(path, ns=(0, time.time_ns() - 10**10))
    for _ in range(3):
        load(llama3, train=path)
    assert len(read) == 3
    write(tmp_path / "a.jsonl", rows(41))
    os.utime(path, ns=(0, time.time_ns() - 10**10))
    assert len(load(llama3, train=path).train) == 41 and len(read) == 4


def flips(entry: Path, count: int) -> Any:
    """One bit after another turned in the files of an entry, and turned back."""
    random = np.random.default_rng(0)
    files = sorted(entry.iterdir())
    for number in range(count):
        file = files[number % len(files)]
        data = file.read_bytes()
        place = int(random.integers(len(data)))
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << int(random.integers(8))]) + data[place + 1 :])
        yield file
        file.write_bytes(data)


def test_damage_is_found(
    llama3: Tokenizer, tmp_path: Path, kept: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 flipped bits, a shortened, a lengthened and a missing file: the rows are those of a load without cache; of
    entries too large to be read whole at the start, no damaged row is handed out."""
    path = write(tmp_path / "a.jsonl", rows(25))
    plain = told(load(llama3, train=path, cache=False))
    load(llama3, train=path)
    (entry,) = kept.iterdir()
    anew = 0
    for _ in flips(entry, 60):
        encoded.clear()
        found = cache_entry.open_entry(entry)
        if found is None:
            anew += 1
            continue
        assert told(load(llama3, train=path)) == plain  # a flip in the manifest that changes nothing that is read
    monkeypatch.setattr(cache_entry, "WHOLE_BYTES", 0)
    refused = 0
    for file in flips(entry, 60):
        if file.suffix == ".bin":
            with pytest.raises(Refusal) as caught:
                list(load(llama3, train=path).train)
            assert caught.value.id == "tokens-damaged" and file.name in str(caught.value)
            refused += 1
    print(f"{anew} of 60 flips made the rows anew; {refused} of {refused} refused row by row")
    assert anew > 50 and refused > 30
    for damage in (
        lambda f: f.write_bytes(f.read_bytes()[:-1]),
        lambda f: f.write_bytes(f.read_bytes() + b"x"),
        Path.unlink,
    ):
        for name in ("rows-00000.bin", cache_entry.INDEX, cache_entry.MANIFEST):
            (entry,) = kept.iterdir()
            damage(entry / name)
            assert told(load(llama3, train=path)) == plain


def test_a_file_that_grows_shorter_while_it_is_used(llama3: Tokenizer, tmp_path: Path, kept: Path) -> None:
    path = write(tmp_path / "a.jsonl", rows(25))
    load(llama3, train=path)
    train = load(llama3, train=path).train
    for file in kept.glob("*/rows-*.bin"):
        os.truncate(file, 3)
    with pytest.raises(Refusal, match="tokens-damaged"):
        list(train)


def test_a_file_that_is_written_to_while_it_is_read(
    llama3: Tokenizer, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", rows(25))
    real = tokenise.Encoder.fitted

    def fitted(self: Any, example: Any, meant: Any) -> Any:
        if example.origin.endswith(":20"):
            with open(path, "a") as file:
                file.write("\n")
        return real(self, example, meant)

    monkeypatch.setattr(tokenise.Encoder, "fitted", fitted)
    with pytest.raises(Refusal, match="data-changed"):
        load(llama3, train=path)
    assert not list(kept.iterdir())


def test_the_cache_is_bounded(llama3: Tokenizer, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry used longest ago goes first; one in use, strangers' folders and fresh leftovers stay; 0 keeps none."""
    paths = [write(tmp_path / f"{n}.jsonl", rows(60, f"file {n}")) for n in range(4)]
    load(llama3, train=paths[0])
    (first,) = kept.iterdir()
    size = sum(file.stat().st_size for file in first.iterdir())
    (kept / "mine").mkdir()
    (kept / ".x.partial-1").mkdir()
    (kept / ".y.partial-2").mkdir()
    os.utime(kept / ".y.partial-2", (0, 0))
    monkeypatch.setenv("HALTER_CACHE_GB", str(2.5 * size / 1e9))
    load(llama3, train=paths[1])
    (second,) = set(kept.glob("[0-9a-f]*")) - {first}
    load(llama3, train=paths[0])  # used again, so the second is older now
    load(llama3, train=paths[2])
    names = {path.name for path in kept.iterdir()}
    assert first.name in names and second.name not in names and len(names) == 4
    assert names > {"mine", ".x.partial-1"}
    monkeypatch.setenv("HALTER_CACHE_GB", str(0.1 * size / 1e9))
    assert len(load(llama3, train=paths[3]).train) == 60  # larger than the bound: its rows are needed now
    assert len(list(kept.glob("[0-9a-f]*"))) == 1
    monkeypatch.setenv("HALTER_CACHE_GB", "0")
    load(llama3, train=paths[1])
    assert len(list(kept.glob("[0-9a-f]*"))) == 1


def test_without_room_or_rights_it_goes_on_in_memory(
    llama3: Tokenizer, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", rows(60))
    plain = told(load(llama3, train=path, cache=False))

    def full(path: Path, data: Any, **_: Any) -> None:
        from halter.errors import HalterError

        raise HalterError(f"{path}: could not be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_entry, "write_bytes", full)
        assert told(load(llama3, train=path)) == plain
    kept.parent.mkdir(exist_ok=True)
    assert not kept.exists() or not list(kept.iterdir())
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "a.jsonl"))  # a file where a folder should be
    assert told(load(llama3, train=path)) == plain


def test_off_is_off(llama3: Tokenizer, tmp_path: Path, kept: Path) -> None:
    load(llama3, train=write(tmp_path / "a.jsonl", rows(60)), cache=False)
    assert not kept.exists()


def test_an_account_that_was_changed_is_made_anew(llama3: Tokenizer, tmp_path: Path, kept: Path) -> None:
    """Every digit of the manifest, which says what became of the rows, is guarded by its own digest."""
    path = write(tmp_path / "a.jsonl", rows(25))
    plain = told(load(llama3, train=path))
    for digit in ("1", "7"):
        (entry,) = kept.iterdir()
        manifest = entry / cache_entry.MANIFEST
        text = manifest.read_text()
        assert '"rows": 25' in text
        manifest.write_text(text.replace('"rows": 25', f'"rows": {digit}'))
        assert told(load(llama3, train=path)) == plain
