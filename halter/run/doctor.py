"""What this machine has for Halter: cores, memory, versions, devices, kernels, extras, cache folders."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from halter import waiting
from halter.files.caches import cache_folder
from halter.files.extras import install
from halter.numerics import int8_product, nf4_kernels, spinning, threads
from halter.pretrained.device import choose_device, cpu_has_bf16
from halter.run.cautions import of_environment
from halter.run.checks_machine import gib, nearest
from halter.run.estimate import free_bytes
from halter.version import __version__

PACKAGES = (
    "torch",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pydantic",
    "typer",
    "rich",
    "ruamel.yaml",
    "jinja2",
    "bitsandbytes",
)
EXTRAS = {
    "captions": "CIDEr-D, BLEU and ROUGE-L of captions (needs Java)",
    "data": "data sets of the hub, and parquet files",
    "eval": "ROUGE in halter evaluate, BLEU, and the public harness's tasks",
    "meta": "tokenizer.model files of Meta's folders (SentencePiece, tiktoken)",
    "report": "figures",
    "serve": "halter serve: answers over HTTP, as OpenAI's API has them",
    "track": "TensorBoard and Weights & Biases beside metrics.jsonl",
    "vision": "pictures in rows and in what is asked",
}
"""{extra: what it brings}; a test holds it to the extras that the package declares."""
PROGRAMS = {"tesseract": "texts of pictures (reader ocr)"}
"""{program of the system's packages: what it brings}."""
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
VARIABLES = (
    "HALTER_",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
)
"""Beginnings of the names of variables that matter."""


def report() -> dict[str, Any]:
    """Everything, as plain data for JSON; memory and disk in bytes."""
    return {
        "halter": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": machine(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "devices": devices(),
        "kernels": kernels(),
        "extras": extras(),
        "folders": folders(),
        "programs": {name: {"brings": brings, "path": shutil.which(name)} for name, brings in PROGRAMS.items()},
        "environment": {name: _shown(name) for name in sorted(os.environ) if name.startswith(VARIABLES)},
        "warnings": of_environment(),
    }


def _shown(variable: str) -> str:
    """A variable's value; of a key that it is set, as what is said here is shown to others."""
    return "(set, not shown)" if variable.endswith("_KEY") else os.environ[variable]


def version_of(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """System, cores, threads, memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "threads": threads.choose().facts(),
        "waiting": {
            "by": waiting.HOW,
            "watched": spinning.can_watch(),
            **{name: os.environ.get(name) for name in waiting.THEIRS},
        },
        "memory_bytes": total,
        "memory_free_bytes": free_bytes(torch.device("cpu")),
    }


def waiting_words(found: dict[str, Any]) -> str:
    """How threads wait for one another, by whom, and why."""
    values = ", ".join(f"{name}={found[name]}" for name in waiting.THEIRS if found.get(name) is not None)
    if found["by"] == "user":
        return f"waiting of threads: {values or 'HALTER_WAITING'} (set by you; Halter changes nothing)"
    if found["watched"]:
        return (
            "waiting of threads: as torch has it; while other programs keep cores busy, those that wait sleep soon "
            f"(Halter looks every {spinning.EVERY:g} s; HALTER_WAITING=off leaves them alone)"
        )
    if found["by"] == "halter":
        return f"waiting of threads: {values} (set by Halter, for the OpenMP of LLVM and Intel: threads sleep soon)"
    return (
        "waiting of threads: cannot be set, torch was imported before halter; beside busy programs runs may be many "
        "times slower (import halter first, or set OMP_WAIT_POLICY=PASSIVE)"
    )


def devices() -> list[dict[str, Any]]:
    """What a model may be computed on; the first accelerator is taken where a recipe names none."""
    found: list[dict[str, Any]] = [{"device": "cpu", "name": platform.processor() or platform.machine()}]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        found.append(
            {
                "device": f"cuda:{number}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": total,
                "memory_free_bytes": free,
                "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            }
        )
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return found


def kernels() -> dict[str, Any]:
    """Which fast ways there are here; without them the same is computed in plain torch."""
    on_cuda = torch.cuda.is_available()
    try:
        library: Any = nf4_kernels.import_bitsandbytes()
    except Exception as error:  # a broken native library raises what it likes
        library, why = None, str(error).splitlines()[0] if str(error) else type(error).__name__
    else:
        why = ""
    return {
        "taken": str(choose_device(None)),
        "flash_attention_cpu": torch._C._dispatch_has_kernel_for_dispatch_key(FLASH, "CPU"),
        "bf16_instructions_cpu": cpu_has_bf16(),
        "nf4_cpu": nf4_kernels.kernels(),
        "int8_cpu": int8_product.quick(64, 64),
        "bitsandbytes": library is not None,
        "bitsandbytes_missing_because": why,
        "bitsandbytes_cuda": library is not None and on_cuda and _runs_on_cuda(library),
        "cuda_build": torch.version.cuda,
    }


def _runs_on_cuda(library: Any) -> bool:
    try:
        library.functional.quantize_4bit(torch.ones(64, 64, device="cuda"), quant_type="nf4")
    except Exception:  # whatever a broken native library raises
        return False
    return True


def extras() -> dict[str, dict[str, Any]]:
    """{extra: what it brings, and which of its packages are missing}, of this installation's own metadata."""
    try:
        lines = metadata.requires("halter") or []
    except metadata.PackageNotFoundError:  # a source tree that was never installed
        lines = []
    found: dict[str, dict[str, Any]] = {name: {"brings": words, "missing": []} for name, words in EXTRAS.items()}
    for line in lines:
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra\s*==\s*[\"']([\w-]+)", line)
        if name and extra and extra[1] in found and version_of(name[0]) is None:
            found[extra[1]]["missing"].append(name[0])
    return found


def folders() -> dict[str, dict[str, Any]]:
    """Where Halter and the hub's client keep things, and the room that is left there."""
    places = {"cache": cache_folder(), "hub": Path(huggingface_hub.constants.HF_HUB_CACHE), "here": Path.cwd()}
    return {
        name: {"path": str(place), "exists": place.is_dir(), "free_bytes": shutil.disk_usage(nearest(place)).free}
        for name, place in places.items()
    }


def as_text(found: Mapping[str, Any]) -> str:
    """The report for people."""
    here, kernel = found["machine"], found["kernels"]
    lines = [
        f"halter {found['halter']}, Python {found['python']['version']}, {here['system']}",
        f"cores: {here['cores']} ({here['cores_usable']} usable), memory: {gib(here['memory_bytes'])} "
        f"({gib(here['memory_free_bytes'])} free)",
        threads.Threads(**here["threads"]).words() + "; a run that begins now has as many",
        waiting_words(here["waiting"]),
        "versions: " + ", ".join(f"{name} {version or 'missing'}" for name, version in found["versions"].items()),
        "devices:",
    ]
    for device in found["devices"]:
        room = (
            f", {gib(device['memory_free_bytes'])} of {gib(device['memory_bytes'])} free"
            if "memory_bytes" in device
            else ""
        )
        taken = " (taken where a recipe names none)" if device["device"].split(":")[0] == kernel["taken"] else ""
        lines.append(f"  {device['device']}: {device['name']}{room}{taken}")
    words = {True: "yes", False: "no"}
    lines += [
        "kernels:",
        f"  flash attention on the CPU: {words[kernel['flash_attention_cpu']]}",
        f"  bf16 instructions of the CPU: {words[kernel['bf16_instructions_cpu']]}"
        + ("" if kernel["bf16_instructions_cpu"] else " (16-bit checkpoints are computed in float32)"),
        f"  NF4 on the CPU: by {kernel['nf4_cpu']}; bitsandbytes on CUDA: {words[kernel['bitsandbytes_cuda']]}",
        f"  quick 8-bit products of a few bf16 rows on the CPU: {words[kernel['int8_cpu']]}",
    ]
    if kernel["bitsandbytes_missing_because"]:
        lines.append(f"  bitsandbytes cannot be imported: {kernel['bitsandbytes_missing_because']}")
    lines.append("extras:")
    for name, extra in found["extras"].items():
        state = f"missing {', '.join(extra['missing'])}: {install(name)}" if extra["missing"] else "there"
        lines.append(f"  {name}: {extra['brings']} ({state})")
    lines.append("programs:")
    for name, one in found["programs"].items():
        lines.append(f"  {name}: {one['brings']} ({one['path'] or 'missing'})")
    lines.append("folders:")
    lines += [f"  {name}: {f['path']} ({gib(f['free_bytes'])} free)" for name, f in found["folders"].items()]
    lines += [f"environment: {name}={value}" for name, value in found["environment"].items()]
    lines += [f"warning: {line}" for line in found["warnings"]]
    return "\n".join(lines)
