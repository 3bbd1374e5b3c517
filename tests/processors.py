"""Run what computes in the suite as other processors would run it: `make processors`.

    python tests/processors.py [--list] [--only N ...] [--page] [PATH ...]

A processor decides which kernels torch, oneDNN and MKL take, and how many threads sum a product. Each has a variable
that makes it take another processor's. Every value of every variable is run at least once, and as many pairs of values
as eight runs can hold. A variable that is set is not believed: each run must show that it took effect, in a process of
its own beforehand and in every process of the tests; one that did not fails the command. What this processor cannot
do (an instruction set that it lacks) is left out, with the reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/guide/support.md"
BETWEEN = "What was seen so far, ", "## Threads on a shared machine"
"""Where the page's result begins, and what follows it."""
RUNS = 8  # at most
ATEN, ONEDNN, CBWR, INTEL, THREADS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "OMP_NUM_THREADS",
)
UNSET = "not set"
VALUES = {
    ATEN: ["default", "avx2", "avx512"],
    ONEDNN: ["AVX2", "AVX512_CORE", "AVX512_CORE_BF16", "AVX512_CORE_AMX"],
    CBWR: [UNSET, "COMPATIBLE", "AUTO"],  # set to OFF it takes AUTO
    INTEL: ["SSE4_2", "AVX2", "AVX512"],
    THREADS: ["1", "2", "3"],
}
FLAGS = {  # of /proc/cpuinfo, that a value takes
    "avx2": ["avx2", "fma"],
    "AVX2": ["avx2"],
    "avx512": ["avx512f", "avx512bw", "avx512vl", "avx512dq"],
    "AVX512": ["avx512f", "avx512bw", "avx512vl", "avx512dq"],
    "AVX512_CORE": ["avx512f", "avx512bw", "avx512vl", "avx512dq"],
    "AVX512_CORE_BF16": ["avx512_bf16"],
    "AVX512_CORE_AMX": ["amx_tile", "amx_bf16"],
}
ISA = {  # what oneDNN says of itself: (words that it says, words that it does not)
    "AVX2": ("AVX2", "AVX-512"),
    "AVX512_CORE": ("AVX512BW", "bfloat16"),
    "AVX512_CORE_BF16": ("bfloat16", "AMX"),
    "AVX512_CORE_AMX": ("AMX", "nothing"),
}
MKL_SAYS = {"SSE4_2": "SSE4.2", "AVX2": "AVX2)", "AVX512": "AVX-512)"}

COMPUTES = [
    "tests/numerics",
    "tests/model",
    "tests/methods",
    "tests/laws",
    "tests/training",
    "tests/generation",
    "tests/evaluation",
    "tests/export",
    "tests/pretrained",
    "tests/playground/test_base.py",
]
"""What computes. Files, templates, refusals and the command line do not."""
LEFT_OUT = [
    "tests/laws/test_dropped_in.py",  # runs the laws again for one more method
    "tests/laws/test_dropped_in_pages.py",
    "tests/numerics/test_allocation.py",
    "tests/export/test_merge_memory.py",  # bytes, of whatever numbers
    "tests/training/test_load_libraries.py",
    "tests/training/test_guards.py",
    "tests/playground/test_base.py::test_held_out_loss_is_the_published_one",
]
"""Slow, and nothing in it that a kernel decides."""
SWEEPS = [
    "tests/laws",
    "tests/methods/test_pairs_by_equation.py",
    "tests/methods/test_peft_matrix.py",
    "tests/evaluation/test_lm_eval.py",
]
"""Most of the time: the same promise over many methods and options. They run under as few of the settings as hold every
value (``enough``), the rest under all."""


class NotShown(Exception):
    """A variable was set and nothing shows that it took effect."""


@dataclass(frozen=True)
class Seen:
    """What a process says of itself. ``bits``: digests of results, by the kind of product."""

    capability: str
    threads: int
    bits: Mapping[str, str]
    isa: str = ""
    bf16_kernel: str = ""
    mkl: str = ""
    reproducible: str = ""
    """The modes that MKL's calls report (CNR)."""


