"""From a folder or a hub id to a Decoder with its Tokenizer: strict, streaming, quantised on the way if asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from halter.arguments import checked
from halter.errors import Refusal
from halter.files.checkpoint import HFCheckpoint, ModelFolder, dtype_of, open_checkpoint, read_config
from halter.files.hub import resolve
from halter.files.names import storage_of
from halter.files.tensors import TensorSpec
from halter.model import families
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.layout import EXPERTS, LINEAR, Place
from halter.model.storages import BITS, STORED, Quantize, quantised
from halter.model.stored_experts import QuantisedExperts
from halter.model.streaming import bytes_apart
from halter.numerics import spinning
from halter.pretrained.bnb import faults, storing
from halter.pretrained.device import Offload, choose_device, choose_dtype, dtype_name, streams
from halter.pretrained.digest import BaseIdentity
from halter.telling import Say, tell
from halter.text.tokenizer import Tokenizer

SLOW_BYTES = {None: 800_000_000, "nf4": 150_000_000, "int8": 400_000_000}
"""From how many stored bytes on a load is announced: about two seconds' worth on a modest machine."""
_SAY_EVERY_SECONDS = 5.0
_FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}


@checked('halter.load("path/or/hub-id", dtype="auto")')
def load(
    path_or_hub_id: str | Path,
    dtype: str | torch.dtype = "auto",
    quantize: Quantize | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    *,
    double_quant: bool = True,
    offload: Offload = "none",
    say: Say = tell,
) -> tuple[Decoder, Tokenizer]:
    """A frozen model and its tokenizer, from a Hugging Face or Meta folder or a hub id.

    ``dtype``: "auto" (the checkpoint's; see pretrained.device), "float32", "bfloat16", "float16" or a torch dtype.
    ``quantize="nf4"`` stores the weights of linear layers and routed experts in 4 bits, quantised while they are read,
    ``double_quant`` their scales in 8; "int8" stores them in 8 bits, a scale for each row. Embeddings, norms, routers
    and head stay in ``dtype``.
    ``device``: by default cuda, mps or cpu. ``offload="layers"``: layers in CPU memory, two on the GPU (streaming.py).

    Memory never holds more than the model, and one tensor being changed, of experts one of them. Refusals: those of
    files.hub.resolve, files.checkpoint.open_checkpoint and text.tokenizer; ``model-unsupported``;
    ``checkpoint-mismatch``, which names every missing, unexpected and misshapen tensor at once; ``device-missing``;
    ``device-too-small``;
    ``unknown-dtype``; ``unknown-offload``; ``quantisation-differs``.
    """
    folder = located(path_or_hub_id, revision, say=say)
    checkpoint = open_checkpoint(folder)
    with ThreadPoolExecutor(1) as aside:  # weights come from the disk and tokens from a parser
        reading = aside.submit(Tokenizer.from_folder, folder, checkpoint.config)

        def between() -> None:
            if reading.done():
                reading.result()  # no tokenizer: why go on

        model = _load(checkpoint, dtype, quantize, device, double_quant, offload, say, between)
        tokenizer = reading.result()
    if tokenizer.vocab_size > model.config.table_rows:
        extra = tokenizer.vocab_size - model.config.table_rows
        say(f"The tokenizer knows {extra} more tokens than the model has embeddings for; they must not occur.")
    return model, tokenizer


def located(path_or_hub_id: str | Path, revision: str | None = None, *, weights: bool = True, say: Say = tell) -> Path:
    """``files.hub.resolve``, which asks the hub for no name of a shape. Refusal ``preset-name``, and that one's."""
    name = str(path_or_hub_id)
    if not Path(name).exists() and (shape := families.published_as(name)):
        if shape in families.ANNOUNCED:
            raise families.not_released(shape)
        repository = families.repository(shape, name)
        fix = f"--model {repository}, which the hub fetches" if repository else "give the folder of its weights"
        what = f"is a shape that halter plan knows as {shape}, not a model on this machine"
        raise Refusal("preset-name", what, where=name, fix=fix).calls(fix.removeprefix("--model "))
    return resolve(path_or_hub_id, revision, weights=weights, say=say)


def load_config(path_or_hub_id: str | Path, revision: str | None = None, *, say: Say = tell) -> ModelConfig:
    """The shape of a model, without its weights, which Meta's layout alone needs for it. Refusals as load's."""
    folder = located(path_or_hub_id, revision, weights=False, say=say)
    if not (folder / "config.json").is_file():
        folder = resolve(path_or_hub_id, revision, say=say)
    return families.read_config(read_config(folder), str(folder))


