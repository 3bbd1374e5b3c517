"""What a comparison is asked for, declared once: the `compare` section of its recipe, its flags and their help."""

from __future__ import annotations

from dataclasses import dataclass

from halter.errors import Refusal
from halter.evaluation.options import TaskOptions
from halter.files.dtype_names import long_name
from halter.model.storages import STORAGES

METHODS = ("full", "lora", "llama_adapter", "llama_adapter_v2", "excitor")
"""The survey's methods, and the baseline that it lacks."""
PRECISIONS = ("auto", "float32", "bfloat16", "float16", *STORAGES)


@dataclass(frozen=True)
class CompareOptions(TaskOptions):
    """Options of a comparison. Refusal ``compare-options`` names every value that makes no sense."""

    test: str | None = None
    """Rows that the scores are taken on, and nothing else: a file that training never sees."""
    general: str | None = None
    """Texts of another kind (a file with a column text): how much worse they get is the forgetting."""
    methods: tuple[str, ...] = METHODS
    """Methods, also separated by commas; lora+excitor trains two together. A name of compare.variants stands for its
    method section."""
    precisions: tuple[str, ...] = ("auto", "nf4")
    """How the base is held, also separated by commas: auto (the checkpoint's 16 bits, or fp32), float32, bfloat16,
    float16, int8, nf4."""
    tokens: int | None = None
    """Training tokens of every run, prompts included. Not given: three epochs of the training rows, at most
    300,000."""
    validation: float = 0.1
    """Share of the training rows that learning rates are chosen on, at most 200 of them, where data.validation says
    nothing."""
    limit: int | None = None
    """Training rows taken at most, chosen by the seed."""
    seeds: int = 5
    """Runs of every method with its chosen learning rate."""
    search_trials: int = 4
    """Learning rates tried for every method from its default on, each where those before it point; half of them go on
    at each round, with twice the tokens."""
    together: int | None = None
    """Trials of a search that are trained at once over one base, as far as memory allows. Not given: 4 on an
    accelerator, 1 on a CPU, where sharing micro-batches gains nothing (measured: 0 to 20 % slower)."""
    questions: int = 100
    """Test rows that are answered, at most; the loss is over all of them. 0: none."""
    max_new_tokens: int = 128
    """Most tokens of an answer."""
    choices: tuple[str, ...] = ()
    """An answer that a test row can have; with all of them given, the one with the lowest loss is taken as chosen, and
    the share of right ones, over all test rows, is the choice accuracy."""
    resamples: int = 2000
    """Draws of the bootstrap behind intervals and ties."""
    skip_memory: bool = False
    """Do not measure memory, which takes a fresh process for every row."""
    seed: int = 0
    """Of the split, the search, the bootstrap; runs have this seed and the next ones."""

    def __post_init__(self) -> None:
        for name in ("methods", "precisions"):
            words = [w.strip() for item in getattr(self, name) for w in str(item).split(",")]
            object.__setattr__(self, name, tuple(dict.fromkeys(long_name(w) for w in words if w)))
        wrong = [f"{n}: must be above 0, not {v}" for n, v in self._numbers().items() if v <= 0]
        wrong += [f"{n}: must not be negative" for n in ("questions", "seed") if getattr(self, n) < 0]
        wrong += self.wrong_numbers()
        wrong += [] if 0 < self.validation < 1 else [f"validation: a share below 1, not {self.validation}"]
        wrong += [f"precisions: {p} is none of {', '.join(PRECISIONS)}" for p in self.precisions if p not in PRECISIONS]
        wrong += [f"{name}: none is named" for name in ("methods", "precisions") if not getattr(self, name)]
        if wrong:
            raise Refusal(
                "compare-options",
                "options of a comparison that cannot be used",
                found=wrong,
                fix="change these; halter compare --help has every option with its default",
            )

    def _numbers(self) -> dict[str, float]:
        names = ("seeds", "search_trials", "max_new_tokens", "resamples")
        rest = ("tokens", "limit", "together")
        given = {name: getattr(self, name) for name in rest if getattr(self, name) is not None}
        return {name: getattr(self, name) for name in names} | given