def observe() -> dict[str, Any]:
    """What torch is here, by its own word and by the bits of what it computes."""
    import torch

    def numbers(rows: int, columns: int) -> torch.Tensor:  # the same on every processor
        return ((torch.arange(rows * columns) * 48271 % 65521).double() / 65521 - 0.5).float().view(rows, columns)

    def digest(value: torch.Tensor) -> str:
        return hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:8]

    x, weight = numbers(64, 512), numbers(256, 512)
    bits = {
        "fp32 product": digest(x @ weight.t()),
        "fp32 product of one row": digest(torch.mv(weight, x[0])),
        "bf16 product": digest(x.bfloat16() @ weight.bfloat16().t()),
        "softmax": digest(x.softmax(-1)),
    }
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "bits": bits,
    }


def pytest_sessionfinish(session: Any) -> None:
    """As a plugin of the tests: each process that ran tests leaves what it observed."""
    folder = os.environ.get("HALTER_PROCESSORS_SEEN")
    if folder and (hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", 0)):
        Path(folder, f"{os.getpid()}.json").write_text(json.dumps(observe()))


def probe(variables: Mapping[str, str]) -> Seen:
    """What a fresh process sees under ``variables``, with what oneDNN and MKL say when they are asked to be verbose."""
    environment = {**bare(), **variables, "MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--probe"], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    said = done.stdout
    (line,) = re.findall(r"^observed (.*)$", said, re.M)
    first = {
        "isa": re.search(r"info,cpu,isa:(.*)", said),
        "bf16_kernel": re.search(r"exec,cpu,matmul,([^,]*),[^,]*,src:bf16", said),
        "mkl": re.search(r"MKL_VERBOSE .*?architecture (.*?) ?processors", said),
    }
    found = {name: match[1] if match else "" for name, match in first.items()}
    modes = " ".join(sorted(set(re.findall(r"CNR:(\w+)", said))))
    return Seen(**json.loads(line), **found, reproducible=modes)


def bare() -> dict[str, str]:
    """The environment without any variable that chooses kernels."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MKL_", "ONEDNN_", "DNNL_", "OMP_", "ATEN_"))}
    return {**kept, "TOKENIZERS_PARALLELISM": "false"}


def variables(setting: Mapping[str, str]) -> dict[str, str]:
    """What to set. MKL, unless it is told not to, takes no more threads than there are cores, and torch then neither;
    threads that wait must sleep where there are more of them than cores."""
    given = {name: value for name, value in setting.items() if value != UNSET}
    return {**given, "MKL_DYNAMIC": "FALSE", "OMP_WAIT_POLICY": "PASSIVE"}


def shown(setting: Mapping[str, str], seen: Seen, plain: Seen) -> list[str]:
    """What shows that each variable took effect in ``seen``, where ``plain`` is a process that has none of them set.

    Raises NotShown for the first that nothing shows.
    """
    return [_shown(name, value, seen, plain) for name, value in setting.items()]


def _shown(name: str, value: str, seen: Seen, plain: Seen) -> str:
    other = [kind for kind, bits in seen.bits.items() if "fp32" in kind and plain.bits.get(kind) != bits]
    says = {
        ATEN: seen.capability,
        ONEDNN: seen.isa,
        CBWR: seen.reproducible,
        INTEL: seen.mkl,
        THREADS: str(seen.threads),
    }[name]
    if name == ATEN:
        took = says == value.upper()
    elif name == ONEDNN:
        took = ISA[value][0] in says and ISA[value][1] not in says
    elif name == INTEL:
        took = MKL_SAYS[value] in says or bool(other)
    else:
        took = says == ("OFF" if value == UNSET else value)
    if not took:
        raise NotShown(f"{name}={value} did not take effect: found {says or 'nothing said'!r}")
    if name == ONEDNN:
        return f"{says}; bf16 product by {seen.bf16_kernel or 'no kernel of oneDNN'}"
    if name in (CBWR, INTEL) and other:
        return f"{says}; other bits: {', '.join(other)}"
    return {ATEN: f"torch says {says}", THREADS: f"{says} threads"}.get(name, says)


@dataclass(frozen=True)
class Processor:
    """``flags`` as /proc/cpuinfo has them; empty where there is no such file."""

    name: str
    vendor: str
    flags: frozenset[str]

    @classmethod
    def here(cls) -> Processor:
        """The one that this runs on."""
        text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        found = {key: re.search(rf"^{key}\s*: (.*)$", text, re.M) for key in ("model name", "vendor_id", "flags")}
        name, vendor, flags = (match[1] if match else "" for match in found.values())
        return cls(name.strip(), vendor, frozenset(flags.split()))

    def cannot(self, name: str, value: str) -> str | None:
        """Why this processor cannot show a value; None if it can."""
        intel = self.vendor == "GenuineIntel"
        if name == THREADS:
            return None
        if "sse2" not in self.flags:
            return "not an x86 processor"
        if name == INTEL and not intel:
            return "MKL takes its kernels by this variable on Intel's processors only; MKL_CBWR stands for it here"
        if name == CBWR and intel:
            return "MKL_ENABLE_INSTRUCTIONS stands for it here"
        lacking = [flag for flag in FLAGS.get(value, []) if flag not in self.flags]
        return f"the processor has no {', '.join(lacking)}" if lacking else None


def values_here(processor: Processor) -> tuple[dict[str, list[str]], dict[str, str]]:
    """(the values that can be shown, by variable; the reasons why the others cannot, by VARIABLE=value)."""
    reasons = {f"{name}={value}": processor.cannot(name, value) for name in VALUES for value in VALUES[name]}
    can = {name: [value for value in VALUES[name] if reasons[f"{name}={value}"] is None] for name in VALUES}
    return {n: v for n, v in can.items() if v}, {k: why for k, why in reasons.items() if why}


def covering(values: Mapping[str, Sequence[str]], runs: int = RUNS) -> list[dict[str, str]]:
    """At most ``runs`` settings that hold every value and as many pairs of values as can be found: each is chosen by
    what it adds, then exchanged as long as that holds more, from several orders of all settings; the same every time.
    """
    settings = [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
    holds = [parts(setting) for setting in settings]

    def worth(some: Sequence[int]) -> tuple[int, int]:
        held = set().union(*(holds[i] for i in some))
        return sum(len(part) == 1 for part in held), len(held)

    best: list[int] = []
    for seed in range(30):
        order = random.Random(seed).sample(range(len(settings)), len(settings))
        taken: list[int] = []
        while len(taken) < runs and worth(taken) < worth(order):
            taken.append(max(order, key=lambda i: worth([*taken, i])))
        for at in range(len(taken)):
            taken[at] = max([taken[at], *order], key=lambda i: worth([*taken[:at], *taken[at + 1 :], i]))
        best = max(best, taken, key=worth)
        each = len(values) * (len(values) - 1) // 2
        if worth(best)[1] - worth(best)[0] == len(best) * each:
            break  # no pair twice: there is no more
    return [settings[i] for i in sorted(best)]


def enough(settings: Sequence[Mapping[str, str]]) -> list[int]:
    """Which of ``settings``, from 1 on, hold every value that all of them hold: as few as can be, the first such."""
    single = [{part for part in parts(setting) if len(part) == 1} for setting in settings]
    whole = set().union(*single)
    sizes = (chosen for size in range(1, len(settings) + 1) for chosen in combinations(range(len(settings)), size))
    return [at + 1 for at in next(chosen for chosen in sizes if set().union(*(single[at] for at in chosen)) == whole)]


def parts(setting: Mapping[str, str]) -> set[frozenset[tuple[str, str]]]:
    """The single values and the pairs of values that a setting holds."""
    items = list(setting.items())
    return {frozenset(part) for size in (1, 2) for part in combinations(items, size)}


def strangers(observed: Sequence[Mapping[str, Any]], seen: Seen) -> list[Mapping[str, Any]]:
    """Which of the tests' processes observed something else than the probe ``seen``."""
    wanted = {key: asdict(seen)[key] for key in ("capability", "threads", "bits")}
    return [one for one in observed if one != wanted]


@dataclass
class Result:
    """One setting's run: how it was shown, what the tests said, seconds of wall clock and of CPU."""

    setting: dict[str, str]
    evidence: list[str]
    said: str = ""
    wall: float = 0.0
    cpu: float = 0.0
    good: bool = False


def what_computes(sweeps: bool) -> list[str]:
    """The tests of one setting, as words for pytest."""
    left = [word for path in LEFT_OUT for word in ("--deselect", path)]
    return [*COMPUTES, *left, *([] if sweeps else [f"--ignore={path}" for path in SWEEPS])]


def run_tests(setting: Mapping[str, str], seen: Seen, chosen: Sequence[str], log: Path) -> Result:
    """Run the tests under ``setting``; every process of theirs must observe what the probe ``seen`` observed."""
    result = Result(dict(setting), [])
    workers = os.environ.get("WORKERS") or str(os.cpu_count() or 1)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "processors", "-n", workers, "--dist", "loadfile", *chosen]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, log.open("w") as out:
        environment = {
            **bare(),
            **variables(setting),
            "HALTER_PROCESSORS_SEEN": folder,
            "PYTHONPATH": str(ROOT / "tests"),
        }
        code = subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT).returncode
        observed = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result.wall = time.perf_counter() - start
    result.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    unlike = strangers(observed, seen)
    closing = [line for line in log.read_text().splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    result.said = closing[-1].strip("= ") if closing else f"pytest ended with {code}"
    if not observed or unlike:
        result.said += f"; the tests' processes are not what the probe was: {unlike[:1] or 'none told'}"
    result.good = code == 0 and bool(observed) and not unlike
    return result


def page(results: Sequence[Result], reasons: Mapping[str, str], processor: Processor) -> str:
    """Markdown: the settings and what came of them."""
    names = [name for name in VALUES if any(name in r.setting for r in results)]
    lines = ["| " + " | ".join([f"`{name}`" for name in names] + ["result"]) + " |", "|---" * (len(names) + 1) + "|"]
    lines += ["| " + " | ".join([*(r.setting[name] for name in names), r.said]) + " |" for r in results]
    held = set().union(*(parts(r.setting) for r in results))
    values, _ = values_here(processor)
    whole = set().union(*(parts(dict(zip(values, c, strict=True))) for c in product(*values.values())))
    pairs = [sum(len(part) == 2 for part in some) for some in (held, whole)]
    cpu, wall = (sum(seconds) / 60 for seconds in zip(*((r.cpu, r.wall) for r in results)))
    lines += [
        "",
        f"On {processor.name}: {pairs[0]} of {pairs[1]} pairs of values; {cpu:.0f} minutes of CPU, "
        f"{wall:.0f} minutes in all.",
    ]
    lines += ["Not possible there:", "", *(f"- `{what}`: {why}" for what, why in reasons.items())]
    return "\n".join(lines) + "\n"


def write_page(text: str) -> None:
    """Put the result where it was told before in the page on what Halter runs on."""
    start, end = BETWEEN
    before, rest = PAGE.read_text().split(start)
    PAGE.write_text(f"{before}{start}of `make processors PAGE=1`:\n\n{text}\n{end}{rest.split(end)[1]}")


def main() -> int:
    """The command; 0 where every setting took effect and every test passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the settings and that they take effect; run no test")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="these settings, by their number")
    parser.add_argument("--page", action="store_true", help=f"write the result into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help="tests to run in place of what computes")
    asked = parser.parse_args()
    if asked.probe:
        import torch

        seen = observe()
        torch.ones(8, 8).to_mkldnn()  # so that oneDNN says what it is, also where torch asks it for no product
        print("observed", json.dumps(seen), flush=True)
        return 0
    processor = Processor.here()
    values, reasons = values_here(processor)
    settings, plain = covering(values), probe({})
    for what, why in reasons.items():
        print(f"not possible here: {what}: {why}")
    logs, results = ROOT / "build/processors", []
    logs.mkdir(parents=True, exist_ok=True)
    for number, setting in enumerate(settings, 1):
        if asked.only and number not in asked.only:
            continue
        print(f"{number} of {len(settings)}: {' '.join(f'{k}={v}' for k, v in setting.items())}")
        try:
            seen = probe(variables(setting))
            evidence = shown(setting, seen, plain)
        except NotShown as error:
            results.append(Result(setting, [], str(error)))
            print(f"    {error}", flush=True)
            continue
        print("    " + "\n    ".join(evidence), flush=True)
        if asked.list:
            results.append(Result(setting, evidence, good=True))
            continue
        chosen = asked.paths or what_computes(number in enough(settings))
        result = run_tests(setting, seen, chosen, log := logs / f"{number}.log")
        result.evidence = evidence
        results.append(result)
        print(f"    {result.said}; {result.cpu:.0f} s of CPU, {result.wall:.0f} s", flush=True)
        if not result.good:
            red = [line for line in log.read_text().splitlines() if line.startswith(("FAILED", "ERROR"))]
            print("\n".join(f"    {line}" for line in red), f"\n    all of it: {log.relative_to(ROOT)}", flush=True)
    if not asked.list:
        print(page(results, reasons, processor))
    if asked.page:
        write_page(page(results, reasons, processor))
    return 0 if results and all(r.good for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
