"""What the bench measures: the rows of its table, the model's shape, the data. No torch: a fresh process reads it fast.

The model is 4 layers of the Llama-3.2-1B shape with random weights, written once as a bf16 Hugging Face folder that
every side loads; the rows of data are random tokens of fixed seed, the second half of each supervised.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["step", "several", "evaluate", "decode", "load", "start"]
QV, ALL = ["q_proj", "v_proj"], "all-linear"


@dataclass(frozen=True)
class Setting:
    """The sizes that a run may change: all of them are in the record."""

    preset: str = "llama-3.2-1b"
    layers: int = 4
    changes: dict[str, Any] = field(default_factory=dict)
    """Other fields of the preset's shape."""
    rows: int = 8
    shortest: int = 40
    longest: int = 400
    seed: int = 0
    dtype: str = "bfloat16"
    threads: int = 2
    warm: int = 1
    steps: int = 2
    new_tokens: int = 16
    prompt_tokens: int = 128
    rank: int | None = None
    """Of LoRA, where growth changes it."""
    rungs: int | None = None
    """How many techniques of the ladder are on; all where not given."""

    def as_json(self) -> str:
        return json.dumps(asdict(self))


WARM_PROMPTS = 3
"""Answers of one token before a decode row: the first take up to twice as long, and are taken off the long ones."""


@dataclass(frozen=True)
class Work:
    """One row of the table."""

    name: str
    kind: Kind
    method: dict[str, Any] | None = None
    """Name and options of the method, as halter.adapt takes them."""
    quantize: Literal["nf4"] | None = None
    sides: tuple[str, ...] = ("halter", "peer", "limit")
    batch: int = 1
    """Prompts of a decode row."""
    data: str = "random"
    setting: dict[str, Any] = field(default_factory=dict)
    """What this row changes in the setting."""
    tolerance: float = 0.004
    """Relative difference allowed between the sides' losses: bf16 keeps 8 bits, NF4 quantisers round alike."""
    grad_tolerance: float = 0.05
    """The same for the gradient norms."""
    usual: bool = True
    """Part of the table when no names are given."""
    note: str = ""

    @property
    def trains(self) -> bool:
        return self.kind in ("step", "several")

    def at(self, base: Setting) -> Setting:
        return replace(base, **self.setting)

    def ranked(self, setting: Setting) -> Work:
        """With the rank that a setting asks for."""
        if setting.rank is None or self.method is None:
            return self
        return replace(self, method={**self.method, "r": setting.rank, "alpha": 2 * setting.rank})


def lora(r: int, targets: Any) -> dict[str, Any]:
    return {"name": "lora", "r": r, "alpha": 2 * r, "target_modules": targets}


THREE = ("halter", "peer", "second_peer", "limit")
FOUR = ("halter", "peer", "second_peer", "litgpt", "limit")
ADAPTION = {"name": "llama_adapter", "gate_scope": "layer", "gate_activation": "identity"}
EVERY_LAYER = {"layers": 16}
WORKS = (
    Work("lora-qv-step", "step", lora(8, QV), sides=FOUR),
    Work("lora-all-step", "step", lora(16, ALL), sides=FOUR),
    Work("qlora-step", "step", lora(16, ALL), "nf4", sides=THREE, tolerance=0.01, grad_tolerance=0.1),
    Work("llama_adapter-step", "step", ADAPTION),
    Work("excitor-step", "step", {"name": "excitor"}, sides=("halter", "limit"), note="no peer has this method"),
    Work("full-step", "step", {"name": "full"}, note="peer: transformers alone, all in bf16; Halter's in float32"),
    Work("evaluate", "evaluate"),
    Work("decode-1", "decode", batch=1),
    Work("decode-8", "decode", batch=8),
    Work("decode-32", "decode", batch=32),
    Work("decode-nf4-1", "decode", quantize="nf4", batch=1),
    Work(
        "eight-adapters",
        "several",
        lora(16, ALL),
        sides=("halter", "alone", "limit"),
        note="a LoRA a row, trained together; alone: one after the other",
    ),
    Work(
        "decode-mixed-32",
        "decode",
        lora(16, ALL),
        sides=("halter", "alone"),
        batch=32,
        note="a LoRA a prompt; alone: one LoRA for all",
    ),
    Work("load", "load", note="from the start of loading to the first token"),
    Work("load-nf4", "load", quantize="nf4", note="from the start of loading to the first token"),
    Work("start-help", "start", sides=("halter",), note="halter --help, seconds"),
    Work("start-import", "start", sides=("halter", "peer"), note="import halter; import peft, seconds"),
    Work("lora-all-step-1b", "step", lora(16, ALL), setting=EVERY_LAYER, usual=False, note="16 layers"),
    Work("alpaca-lora-step", "step", lora(16, ALL), data="alpaca", usual=False),
    Work("gsm8k-lora-step", "step", lora(16, ALL), data="gsm8k", usual=False),
    Work("long-4096", "step", lora(16, ALL), setting={"rows": 1, "shortest": 4096, "longest": 4096}, usual=False),
    Work("long-16384", "step", lora(16, ALL), setting={"rows": 1, "shortest": 16384, "longest": 16384}, usual=False),
)
REAL = ("lora-all-step-1b", "alpaca-lora-step", "gsm8k-lora-step")


def find(name: str) -> Work:
    for work in WORKS:
        if work.name == name:
            return work
    raise SystemExit(f"no row is called {name}; there are: {', '.join(work.name for work in WORKS)}")


def cache() -> Path:
    """Where models and first adapters are kept between runs (HALTER_BENCH_CACHE, or the system's temporary folder)."""
    return Path(os.environ.get("HALTER_BENCH_CACHE") or Path(tempfile.gettempdir()) / "halter-bench")


def model_folder(setting: Setting) -> Path:
    named = {key: getattr(setting, key) for key in ("preset", "layers", "changes", "dtype")}
    return cache() / f"model-{_digest(named)}"


def first_adapter(work: Work, setting: Setting) -> Path:
    """The adapter from which both sides begin, in PEFT's layout."""
    return cache() / f"adapter-{_digest([model_folder(setting).name, work.method])}"


def _digest(named: Any) -> str:
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Row:
    """Token ids and the place of the first supervised one."""

    tokens: list[int]
    supervised_from: int

    @property
    def targets(self) -> int:
        return len(self.tokens) - self.supervised_from


def data(work: Work, setting: Setting, vocab_size: int) -> list[Row]:
    """The rows of one step."""
    draw = random.Random(setting.seed)
    if work.data == "random":
        lengths = [draw.randint(setting.shortest, setting.longest) for _ in range(setting.rows)]
        return [Row([draw.randrange(ids(vocab_size)) for _ in range(n)], n // 2) for n in lengths]
    rows = [json.loads(line) for line in (cache() / f"{work.data}.jsonl").read_text().splitlines()]
    chosen = draw.sample(rows, setting.rows)
    return [Row([id % ids(vocab_size) for id in row["tokens"]], row["prompt"]) for row in chosen]


def prompts(work: Work, setting: Setting, vocab_size: int) -> list[list[int]]:
    """Equally long prompts of random tokens."""
    draw = random.Random(setting.seed + 1)
    return [[draw.randrange(ids(vocab_size)) for _ in range(setting.prompt_tokens)] for _ in range(work.batch)]


def ids(vocab_size: int) -> int:
    """Ids below this are plain tokens; above lie the control tokens."""
    return vocab_size - 256 if vocab_size > 1024 else vocab_size - 8
