"""From a path or a hub id to a folder on this machine, by huggingface_hub: its cache, its offline switch, its token.

Only what a model needs is fetched: files at the top of the repository in one format, never ``original/`` and never a
second copy of the weights. Finished files are never fetched again, and a broken connection goes on where it broke.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event, Thread
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import tqdm as HubBar

from halter.errors import HalterError, Refusal
from halter.files.nearby import no_such_folder, similar
from halter.telling import Say, tell

SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "USE_POLICY*", "NOTICE*", "README.md"]
"""What is fetched beside the weights: configuration, tokenizer, templates, licence."""
NEVER = ["*/*", "*.bin.index.json", "*.index.fp16.json", "training_args.json", "trainer_state.json"]
_SAFETENSORS, _META = ["model*.safetensors"], ["consolidated*.pth"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LINE_EVERY_SECONDS = 10.0
_WEB = "https://huggingface.co"


def resolve(
    path_or_id: str | Path,
    revision: str | None = None,
    *,
    weights: bool = True,
    cache: str | Path | None = None,
    endpoint: str | None = None,
    say: Say = tell,
) -> Path:
    """The local folder of a model: an existing folder as it is, else the hub's repository of that id.

    ``revision`` is a branch, tag or commit; ``weights=False`` fetches configuration and tokenizer only. HF_HUB_OFFLINE,
    HF_TOKEN, HF_HOME and HF_ENDPOINT are honoured. One line is said before bytes are fetched.

    Refusals: ``model-not-found``, ``hub-gated``, ``hub-token``, ``hub-revision``, ``hub-offline``,
    ``hub-unreachable``, ``pickle-weights``, ``no-weights``. HalterError: the hub failed, or the disk did.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir() and path_or_id != "":
        if revision is not None:
            what = f"a revision ({revision}) belongs to a hub id, and this is a folder"
            raise Refusal("hub-revision", what, where=str(folder), fix="leave the revision out")
        return folder
    name = str(path_or_id)
    if "://" in name or name.startswith(("huggingface.co/", "hf.co/")):
        hub = re.split(r"(?:huggingface|hf)\.co/", name)[-1].strip("/").split("/")[:2] if ".co/" in name else []
        fix = f"--model {'/'.join(hub)}, its name there" if len(hub) == 2 else "fetch its files and give their folder"
        refusal = Refusal("model-not-found", "addresses are not read", where=name, fix=fix)
        raise refusal.calls(fix.removeprefix("--model "))
    beside = folder.parent
    if (
        "/" in name and not folder.exists() and beside.is_dir() and any(beside.iterdir())
    ):  # whose neighbours are here is no hub id
        raise no_such_folder("model-not-found", folder, ("model", "run", "adapter"))
    if isinstance(path_or_id, Path) or folder.exists() or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise no_such_folder("model-not-found", folder, ("model", "run", "adapter"))
    try:
        return _fetch(name, revision, weights, cache, endpoint, say)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        raise _refusal(error, name, revision, endpoint) from error
    except OSError as error:
        raise HalterError(f"{name}: fetching it failed: {error}. What is complete is kept; try again") from error


def _fetch(
    name: str, revision: str | None, weights: bool, cache: str | Path | None, endpoint: str | None, say: Say
) -> Path:
    listing = _listing(name, revision, endpoint)
    allow = SMALL + (_SAFETENSORS if weights else [])
    blobs = Path(cache or huggingface_hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    quiet, missing = True, 0
    if listing is not None:
        if weights:
            allow = SMALL + _format(name, [file.rfilename for file in listing])
        todo = [f for f in listing if _wanted(f.rfilename, allow) and not _is_cached(f, blobs)]
        quiet, missing = not todo, sum(file.size or 0 for file in todo)
        if todo:
            say(f"Fetching {name}: {_files(len(todo))}, {_size(missing)}, into {blobs.parent}")
    with _lines(blobs, missing, say):
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=allow,
            ignore_patterns=NEVER,
            tqdm_class=_Silent if quiet else _Bar,
        )
    return Path(folder)


@contextmanager
def _lines(blobs: Path, total: int, say: Say) -> Iterator[None]:
    """Where no bar can be drawn: a line every ten seconds with bytes and time left, from what has reached the disk."""
    if total == 0 or sys.stderr.isatty():
        yield
        return

    def held() -> int:
        return sum(p.stat().st_size for p in blobs.glob("*") if p.is_file())

    done, first, begun = Event(), held(), time.monotonic()

    def watch() -> None:
        while not done.wait(LINE_EVERY_SECONDS):
            with suppress(OSError):  # a file that was renamed between being listed and being asked
                got = min(held() - first, total)
                left = (time.monotonic() - begun) * (total - got) / max(got, 1)
                say(f"{_size(got)} of {_size(total)}" + (f", {left:.0f} s left" if got else ""))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_cached(file: RepoSibling, blobs: Path) -> bool:
    """Whether the cache holds this content, be it from another commit; contents are stored under their digest."""
    digest = file.lfs.sha256 if file.lfs else file.blob_id
    return bool(digest) and (blobs / str(digest)).is_file()