def load_model(
    source: ModelFolder | str | Path,
    dtype: str | torch.dtype = "auto",
    quantize: Quantize | None = None,
    device: str | torch.device | None = None,
    *,
    double_quant: bool = True,
    offload: Offload = "none",
    say: Say = tell,
) -> Decoder:
    """The model of a local folder, or of a checkpoint that is open (it is closed); arguments and refusals as load's."""
    checkpoint = open_checkpoint(source) if isinstance(source, str | Path) else source
    return _load(checkpoint, dtype, quantize, device, double_quant, offload, say, lambda: None)


def _load(
    checkpoint: ModelFolder,
    dtype: str | torch.dtype,
    quantize: Quantize | None,
    device: str | torch.device | None,
    double_quant: bool,
    offload: Offload,
    say: Say,
    between: Callable[[], None],
) -> Decoder:
    """``between`` is called after every tensor, and may raise."""
    storing(checkpoint, quantize)  # its refusals
    spinning.watch()
    fresh = None if checkpoint.quantized else quantize
    config = families.read_config(checkpoint.config, str(checkpoint.folder))
    plan = _Plan.of(checkpoint, config)
    place = choose_device(device)
    apart = streams(offload, place, say)
    home = torch.device("cpu") if apart else place
    compute = choose_dtype(dtype, _stored_dtype(checkpoint, config), place, say)
    model = Decoder(config, compute, device="meta")
    progress = _Progress(say, sum(spec.nbytes for spec in checkpoint.names().values()))
    if progress.total > SLOW_BYTES[fresh]:
        what = f"Loading {progress.total / 1e9:.1f} GB from {checkpoint.folder}"
        say(f"{what} as {dtype_name(compute)} on {place}" + (f", quantised to {fresh} on the way" if fresh else ""))
    if checkpoint.skipped:
        say(f"The text alone is loaded; {len(checkpoint.skipped)} tensors of the tower of pictures are left unread.")
    try:
        for name in plan.order:
            _place(model, checkpoint, name, plan, (place, home), quantize, double_quant, between)
            progress.add(plan.bytes_of(name))
            between()
    except torch.OutOfMemoryError:
        raise _no_room(Decoder(config, compute, device="meta"), place, apart) from None
    model.identity = BaseIdentity.of(checkpoint)
    checkpoint.close()
    if apart:
        _stream(model, say)
    return model


def _no_room(dry: Decoder, place: torch.device, apart: bool) -> Refusal:
    """What to do about a base for which a GPU is too small; ``dry`` has its shapes."""
    least = bytes_apart([*dry.layers], dry.outer())[0]
    smaller = "quantize: nf4, or a smaller base"
    told = f"offload: layers, which takes at most {least / 1e9:.1f} GB there and the rest in CPU memory; {smaller}"
    return Refusal("device-too-small", f"there is no room for this base on {place}", fix=smaller if apart else told)


def _stream(model: Decoder, say: Say) -> None:
    stream = model.stream_layers()
    counts = f"{stream.host_bytes / 1e9:.1f} GB of layers lie in CPU memory, {stream.device_bytes / 1e9:.1f} GB of them"
    say(f"{counts} at a time on {model.device}")
    if not stream.locked:
        say("The system locks no more memory (ulimit -l): computing waits for every copy.")


def refuse_mismatch(checkpoint: ModelFolder, config: ModelConfig) -> None:
    """Refusal ``checkpoint-mismatch`` as ``load``'s; only headers are read."""
    _Plan.of(checkpoint, config)


def map_model(folder: str | Path, dtype: torch.dtype) -> Decoder:
    """A dense model on the CPU whose weights are pages of its files, for a folder that this process has just written
    in ``dtype``; next to no memory of its own. Refusals as load's."""
    checkpoint = HFCheckpoint(Path(folder))
    model = Decoder(families.read_config(checkpoint.config, str(checkpoint.folder)), dtype, device="meta")
    for name in _Plan.of(checkpoint, model.config).order:
        model.set_tensor(name, checkpoint.map(name))
    checkpoint.close()
    return model


def _stored_dtype(checkpoint: ModelFolder, config: ModelConfig) -> torch.dtype:
    """What config.json says, as everybody reads it; where it says nothing, what most bytes are stored in."""
    said = any(checkpoint.config.get(key) for key in ("torch_dtype", "dtype"))
    named = getattr(torch, config.dtype, None) if said else None
    return named if isinstance(named, torch.dtype) else dtype_of(checkpoint)


