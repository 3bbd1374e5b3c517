"""What a folder is, and what may have been meant by one that is not what was asked for: words for refusals."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from halter.errors import Refusal
from halter.files.row_names import called_rows
from halter.files.runs import RunFolder
from halter.files.yaml_faults import as_escaped, shown

FolderKind = Literal["run", "adapter", "model", ""]
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""What files of weights end in, ours and other programs'."""
MOST_LOOKED_AT, NAMED = 2000, 3
_TRAINED = "where it was trained, or fetch the whole folder again"


def kind_of(folder: Path) -> FolderKind:
    """What lies in a folder, by the names of its files; '' for anything else."""
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    if RunFolder(folder).begun:
        return "run"
    if (folder / "config.json").is_file() or (folder / "params.json").is_file():
        return "model"
    return ""


def adapter_folder(folder: str | Path) -> Path:
    """The adapter folder that is meant: this one, or the adapter of this finished run. Refusals of ``no_adapter``."""
    folder = Path(folder).expanduser()
    for place in (folder, folder / "adapter"):
        if (place / ADAPTER_CONFIG).is_file():
            return place
    raise no_adapter(folder)


def refuse_mlx(folder: Path) -> None:
    """Refusal ``adapter-unsupported`` of a folder that mlx-lm wrote, by its configuration."""
    if "lora_parameters" in (config := _config(folder)) and not config.get("peft_type"):
        raise of_mlx(folder, str(config.get("model") or "MODEL"))


def of_mlx(folder: Path, model: str) -> Refusal:
    """What is said of an adapter of mlx-lm."""
    what = "is an adapter as mlx-lm writes it, of other names and shapes than PEFT's"
    way = f"mlx_lm.fuse --model {model} --adapter-path {folder} --save-path merged"
    fix = f"{way}, where mlx runs, writes a merged model: give that, --model merged"
    return Refusal("adapter-unsupported", what, where=str(folder), fix=fix)


def _config(folder: Path) -> dict[str, object]:
    """An adapter's configuration, {} where it cannot be read."""
    from halter.files.reading import read_json

    try:
        read = read_json(folder / ADAPTER_CONFIG)
    except (Refusal, OSError):
        return {}
    return read if isinstance(read, dict) else {}


def no_adapter(folder: Path) -> Refusal:
    """Refusal ``run-unfinished`` or ``not-an-adapter`` with what is there instead and what to type."""
    if not folder.is_dir():
        return _not_there("not-an-adapter", folder, ("adapter", "run"))
    if RunFolder(folder).begun:
        return Refusal(
            "run-unfinished",
            "this run has no result yet",
            where=str(folder),
            fix=f"finish it: halter train --resume --output {folder}",
        )
    weights = [name for name in ADAPTER_WEIGHTS if (folder / name).is_file()]
    if (folder / ADAPTER_CONFIG).is_file() and not weights:
        what = f"{ADAPTER_CONFIG} is there and the weights are missing ({ADAPTER_WEIGHTS[0]})"
        return Refusal("not-an-adapter", what, where=str(folder), fix=f"copy {ADAPTER_WEIGHTS[0]} from {_TRAINED}")
    if weights:
        what = f"{weights[0]} is there and {ADAPTER_CONFIG} is missing"
        return Refusal("not-an-adapter", what, where=str(folder), fix=f"copy {ADAPTER_CONFIG} from {_TRAINED}")
    if kind_of(folder) == "model":
        what = "this folder holds a model, not an adapter"
        fix = f"give an adapter or run folder; this is one for --model, where a command has that: --model {folder}"
        return Refusal("not-an-adapter", what, where=str(folder), fix=fix).calls(
            f'model, tokenizer = halter.load("{folder}"); halter.adapt(model, "lora") makes an adapter for it'
        )
    return Refusal(
        "not-an-adapter",
        "this folder holds no adapter",
        where=str(folder),
        fix=_choose(inside(folder, ("adapter", "run")) or _above(folder))
        or "give an adapter folder or the folder of a finished run",
    )


