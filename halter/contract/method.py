"""What a method is: a frozen dataclass of options in a file of its own, and small modules that act at places.

A method file holds one subclass of Method. Its fields are the YAML keys, the command-line flags, the saved
configuration and the help; ``build`` says which places it uses. The file's name is the method's name and the only
registration there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from halter.contract import seeing
from halter.contract.pair import Pair
from halter.encoders.sight import EncoderLook
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.model.layout import TEXT
from halter.model.places import Act, Extra
from halter.model.segments import Segments
from halter.numerics import dropout
from halter.text.tokenizer import Tokenizer

PEFT_PREFIX = "base_model.model."
T = TypeVar("T")
RowGroup = Literal["all", "pictures", "texts", "none"]
"""Rows from which a parameter learns: all, those with pictures, those without any, or none: it stays as it is."""


@dataclass(frozen=True)
class Default:
    """A value and where it comes from."""

    value: Any
    source: str


LORA_TRAINING: dict[str, Default] = {
    "learning_rate": Default(3e-4, "tloen/alpaca-lora finetune.py, LLaMA-7B"),
    "num_train_epochs": Default(3, "tloen/alpaca-lora finetune.py, LLaMA-7B"),
    "tokens_per_step": Default(
        8192, "16 rows of up to 512 tokens, as in artidoro/qlora qlora.py and scripts/finetune_guanaco_7b.sh"
    ),
    "warmup_steps": Default(0.03, "warmup_ratio of Stanford Alpaca's training command, LLaMA-7B"),
}
"""What LoRA trains with, and what a method has of its own where its authors say nothing else."""


@dataclass(frozen=True)
class Site:
    """Where and for what one piece is bound: a place of one forward over one base."""

    base: Decoder
    """The frozen model."""
    layer: int | None
    """The place's layer, counted from 0; None: it lies outside the layers."""
    place: str
    """The place's name in its block's layout."""
    segments: Segments
    """The rows of this forward."""
    key: int | None = None
    """Seeds dropout for this forward; None: no dropout, which is evaluation."""
    made: dict[int, Any] = field(default_factory=dict)
    """What ``once`` has made in this forward."""

    def once(self, owner: nn.Module, make: Callable[[], T]) -> T:
        """What ``make`` returns, made once in a forward for all pieces that hold ``owner`` in common."""
        if id(owner) not in self.made:
            self.made[id(owner)] = make()
        return self.made[id(owner)]  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the base computes in."""
        return self.base.dtype

    @property
    def module(self) -> nn.Module:
        """The base's module at this place; its weights may be quantised (model.storages)."""
        return self.base.module(self.layer, self.place)

    def weights(self) -> AbstractContextManager[None]:
        """Within, the layer's weights are on the device that the base computes on, also where layers are streamed; a
        bind that computes with them must stand inside."""
        return nullcontext() if self.layer is None else self.base.residence.lent(self.layer)

    @property
    def features(self) -> Sequence[Any] | None:
        """What each row brings besides its tokens (Segments.features)."""
        return self.segments.features

    def mask_key(self) -> int:
        """The key of this place's dropout mask."""
        return dropout.key(self.key, self.layer, self.place)

    def dropout(self, rate: float) -> tuple[float, int]:
        """The share that is dropped in this forward, and the key of the mask; (0, 0) where nothing is."""
        return (0.0, 0) if self.key is None else (rate, self.mask_key())


