"""No pickle and no code of strangers: markers planted in every folder that is read, and a scan of the package.

Each payload leaves a file when it runs. They run where they should (the first test), so a marker that stays away tells.
"""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers
import torch
from sealing import reseal
from tiny_models import tiny_llama, write_meta_folder

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.data.load import load_examples
from halter.data.options import DataOptions
from halter.errors import HalterError
from halter.files.runs import RunFolder
from halter.pretrained.load import load, load_model
from halter.recipe import load as load_recipe
from halter.run.opening import find, open_subject
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

PACKAGE = Path(__file__).resolve().parents[1] / "halter"


class Payload:
    """Unpickled, it touches a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def code(marker: Path) -> str:
    return f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass X:\n    pass\nLlamaForCausalLM = Model = X\n"


PICKLES = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "model.pt",
    "model.pkl",
    "tokenizer.pkl",
    "data.pkl",
    "state.pickle",
    "weights.ckpt",
    "consolidated.01.pth",
)
MODULES = (
    "modeling_llama.py",
    "configuration_llama.py",
    "tokenization_llama.py",
    "halter.py",
    "sitecustomize.py",
    "data.py",
    "conftest.py",
    "__init__.py",
    "generate.py",
    "custom_generate/generate.py",
)
AUTO_MAP = {
    "auto_map": {
        "AutoConfig": "configuration_llama.X",
        "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM",
        "AutoTokenizer": ["tokenization_llama.X", "tokenization_llama.X"],
    },
    "trust_remote_code": True,
    "custom_pipelines": {"x": {"impl": "generate.X"}},
    "auto_mapping": {"base_model_class": "system", "parent_library": "os"},
}


def plant(folder: Path, markers: Path, texts: bool = True) -> int:
    """Put every payload into a folder, beside and into its own files (``texts``: YAML and Jinja too); their number."""
    count = 0
    for name in PICKLES:
        torch.save({"x": Payload(markers / f"{folder.name}-{name}")}, folder / name)
        (folder / f"{name}.raw.pkl").write_bytes(pickle.dumps(Payload(markers / f"{folder.name}-raw-{name}")))
        count += 2
    objects = np.array([Payload(markers / f"{folder.name}-npy")], dtype=object)
    np.save(folder / "data.npy", objects, allow_pickle=True)
    np.savez(folder / "data.npz", x=objects)  # type: ignore[arg-type]
    for name in MODULES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code(markers / f"{folder.name}-{Path(name).stem}"))
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json"):
        if (folder / name).is_file():
            (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **AUTO_MAP}))
    if not texts:
        return count + 2 + len(MODULES)
    touch = f"__import__('pathlib').Path({str(markers / f'{folder.name}-jinja')!r}).touch()"
    walk = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% set x = cycler.__init__.__globals__ %}"
    (folder / "chat_template.jinja").write_text("{{ " + touch + " }}" + walk + "{{ messages[0].content }}")
    tags = "".join(
        f"x{i}: !!python/{tag}\n"
        for i, tag in enumerate(
            ("object/apply:pathlib.Path.touch [a]", "name:os.system", "object/new:os.system [touch a]", "module:data")
        )
    )
    for name in ("recipe.yaml", "dataset.yaml"):
        (folder / name).write_text((folder / name).read_text() + tags if (folder / name).is_file() else tags)
        count += 1
    return count + 2 + len(MODULES) + 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, meta, tokenizer, adapter, run, data: whole ones."""
    root = tmp_path_factory.mktemp("whole")
    model = tiny_llama(vocab_size=640)
    model.save_pretrained(root / "base")
    tiny_tokenizers.llama3(root / "base")
    write_meta_folder(model, root / "meta")
    shutil.copy(root / "base/tokenizer.json", root / "meta")
    tiny_tokenizers.llama3(root / "tokenizer")
    adapt(load_model(root / "base", device="cpu"), "lora", r=2).save(root / "adapter")
    (root / "run/checkpoints").mkdir(parents=True)
    shutil.copytree(root / "adapter", root / "run/adapter")
    rows = [{"instruction": f"Say {i}.", "output": "Once upon a time."} for i in range(4)]
    (root / "data").mkdir()
    (root / "data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = f"model:\n  path: {root / 'base'}\ndata:\n  train: {root / 'data/train.jsonl'}\n"
    (root / "run/recipe.yaml").write_text(recipe)
    RunFolder(root / "run").save_checkpoint(1, {"adapter-0": {"a": torch.zeros(2)}}, {}, None)
    return {folder.name: folder for folder in root.iterdir()}


def read(kind: str, folder: Path, folders: dict[str, Path]) -> None:
    """Everything that Halter does with a folder of this kind."""
    if kind in ("base", "meta"):
        load(folder, device="cpu", say=lambda _: None)
    elif kind == "tokenizer":
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer.chat_template is not None
        tokenizer.chat_template.encode(tokenizer, [{"role": "user", "content": "hello"}])
    elif kind == "adapter":
        reseal(folder)
        load_adapter(folder, load_model(folders["base"], device="cpu"))
        open_subject(find(folder, model=str(folders["base"])), lambda _: None)
    elif kind == "run":
        run = RunFolder(folder)
        for _, checkpoint in run.checkpoints():
            run.load_checkpoint(checkpoint)
        load_recipe(run.recipe)
    else:
        tokenizer = Tokenizer.from_folder(folders["tokenizer"])
        load_examples(DataOptions(train=str(folder)), tokenizer, ChatTemplate.builtin("llama-3"))


def test_the_payloads_work(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    plant(tmp_path / "x", tmp_path)
    torch.load(tmp_path / "x/model.pt", weights_only=False)
    exec((tmp_path / "x/modeling_llama.py").read_text(), {})
    np.load(tmp_path / "x/data.npy", allow_pickle=True)
    assert {p.name for p in tmp_path.iterdir()} == {"x", "x-model.pt", "x-modeling_llama", "x-npy"}


def test_no_marker_fires_in_a_hundred_loads(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALTER_CACHE", str(tmp_path / "cache"))
    markers, ends, payloads, loads = tmp_path / "markers", dict.fromkeys(folders, 0), 0, 0
    markers.mkdir()
    for number in range(17):
        for kind, whole in folders.items():
            folder = tmp_path / f"{kind}{number}"
            shutil.copytree(whole, folder)
            for inside in [folder, *([folder / "adapter"] if kind == "run" else [])]:
                payloads += plant(inside, markers, texts=number % 3 == 0)
            if number % 3:  # else a pickle is one of Meta's ranks
                (folder / "consolidated.01.pth").unlink()
            if number % 2 and kind in ("base", "adapter"):
                (folder / ("model" if kind == "base" else "adapter_model")).with_suffix(".safetensors").unlink()
            monkeypatch.chdir(folder)
            before = set(sys.modules)
            try:
                read(kind, folder, folders)
                ends[kind] += 1
            except HalterError:
                pass
            loads += 1
            new = {name for name in set(sys.modules) - before if (folder / f"{name}.py").exists()}
            assert not new and not list(markers.iterdir()), (kind, number, list(markers.iterdir()))
    print(f"no code of strangers: {payloads} payloads in {loads} loads of {len(folders)} kinds, 0 markers; read {ends}")
    assert loads >= 100 and all(0 < ends[kind] < loads for kind in folders)


# The package itself

BANNED_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "torch.jit.load"}
BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml", "code"}
MAY_IMPORT_BY_NAME = {
    "halter/__init__.py",
    "halter/contract/registry.py",
    "halter/training/objective.py",
    "halter/cli/main.py",
    "halter/pictures/decoding.py",  # Pillow's modules of a fixed list of formats
}
MAY_LOAD = "halter/files/meta_archive.py"
MAY_NAME = ("halter/recipe/foreign/", "halter/elsewhere.py", "halter/cli/usage.py")
"""Where the keys, flags and arguments of other tools are listed, this one as one that is not needed."""


def offences(source: str, name: str) -> Iterator[str]:
    """Every way in which a line of Python could run what stands in a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {m}" for m in modules if m.split(".")[0] in BANNED_MODULES)
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle", "shell"):
            if ast.unparse(node.value) != "False":
                yield f"{node.arg}={ast.unparse(node.value)}"
        elif isinstance(node, ast.Constant) and node.value in ("unsafe", "trust_remote_code", "__reduce__"):
            if node.value == "trust_remote_code" and name.startswith(MAY_NAME):
                continue
            yield f"says {node.value!r}"
        elif isinstance(node, ast.Call):
            yield from _call(node, name)


def _call(node: ast.Call, name: str) -> Iterator[str]:
    what = ast.unparse(node.func)
    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if what in BANNED_CALLS or what.endswith((".unsafe_load", ".full_load", ".load_module", ".exec_module")):
        yield f"calls {what}"
    if what in ("yaml.load", "torch.load") and not (name == MAY_LOAD and keywords.get("weights_only") == "True"):
        yield f"calls {what}"
    if what == "YAML" and (node.args or keywords.get("typ") not in ("'safe'", "'rt'")):
        yield "calls YAML without a safe kind"
    if what.split(".")[-1] == "import_module" and name not in MAY_IMPORT_BY_NAME:
        if not (node.args and isinstance(node.args[0], ast.Constant)):
            yield "imports by a computed name"


def test_the_package_has_no_way_to_run_what_it_reads() -> None:
    names = {path: path.relative_to(PACKAGE.parent).as_posix() for path in sorted(PACKAGE.rglob("*.py"))}
    found = [f"{name}: {o}" for path, name in names.items() for o in offences(path.read_text("utf-8"), name)]
    loads = sum(path.read_text("utf-8").count("torch.load(") for path in names)
    print(f"scan of {len(names)} files: {len(found)} offences, torch.load {loads} time, weights_only")
    assert not found and loads == 1


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import load",
        "import yaml",
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'exec')",
        "torch.load(f)",
        "torch.load(f, weights_only=True)",
        "yaml.load(f)",
        "YAML(typ='unsafe')",
        "YAML()",
        "np.load(f, allow_pickle=True)",
        "X.from_pretrained(f, trust_remote_code=True)",
        "os.system('x')",
        "subprocess.run('x', shell=True)",
        "importlib.import_module(name)",
        "x = {'trust_remote_code': True}",
        "ruamel.yaml.unsafe_load(f)",
        "__import__('x')",
        "spec.loader.exec_module(m)",
    ],
)
def test_the_scan_sees(line: str) -> None:
    assert list(offences(line, "halter/x.py"))


def test_the_scan_lets_the_one_reader_pass_and_only_when_safe() -> None:
    assert not list(offences("torch.load(f, weights_only=True)", MAY_LOAD))
    assert list(offences("torch.load(f, weights_only=False)", MAY_LOAD))
    assert not list(offences("model.eval()\nnp.load(f, allow_pickle=False)\nre.compile('x')", "halter/x.py"))