def _listing(name: str, revision: str | None, endpoint: str | None) -> list[RepoSibling] | None:
    """The repository's files; None if the hub cannot be asked, when the cache must do."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    try:
        info = HfApi(endpoint=endpoint).model_info(name, revision=revision, files_metadata=True)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            return None
        raise
    except HFValidationError:
        raise
    except Exception:  # no connection: the kinds belong to the HTTP library below, which changes between releases
        return None
    return list(info.siblings or ())


def _format(name: str, files: list[str]) -> list[str]:
    """Patterns of the one weight format to fetch. Refused before a byte is fetched if there is none that is read."""
    for patterns in (_SAFETENSORS, _META):
        if any(_wanted(f, patterns) for f in files):
            return patterns
    pickles = [f for f in files if _wanted(f, ["*.bin", "*.pt", "*.pth", "*.ckpt"])]
    if pickles:
        raise Refusal(
            "pickle-weights",
            "this repository has pickled weights only, and opening a pickle can run whatever code it carries",
            where=name,
            found=pickles,
            expected="safetensors",
            fix="look for a revision with safetensors (the hub's converter leaves one at refs/pr/N)",
        )
    held = sorted({Path(f).suffix for f in files if Path(f).suffix in (".gguf", ".onnx", ".safetensors", ".npz")})
    what = "this repository holds no checkpoint of a LLaMA" + (f", only {', '.join(held)}" if held else "")
    raise Refusal("no-weights", what, where=name, fix="give the id of the model it was made from")


def _wanted(file: str, allow: list[str]) -> bool:
    return any(fnmatchcase(file, p) for p in allow) and not any(fnmatchcase(file, p) for p in NEVER)


def _refusal(error: Exception, name: str, revision: str | None, endpoint: str | None) -> HalterError:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    web = (endpoint or os.environ.get("HF_ENDPOINT") or _WEB).rstrip("/")
    token = "put your token into HF_TOKEN, or run `hf auth login` (before huggingface_hub 1.0: huggingface-cli login)"
    if isinstance(error, GatedRepoError):
        page = f"{web}/{name}"
        who = (
            "the token in use has not been granted access" if status == 403 else "no token that the hub knows is in use"
        )
        fix = (
            f"accept the licence at {page} while logged in there; then {token}; the token's owner must be who accepted"
        )
        return Refusal(
            "hub-gated", f"this model's owner asks you to accept a licence first, and {who}", where=name, fix=fix
        )
    if isinstance(error, RevisionNotFoundError):
        fix = f"see the branches and tags at {web}/{name}/tree/main"
        return Refusal("hub-revision", f"the repository has no revision {revision!r}", where=name, fix=fix)
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        what = "there is no folder of this name here, and no such repository on the hub that you may see"
        return Refusal(
            "model-not-found", what, where=name, fix=f"{_near(name)}correct the name; if it is private, {token}"
        )
    if status == 401:
        return Refusal("hub-token", "the hub does not know the token in use", where=name, fix=token)
    if isinstance(error, LocalEntryNotFoundError) and huggingface_hub.constants.HF_HUB_OFFLINE:
        what = "it is not, or not wholly, in the cache, and HF_HUB_OFFLINE forbids to fetch it"
        fix = f"{_near(name)}fetch it once with HF_HUB_OFFLINE=0, or give a folder"
        return Refusal("hub-offline", what, where=name, fix=fix)
    if isinstance(error, LocalEntryNotFoundError):
        what = f"there is no such folder here, {web} cannot be reached, and the cache does not hold the whole model"
        fix = f"{_near(name)}check the connection and try again: what is complete is kept; or give a folder"
        return Refusal("hub-unreachable", what, where=name, fix=fix)
    return HalterError(f"{name}: the hub answered {status}: {error}")


def _near(name: str) -> str:
    """The folder that may have been meant by a name that the hub was asked for."""
    near = similar(Path(name), ("model", "run", "adapter"))
    return f"did you mean the folder {near[0]}? Else " if near else ""


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class _Bar(HubBar):
    """The hub's bar in tqdm's usual form, which shows the time left; the hub's own form leaves that out."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        shown = options.get("disable") or None  # None: only on a terminal
        super().__init__(*arguments, **{**options, "bar_format": None, "disable": shown})


class _Silent(HubBar):
    """No bar: nothing is fetched."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "disable": True})