class Piece(nn.Module):
    """A method's parameters at one place, in float32. Holds parameters and frozen buffers, never caches.

    ``saved_names`` maps parameter and buffer names to the names in the adapter's file.
    """

    saved_names: dict[str, str] = {}
    folds: bool = False
    """Whether its effect is a change of its place's weight. Its ``bind`` then reads no more of the base than this
    weight: beside another method it is bound to that alone, and what both make of the weight is found by their acts."""
    replaces: bool = False
    """Whether it brings a weight that is used instead of the base's."""
    takes_pairs: ClassVar[bool] = False
    """Whether it can begin as an earlier low-rank pair; it has a ``pair`` then, and ``take``."""
    joins_as_formerly: bool = False
    """Read from a folder of when, of several that put something in the place of one weight, one alone counted: a
    ``replaces`` after another has no effect, and token rows put themselves in the place of all that came before."""
    token_ids: tuple[int, ...] | None = None
    """At a table of embeddings or of the head: the only rows that it changes; None: any."""
    length: int = 0
    """At ``virtual_tokens``: how many stand ahead of each row."""

    def bind(self, site: Site) -> Act | Extra:
        """The act of one forward, with everything that can be computed once already computed.

        At ``memory`` an Extra of keys and values, at ``virtual_tokens`` one of embeddings.
        """
        raise NotImplementedError

    def reset(self, generator: torch.Generator) -> None:
        """Draw the initial parameters; ``generator`` is seeded for this place alone."""

    def start(self, module: nn.Module) -> None:
        """Read what the method needs of the base's weight, once, when it is put on a base."""

    def plain(self) -> dict[str, Tensor] | None:
        """{attribute: tensor} of the piece that stands for this one in a file, where it was trained in another form."""
        return None

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The base's float32 weight and bias with this piece's effect in them. Only where ``folds``."""
        raise NotImplementedError

    def pair(self) -> Pair | None:
        """The low-rank pair that is all of this piece; None: it is something else."""
        return None

    def pairs(self) -> Iterator[Pair]:
        """Every low-rank pair in this piece: its own, and those of pieces within it."""
        pieces = (module for module in self.modules() if isinstance(module, Piece))
        yield from (pair for piece in pieces if (pair := piece.pair()) is not None)

    def take(self, earlier: Pair, module: nn.Module) -> None:
        """Begin as the function of an earlier pair of no higher rank, over the base's ``module``. Only where
        ``takes_pairs``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Method:
    """Options of one method. Subclasses are frozen dataclasses with a docstring under every field."""

    peft_type: ClassVar[str]
    servable_by: ClassVar[tuple[str, ...]] = ("halter",)
    every_stack: ClassVar[bool] = False
    """Whether it chooses its places by their kind or their path, in the blocks of any stack; else it speaks of the
    text's blocks, and a tower of pictures is left as it is."""
    starts_as_base: ClassVar[bool] = True
    """Whether an adapter that nobody has trained changes nothing; false where the authors' start disturbs the base."""
    training: ClassVar[Mapping[str, Default]] = {}
    """{TrainOptions field: Default} that it trains with unless told otherwise; {}: LoRA's, told as such."""
    sources: ClassVar[Mapping[str, str]] = {}
    """{option: where its default comes from}."""
    note: ClassVar[str] = ""
    """When to use it and what it costs, for its page."""
    agreement: ClassVar[str] = "The laws that hold for every method, and nothing else."
    """What its numbers were compared with, for its page."""

    @classmethod
    def name(cls) -> str:
        """The method's name, which is its file's."""
        return cls.__module__.rsplit(".", 1)[-1]

    def build(self, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
        """{place: piece} for one layer; ``layer`` None asks for the places outside the layers. {} uses none."""
        raise NotImplementedError

    def check(self, shape: ModelConfig) -> None:
        """Refuse options that make no sense on this model, before anything is built."""

    def idle(self) -> list[str]:
        """Options by which what is learned counts for nothing: an adapter that has them is read, none begins so."""
        return []

    def check_new(self, shape: ModelConfig) -> None:
        """What ``check`` refuses, and a training that could change nothing."""
        self.check(shape)
        if idle := self.idle():
            what = "with these options nothing that is learned would count"
            raise Refusal("learns-nothing", what, found=idle, fix="give a strength other than 0, or leave it out")

    def named(self, tokenizer: Tokenizer) -> Method:
        """The same with ids for tokens that the options name by their text. Refusal ``token-unknown``."""
        return self

    def equipped(self) -> Method:
        """The same with what stands in the folder of an encoder that the options name (contract.seeing)."""
        return seeing.equipped(self)

    @property
    def looks(self) -> tuple[EncoderLook, ...]:
        """What it takes of a row's pictures; (): it is blind."""
        return ()

    @property
    def picture_tokens(self) -> int:
        """Tokens that stand for a picture in a row of a method that sees; 0: none, all of the row sees it."""
        return 0

    @property
    def tokenwise(self) -> bool:
        """Whether a token is treated alike wherever and in whichever row it stands, without dropout.

        Training then computes a beginning that several rows share once (data.share); False is always right.
        """
        return False

    def share(self, pieces: Sequence[Piece]) -> None:
        """Let the pieces of all layers, first to last, hold some tensors in common."""

    @classmethod
    def former(cls, recorded: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        """{option: (value, what it means)} of options that Halter did not have from the start and whose default is not
        what it computed before: the value that is. ``recorded`` are an adapter's or a run's other options, for some of
        which it may make no difference."""
        return {}

    def plain(self) -> Method:
        """The options under which what was trained is saved; itself, but for a form that only training needs."""
        return self

    def learns_from(self, place: str, name: str) -> RowGroup:
        """The rows from which a parameter of a piece learns, by the piece's place and the parameter's name there."""
        return "all"

    def groups(self, named: dict[str, nn.Parameter], learning_rate: float) -> list[dict[str, Any]] | None:
        """Optimizer groups of its own (LoRA+), or None for the default; ``named`` maps path.tensor to parameter."""
        return None

    def told(self, shape: ModelConfig) -> list[str]:
        """What the reader of another program's file with these options has to tell: where it is not Halter's default
        that is computed."""
        return [f"{option}: the update that it scales is nothing" for option in self.idle()]

    def nearest_in_peft(
        self, own: dict[str, Tensor], shape: ModelConfig
    ) -> tuple[Method, dict[str, Tensor], tuple[str, ...]]:
        """The form of this method that PEFT has and that is nearest to this one: its options, its {path.saved_name:
        tensor}, and what is lost on the way, a line each. Itself, but for a method of several forms."""
        return self, own, ()

    def other_than_peft(self, shape: ModelConfig) -> list[str]:
        """What PEFT's method of this kind would compute otherwise on this base, a line each."""
        return []

    def to_peft(self, shape: ModelConfig) -> dict[str, Any]:
        """The method's part of adapter_config.json."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to_peft_tensors(self, own: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        """{name in PEFT's file: tensor} from {path.saved_name: tensor}, for a method whose PEFT file is laid out
        otherwise; reshaping only, so that saved is loaded bit for bit."""
        return {PEFT_PREFIX + name: tensor for name, tensor in own.items()}

    def from_peft_tensors(self, stored: dict[str, Tensor], shape: ModelConfig) -> dict[str, Tensor]:
        """The way back; ``stored`` has no prefix any more. Names that it does not know stay, to be told."""
        return stored

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Whether a PEFT adapter_config.json is this method's."""
        return config.get("peft_type") == cls.peft_type

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Method:
        """The options in an adapter_config.json; unknown keys are tolerated, unsupported ones refused by name."""
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})


def built(method: Method, shape: ModelConfig, layer: int | None) -> dict[str, Piece]:
    """What a method brings to one block, or outside of them: ``Method.build``, and nothing to a block that is no
    business of its own (``Method.every_stack``)."""
    if layer is None or method.every_stack or shape.layout.blocks[layer].stack == TEXT:
        return method.build(shape, layer)
    return {}


def in_words(options: Method) -> str:
    """The options that say something, as a recipe has them: ``, r 16, alpha 32``."""
    values = ((one.name, getattr(options, one.name)) for one in fields(options) if one.init and one.repr)
    silent: tuple[object, ...] = (None, False, 0, (), {}, "")
    return "".join(f", {name} {_plain(value)}" for name, value in values if not any(value == one for one in silent))


def _plain(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return "/".join(map(_plain, value))
    if isinstance(value, Mapping):
        return "/".join(f"{key}: {_plain(one)}" for key, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