def no_model(folder: Path, missing: Iterable[str] = ()) -> Refusal:
    """Refusal ``no-weights`` for a folder without a model: what is there instead, and what to type.

    An adapter's weights alone are ``no_adapter``'s."""
    kind = kind_of(folder)
    if kind in ("run", "adapter"):
        base = base_name(folder if kind == "adapter" else folder / "adapter")
        told = f"--model {base}" if base else "--model with its base"
        fix = f"it is asked and merged without --model: {folder}; to train on from it, {told} --init-from {folder}"
        return Refusal(
            "no-weights",
            f"this is {'an' if kind == 'adapter' else 'a'} {kind}, not a model",
            where=str(folder),
            fix=fix,
        ).calls(
            f'model, tokenizer = halter.load("{base or "ITS/BASE"}"); '
            f'adapter = halter.load_adapter("{folder}", model); halter.evaluate and halter.merge take "{folder}" itself'
        )
    if kind == "model":
        lost = ", ".join(missing) or "model.safetensors"
        what = f"the configuration is there and the weights are missing ({lost})"
        fix = "copy or fetch the safetensors files into this folder"
        if (folder / "adapter_model.safetensors").exists():
            fix = f"the adapter that lies here is put on its base: --model BASE --adapter {folder}"
        return Refusal("no-weights", what, where=str(folder), fix=fix)
    if any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        return no_adapter(folder)
    weights = sorted(path.name for path in children(folder, files=True) if path.suffix in (".safetensors", ".pth"))
    if weights:
        what = f"{weights[0]} is there and config.json is missing"
        fix = "copy or fetch the model's config.json into this folder"
        return Refusal("no-weights", what, where=str(folder), fix=fix)
    return Refusal(
        "no-weights",
        "this folder holds no model",
        where=str(folder),
        fix=_choose(snapshots(folder) or inside(folder, ("model", "adapter", "run")) or _above(folder))
        or "give the folder that holds config.json and the safetensors files",
    )


def no_such_folder(id: str, folder: Path, wanted: tuple[FolderKind, ...] = ("model", "adapter", "run")) -> Refusal:
    """The refusal of a folder that is not there, with the neighbour whose name is nearest."""
    return _not_there(id, folder, wanted)


