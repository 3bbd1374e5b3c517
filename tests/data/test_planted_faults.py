"""What is wrong with data, in the numbers that were promised: bad rows, long rows, rows without targets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_tokenizers
import torch
from own_data import Own

import halter.run.session as session
from halter.adapters.adapter import adapt
from halter.cli import main
from halter.data.example import Example
from halter.data.examples import Examples
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.data.order import plan_epoch
from halter.data.pack import pack
from halter.errors import Refusal
from halter.methods.lora import Lora
from halter.run import held
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer
from halter.training import optimizers, schedule
from halter.training.step import take_step
from halter.training.trainee import Trainee

ALPACA = ChatTemplate.builtin("alpaca")
LINES, EACH = 10_000, 10


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(tiny_tokenizers.llama3(tmp_path_factory.mktemp("llama3")))


def messages(number: int, answer: Any, **more: Any) -> bytes:
    said = [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": answer, **more}]
    return json.dumps({"id": number, "messages": said}).encode()


BAD = {
    "broken JSON": lambda n: messages(n, "A")[:-1],
    "NUL": lambda n: b'{"id": %d, "messages": "\0"}' % n,
    "broken JSON: byte order mark": lambda n: b"\xef\xbb\xbf" + messages(n, "A"),
    "invalid UTF-8": lambda n: messages(n, "A").replace(b'"A"', b'"\xe4"'),
    "lone surrogate": lambda n: messages(n, "\ud800"),
    "empty line": lambda n: b"",
    "missing key": lambda n: json.dumps({"id": n, "text": "A"}).encode(),
    "wrong type": lambda n: messages(n, 3),
    "empty answer": lambda n: messages(n, " "),
    "no token to learn": lambda n: messages(n, "A", loss=False),
    "duplicate id": lambda n: messages(1, "A"),
    "a line of": lambda n: messages(n, "x" * (10 << 20)),
}
"""{kind as it is told: the line}"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """10,000 lines with 120 faults of 12 kinds; {line: kind}."""
    path = tmp_path_factory.mktemp("planted") / "rows.jsonl"
    places = np.random.default_rng(0).permutation(np.arange(3, LINES + 1))[: EACH * len(BAD)].tolist()
    kinds = {line: list(BAD)[number % len(BAD)] for number, line in enumerate(places)}
    with path.open("wb") as file:
        for line in range(1, LINES + 1):
            file.write((BAD[kinds[line]](line) if line in kinds else messages(line, f"A{line}")) + b"\n")
    return path, kinds


def test_bad_rows_are_all_named_in_one_pass(llama3: Tokenizer, planted: tuple[Path, dict[int, str]]) -> None:
    """Entry 23 of the promises: 120 of 120 as file:line: kind; skipping trains on exactly 9,880 rows, and says so."""
    path, kinds = planted
    with pytest.raises(Refusal) as caught:
        load_examples(DataOptions(train=str(path), id_column="id"), llama3, ALPACA)
    told = {int(o.removeprefix(f"{path}:").split(":")[0]): o.split(": ", 1)[1] for o in caught.value.found}
    right = sum(told.get(line, "").startswith(kind) for line, kind in kinds.items())
    loaded = load_examples(DataOptions(train=str(path), on_bad="skip", id_column="id"), llama3, ALPACA)
    report = loaded.report.as_dict()
    print(f"{right} of {len(kinds)} planted faults named; skip trains on {len(loaded.train):,} rows")
    assert right == len(kinds) == len(told) == len(caught.value.found) == 120
    assert caught.value.exit_code == 2 and caught.value.id == "bad-rows" and "data.id_column" in caught.value.fix
    assert len(loaded.train) == report["kept"] == 9_880 and "9880 rows" in str(loaded.report)
    assert (report["bad"], report["empty_lines"], len(report["empty_at"])) == (110, 10, 10)
    assert {int(loaded.train.origin(i).rsplit(":", 1)[1]) for i in range(9_880)}.isdisjoint(kinds)


def test_bad_rows_stop_before_the_model_is_loaded(own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(held, "load_model", load_model)
    monkeypatch.chdir(tmp_path)
    model = str(own.base)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([messages(1, "A"), *(line(n) for n, line in enumerate(BAD.values(), 2))]))
    command = ["train", "--model", model, "--data", str(path), "--data.template", "alpaca"]
    assert main.run([*command, "--output", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_skipping_trains_on_the_rest_and_the_run_says_how_many(own: Own, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*(messages(n, f"A{n}") for n in range(1, 31)), *(line(99) for line in BAD.values())]))
    model = {"path": str(own.base), "device": "cpu"}
    data = {"train": str(path), "template": "alpaca", "on_bad": "skip", "id_column": "id"}
    recipe = {
        "model": model,
        "method": {"name": "lora", "r": 2},
        "data": data,
        "train": {"max_steps": 1},
        "output_dir": str(tmp_path / "run"),
    }
    run = session.train(recipe, say=lambda _: None)
    assert run is not None
    told = json.loads((run / "data.json").read_text())
    assert (told["kept"], told["bad"], len(told["faults"]), told["empty_lines"]) == (30, 11, 11, 1)


def test_ids_may_repeat_where_they_say_nothing(llama3: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"id": n % 3, "name": n // 2, "text": f"row {n}"} for n in range(6)] + [{"id": "0", "name": 7, "text": "x"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def kept(**options: Any) -> int:
        return len(load_examples(DataOptions(train=str(path), on_bad="skip", **options), llama3, None).train)

    assert (kept(), kept(id_column="id"), kept(id_column=None), kept(id_column="name")) == (7, 4, 7, 4)


LIMIT = 40


def long_rows() -> list[tuple[int, int]]:
    """1,000 (prompt, answer) lengths in tokens, whose rows have LIMIT -1, +0, +1, x2, x50 tokens, 200 each; answers
    from one token to all but one."""
    random = np.random.default_rng(1)
    rows = []
    for total in [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 50 * LIMIT] * 200:
        prompt = int(random.integers(1, total))
        rows.append((prompt, total - prompt))
    return rows


@pytest.mark.parametrize("policy", ["drop", "cut", "split", "stop"])
def test_long_rows_meet_their_policy(llama3: Tokenizer, tmp_path: Path, policy: str) -> None:
    """Entry 24: each row is what its policy says, every one is counted, and none loses its whole answer."""
    path = tmp_path / "a.jsonl"
    rows = long_rows()
    with path.open("w") as file:
        for prompt, answer in rows:
            ids = [9 + place % 90 for place in range(prompt + answer)]
            labels = [-100] * prompt + ids[prompt:]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    options: dict[str, Any] = {"train": str(path), "max_length": LIMIT, "on_long": policy}
    if policy == "stop":
        with pytest.raises(Refusal) as caught:
            load_examples(DataOptions(**options), llama3, None)
        assert (caught.value.id, len(caught.value.found)) == ("long-rows", 600)
        print("stop: 600 of 600 named")
        return
    loaded = load_examples(DataOptions(**options), llama3, None)
    report = loaded.report
    pieces: dict[int, list[Example]] = {}
    for example in loaded.train:
        pieces.setdefault(int(example.origin.rsplit(":", 1)[1]), []).append(example)
    fates = Counter[str]()
    for line, (prompt, answer) in enumerate(rows, 1):
        got = pieces.get(line, [])
        learnt = sum(example.targets for example in got)
        if prompt + answer <= LIMIT:
            assert [len(e.tokens) for e in got] == [prompt + answer] and learnt == answer
            continue
        fate = "dropped" if policy == "drop" or (policy == "cut" and prompt >= LIMIT) else policy
        fates[fate] += 1
        assert all(0 < len(e.tokens) <= LIMIT and e.targets for e in got)
        wanted = {"dropped": 0, "cut": LIMIT - prompt, "split": answer}[fate]
        assert learnt == wanted and bool(got) == (fate != "dropped")
    counted = {"dropped": report.long_dropped, "cut": report.long_cut, "split": report.long_split}
    print(f"{policy}: {dict(fates)}, counted {counted}, 0 silent")
    assert {k: v for k, v in counted.items() if v} == dict(fates) and report.long == fates.total() == 600
    assert len(report.long_shown) == 20 and report.long_shown[0].startswith(f"{path}:3: 41 tokens, ")


def test_the_defaults_stop_on_bad_rows_and_drop_long_ones() -> None:
    options = DataOptions(train="x")
    assert (options.on_bad, options.on_long) == ("stop", "drop")


def test_no_targets_no_division() -> None:
    """Entry 25: 100 random mixes of rows with and without targets. The plan leaves the latter out; given all the same,
    they change no loss; a step of nothing else has loss 0 and moves no weight; nothing is divided by 0."""
    model = tiny.decoder()
    adapter = adapt(model, [Lora(r=2, alpha=4)], seed=0)
    tiny.jitter(adapter)
    rate = 1e-3
    optimizer = optimizers.make("adamw", adapter.groups(rate, 0.1), rate, (0.9, 0.999), 1e-8, lambda _: None)
    trainee = Trainee(
        adapter, optimizer, schedule.make("constant", 200, 0), torch.amp.GradScaler("cpu", enabled=False), 1.0
    )
    random = np.random.default_rng(0)
    empty = 0
    for _ in range(100):
        rows = []
        for number in range(int(random.integers(1, 7))):
            length = int(random.integers(1, 12))
            supervised = random.random(length) < 0.5 * (random.random() < 0.5)
            rows.append(Example(random.integers(3, 96, length).astype(np.int32), supervised, f"x:{number}"))
        held = Examples(rows)
        planned = plan_epoch(held.lengths, held.targets, seed=0, epoch=0, rows_per_step=2)
        assert sorted(r for step in planned for m in step for r in m) == [i for i, e in enumerate(rows) if e.targets]
        before = {name: p.detach().clone() for name, p in adapter.named_parameters()}
        micros = [[pack([row])] for row in rows]
        (record,) = take_step(model, [trainee], micros)
        after = {name: p.detach().clone() for name, p in adapter.named_parameters()}
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                parameter.copy_(before[name])
        assert np.isfinite(record.loss) and np.isfinite(record.grad_norm)
        assert record.target_tokens == sum(row.targets for row in rows)
        learning = [row for row in rows if row.targets]
        moved = any(not torch.equal(before[name], after[name]) for name in before)
        assert moved == bool(learning)
        if learning:
            (alone,) = take_step(model, [trainee], [[pack(learning)]])
            assert record.loss == pytest.approx(alone.loss, rel=1e-6)
        else:
            empty += 1
            assert record.loss == 0 and record.grad_norm == 0
        assert all(torch.isfinite(p).all() for p in adapter.parameters())
    print(f"100 mixes, {empty} of them without any target: every loss finite")
    assert 5 < empty < 60