@dataclass(frozen=True)
class _Plan:
    """What is to be read, in the order of the files, after every check of names, shapes and storage."""

    specs: dict[str, TensorSpec]
    order: list[str]
    groups: dict[str, dict[str, str]]
    few_bits: dict[str, Place]
    """What quantising puts in few bits: linear layers and experts."""
    biases: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: ModelFolder, config: ModelConfig) -> _Plan:
        """Refusal ``checkpoint-mismatch`` with every missing, unexpected and misshapen tensor."""
        specs, groups = checkpoint.names(), checkpoint.quantized
        parts = {part for group in groups.values() for part in group.values()}
        expected = config.tensor_shapes()
        few_bits = {place.weight_name: place for place in config.layout.in_few_bits()}
        held = {name: spec for name, spec in specs.items() if name not in parts}
        table, head = (place.weight_name for place in config.layout.vocabulary)
        if config.tied and {table, head} <= held.keys() and checkpoint.sha256(head) == checkpoint.sha256(table):
            del held[head]
        wrong = [f"{name} is missing" for name in expected if name not in held and name not in groups]
        for name in [*held, *groups]:
            if name not in expected:
                wrong.append(_unexpected(name, config))
            elif name in groups and (name not in few_bits or few_bits[name].kind != LINEAR):
                bits = BITS[storage_of(groups[name])]
                wrong.append(f"{name} is stored in {bits}, which is read for the linear layers only")
            elif name in groups:
                wrong += [f"{name} {fault}" for fault in faults(checkpoint, groups[name], tuple(expected[name]))]
            elif name in held and held[name].shape != tuple(expected[name]):
                wrong.append(f"{name} is {list(held[name].shape)}, not {list(expected[name])}")
            elif name in held and held[name].dtype not in _FLOATS:
                wrong.append(f"{name} is stored as {held[name]}")
        if wrong:
            raise Refusal(
                "checkpoint-mismatch",
                "the tensors of this checkpoint are not those that its configuration asks for",
                where=str(checkpoint.folder),
                found=wrong,
                fix="take the config.json that came with these weights, or fetch the folder again",
            )
        biases = {name: b for name in few_bits if (b := name.removesuffix("weight") + "bias") in expected}
        order = [name for name in specs if name in held or name in groups]
        return cls(specs, order, groups, few_bits, biases)

    def bytes_of(self, name: str) -> int:
        return sum(self.specs[part].nbytes for part in self.groups.get(name, {"weight": name}).values())


def _unexpected(name: str, config: ModelConfig) -> str:
    table, head = (place.weight_name for place in config.layout.vocabulary)
    if name == head and config.tied:
        return f"{name} differs from {table}, and tie_word_embeddings says they are one"
    return f"{name} is unexpected"


def _place(
    model: Decoder,
    checkpoint: ModelFolder,
    name: str,
    plan: _Plan,
    devices: tuple[torch.device, torch.device],
    quantize: Quantize | None,
    double_quant: bool,
    between: Callable[[], None],
) -> None:
    """Read one tensor, one linear layer or one place's experts, and hand it to the model in its final form.
    ``devices``: where it is computed and quantised, and where a layer's tensors stay."""
    device, home = devices
    place = plan.few_bits.get(name)
    group = plan.groups.get(name)
    if place is not None and place.kind == EXPERTS and quantize:
        experts = QuantisedExperts(quantize, place, model.dtype, home, double_quant)
        for number in range(place.shape[0]):
            experts.put(number, checkpoint.read_one(name, number, model.dtype).to(device))
            between()
        model.set_linear(place, experts)
        return
    if place is None or not (group or quantize):
        in_few_bits = {b for w, b in plan.biases.items() if quantize or w in plan.groups}
        if name not in in_few_bits:  # those came with their weights
            where = home if name in model.layout.inside else device
            model.set_tensor(name, _dense(checkpoint, name, model.dtype, where))
        return
    bias = _dense(checkpoint, plan.biases[name], model.dtype, device) if name in plan.biases else None
    if group:
        parts = {key: checkpoint.read(part).to(device) for key, part in group.items()}
        made = STORED[storage_of(group)].from_bitsandbytes(parts, place.shape, bias, model.dtype)
        model.set_linear(place, made.to(home))
    elif quantize:
        weight = _dense(checkpoint, name, model.dtype, device)
        model.set_linear(place, quantised(quantize, weight, bias, double_quant).to(home))


def _dense(checkpoint: ModelFolder, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return checkpoint.read(name, dtype).to(device)


class _Progress:
    """A line every five seconds with bytes and time left; nothing for a load that is quicker."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self.total, self._done = say, total, 0
        self._begun = self._said = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY_SECONDS and self._done < self.total:
            self._said = now
            left = (now - self._begun) / self._done * (self.total - self._done)
            self._say(f"  {self._done / 1e9:.1f} of {self.total / 1e9:.1f} GB, {left:.0f} s left")