def _not_there(id: str, folder: Path, wanted: tuple[FolderKind, ...]) -> Refusal:
    if folder.exists():
        around = kind_of(folder.parent)
        known = around in wanted and (around == "model" or folder.parent != Path())  # in a run's folder lies anything
        near = f"perhaps the folder that it lies in: {folder.parent}" if known else ""
        kinds = ", ".join(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" for kind in wanted)
        exported = "GGUF is an export format: take the checkpoint that it was made from"
        exported = exported if folder.suffix.lower() == ".gguf" else ""
        if called_rows(folder):
            near = f"rows are asked with halter generate RUN --input {folder}, and scored with halter evaluate RUN "
            near += f"--data {folder}"
        return Refusal(
            id,
            "is a file, and a folder is needed",
            where=str(folder),
            fix=exported or near or _choose(similar(folder, wanted)) or f"give the folder of {kinds}",
        )
    return Refusal(
        id,
        "there is no such folder",
        where=shown(str(folder)),
        fix=as_escaped(str(folder))
        or unexpanded(str(folder))
        or _several(folder)
        or _choose(similar(folder, wanted))
        or "give the path of a folder that exists, from where you are",
    )


VARIABLE = re.compile(r"\$\{?(\w+)\}?|%(\w+)%|^~[\w.-]+")


def unexpanded(path: str) -> str:
    """What to do about a variable or another user's home in a path, which shells write out and files do not; '' of any
    other path."""
    found = VARIABLE.search(path)
    if found is None:
        return ""
    name, value = found[0], os.environ.get(found[1] or found[2] or "", "")
    whole = path.replace(name, value, 1)
    meant = f"write the path out: {whole}" if value and not VARIABLE.search(whole) else "write the path out"
    return f"{name} is not expanded here, nor are other variables: {meant}"


def _several(named: Path) -> str:
    """What to do about several adapters named in one word."""
    parts = [part.strip() for part in str(named).split(",")]
    if len(parts) < 2 or not all(kind_of(Path(part).expanduser()) in ("adapter", "run") for part in parts):
        return ""
    return f"name one of them; halter adapters combine {' '.join(parts)} --output FOLDER makes one of all"


def no_recipe(path: Path) -> Refusal:
    """Refusal ``yaml`` of a folder, or a file of rows, where a recipe would stand: what it is, and where that goes."""
    kind, what = kind_of(path), "a recipe is a file in YAML, or a mapping"
    if kind == "run":
        return Refusal("yaml", f"is a run, and {what}", where=str(path), fix=f"{path / 'recipe.yaml'} is its recipe")
    if kind == "model":
        told, call = f"--model {path} --data FILE", f'{{"model": "{path}", "data": "FILE"}}'
    elif path.is_file():
        told, call = f"--model DIR --data {path}", f'{{"model": "DIR", "data": "{path}"}}'
    else:
        told, call = "halter init lora FILE writes one", '{"model": "DIR", "data": "FILE"}'
    named = "a file of rows" if path.is_file() else f"the folder of a {kind}" if kind == "model" else "a folder"
    return Refusal("yaml", f"is {named}, and {what}", where=str(path), fix=told).calls(f"such as {call}")


def no_such_source(path: Path) -> Refusal:
    """Refusal ``source-missing`` of an adapter that is not there: a folder, or a file of another program."""
    written = [near for near in similar(path, files=True) if near.suffix.lower() in WEIGHTS]
    fix = _choose(similar(path, ("adapter", "run")) or written)
    what = "there is no such file or folder"
    return Refusal("source-missing", what, where=str(path), fix=fix or "give an adapter, a run or an adapter's file")


def base_beside(words: Iterable[str]) -> str:
    """How a run or adapter and the model that is named beside it are typed; '' of anything else."""
    kinds = {word: kind_of(Path(word)) for word in words}
    tuned = [word for word, kind in kinds.items() if kind in ("run", "adapter")]
    others = [word for word, kind in kinds.items() if kind == "model" or _on_the_hub(Path(word))]
    told = f"the base is named with --model: {tuned[0]} --model {others[0]}" if tuned and others else ""
    return told if len(tuned) == len(others) == 1 and len(kinds) == 2 else ""


def _on_the_hub(named: Path) -> bool:
    """Whether a name that is nothing here may be a hub's: OWNER/NAME, where no folder is called as the owner is."""
    return not named.exists() and len(named.parts) == 2 and not named.parent.exists() and not named.is_absolute()


def refuse_inside_adapter(file: Path) -> None:
    """Refusal ``source-inside`` of a file that is part of an adapter folder, which says how its tensors are meant."""
    if (file.parent / ADAPTER_CONFIG).is_file():
        refuse_mlx(file.parent)
        what = f"is part of an adapter folder: {ADAPTER_CONFIG} lies beside it and says how its tensors are meant"
        raise Refusal("source-inside", what, where=str(file), fix=f"give its folder: {file.parent}")


def similar(folder: Path, wanted: tuple[FolderKind, ...] = (), files: bool = False) -> list[Path]:
    """Neighbours whose names are near to this one's, the nearest first: folders of the kinds ``wanted``, or those in a
    folder that is near; with ``files`` everything."""
    if (turned := with_slashes(folder)) is not None and (files or turned.is_dir()):
        return [turned]
    names = {path.name: path for path in children(folder.parent, files) if path.name != folder.name}
    near = [names[name] for name in get_close_matches(folder.name, names, NAMED, cutoff=0.6)]
    if files or not wanted:
        return near
    of_kind = [path for path in near if kind_of(path) in wanted] or [p for path in near for p in inside(path, wanted)]
    return of_kind or [path for path in _above(folder) if kind_of(path) in wanted and near]


def with_slashes(path: Path) -> Path | None:
    """The file or folder that a path with backslashes is, where it is one with slashes."""
    turned = Path(str(path).replace("\\", "/"))
    return turned if "\\" in str(path) and turned.exists() else None


def _above(folder: Path) -> list[Path]:
    """The run that a folder lies in, such as its checkpoints."""
    return [path for path in list(folder.parents)[:2] if kind_of(path) == "run"][:1]


def inside(folder: Path, wanted: tuple[FolderKind, ...]) -> list[Path]:
    """Folders right below this one that are of these kinds, or that the hub's cache holds for one."""
    below = children(folder)
    cached = [place for path in below for place in snapshots(path)] if "model" in wanted else []
    return [path for path in below if kind_of(path) in wanted] + cached


def snapshots(folder: Path) -> list[Path]:
    """The models in a folder of the hub's cache, models--owner--name."""
    return [path for path in children(folder / "snapshots") if kind_of(path) == "model"]


def children(folder: Path, files: bool = False) -> list[Path]:
    """The folders right below (or everything), by name; at most 2,000 entries are looked at."""
    try:
        found = [path for _, path in zip(range(MOST_LOOKED_AT), folder.iterdir()) if files or path.is_dir()]
    except OSError:
        return []
    return sorted(path for path in found if not path.name.startswith("."))


def _choose(found: list[Path]) -> str:
    if not found:
        return ""
    named = ", ".join(map(str, found[:NAMED])) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
    return f"did you mean {named}?" if len(found) == 1 else f"name one of these: {named}"


def base_name(adapter: Path) -> str:
    """What an adapter's files call its base, '' where they do not say or cannot be read."""
    from halter.files.reading import read_json

    for name, keys in (("halter.json", ("base", "name")), (ADAPTER_CONFIG, ("base_model_name_or_path",))):
        try:
            value: object = read_json(adapter / name)
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
        except (Refusal, OSError):
            continue
        if isinstance(value, str) and value:
            return value
    return ""
