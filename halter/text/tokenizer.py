"""One tokenizer for every LLaMA checkpoint, whichever file it comes in.

Control tokens come into being in one way only: the caller says that they may (``control=True``, or a chat template's
own text). Everything else is plain text, whatever it spells, so no user can type an end of turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halter.arguments import bound
from halter.elsewhere import called_otherwise, misused
from halter.errors import HalterError
from halter.files.reading import junk_refused
from halter.text import tokenizer_settings
from halter.text.chat.conversations import ChatTemplate
from halter.text.codecs.codec import Codec, Control, ControlFinder, Match
from halter.text.codecs.sentencepiece_model import SentencePieceCodec
from halter.text.codecs.tiktoken_ranks import TiktokenCodec, looks_like_tiktoken
from halter.text.codecs.tokenizer_json import JsonCodec
from halter.text.detokenize import Pieces, TextStream, decode

if TYPE_CHECKING:
    from halter.text.tokenizer_settings import Settings


@dataclass(frozen=True)
class TextRun:
    """Ids of text[start:end]."""

    start: int
    end: int
    ids: list[int]


FEW = 0.75
"""Share of the embedding's rows below which a tokenizer's entries are too few for rows that only round its size up."""


def other_vocabulary(entries: int, rows: int) -> str:
    """What is said of a tokenizer of so many entries beside an embedding of so many rows; '' where they may fit."""
    if entries >= FEW * rows:
        return ""
    return f"the tokenizer knows {entries:,} tokens and the model has {rows:,}: they hardly belong together"


@called_otherwise
class Tokenizer:
    """Text to ids and back. Ids are Python ints; nothing here pads, truncates or adds BOS and EOS.

    ``bos_id`` is the id that sequences of this model begin with (None: they begin with none), ``stop_ids`` all ids
    that end a generation, ``pad_id`` None where the checkpoint has none: Halter packs rows and needs no padding.
    ``files`` are the files to copy into an exported folder, ``template_in_files`` whether these bring the chat template
    along; ``names`` the special strings a chat template may print. ``drops_first_space``: decoding a text takes a first
    space off again, which encoding put there.
    """

    def __init__(self, codec: Codec, settings: Settings, files: Sequence[Path] = ()) -> None:
        self._codec = codec
        self.files = tuple(files)
        self.vocab_size = codec.size
        config = settings.config
        eos = self._id_of(settings, "eos_token", codec.eos_id)
        bos = self._id_of(settings, "bos_token", config.get("bos_token_id") if codec.bos_id is None else codec.bos_id)
        self.bos_id = tokenizer_settings.opening_id(settings, bos, eos, codec.bos_id)
        if eos is None:
            eos = next(iter((*settings.generation_eos, *tokenizer_settings.ids_of(config.get("eos_token_id")))), None)
        self.eos_id = eos
        self.stop_ids = tokenizer_settings.stop_ids(settings, eos, codec.stop_ids, self.token_id)
        pad = config.get("pad_token_id")
        self.pad_id = self._id_of(settings, "pad_token", codec.pad_id if pad is None else pad)
        self.unk_id = self._id_of(settings, "unk_token", codec.unk_id)
        self.names = dict(settings.names)
        for name, id in (("bos_token", bos), ("eos_token", eos)):
            if id is not None and id < codec.size:
                self.names.setdefault(name, codec.token(id))
        self.controls = self._all_controls()
        self.finder = ControlFinder(self.controls)
        self.drops_first_space = codec.drops_first_space
        # <unk> comes of unknown characters too, so it is forbidden only where it doubles as BOS or EOS.
        self._never = frozenset(c.id for c in self.controls if c.id != self.unk_id or c.id in (bos, eos))
        self.chat_template = self._template(settings)
        self.template_in_files = bool(settings.templates)

    @classmethod
    def from_folder(cls, folder: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """The tokenizer of a Hugging Face or Meta folder; ``config``: its config.json, where the caller has read it.

        tokenizer.json is preferred; tokenizer.model may be SentencePiece's or tiktoken's (extra ``meta``).
        Refusal ``tokenizer-missing``, ``tokenizer-unreadable``, ``tokenizer-unsupported``, ``extra-missing``.
        """
        folder = Path(folder)
        fix = "copy the tokenizer files of the base model again"
        with junk_refused("tokenizer-unreadable", "its tokenizer files are not as they should be", folder, fix):
            return cls._read(folder, config)

    @classmethod
    def _read(cls, folder: Path, config: Mapping[str, Any] | None) -> Tokenizer:
        settings = tokenizer_settings.read_settings(folder, config)
        files = [folder / name for name in tokenizer_settings.FILES if (folder / name).is_file()]
        codec: Codec
        if (folder / "tokenizer.json").is_file():
            codec = JsonCodec(folder / "tokenizer.json")
        elif not (folder / "tokenizer.model").is_file():
            raise tokenizer_settings.missing_tokenizer(folder)
        elif looks_like_tiktoken(folder / "tokenizer.model"):
            codec = TiktokenCodec(folder / "tokenizer.model")
        else:
            codec = SentencePieceCodec(folder / "tokenizer.model", settings.added)
        return cls(codec, settings, files)

    def _template(self, settings: Settings) -> ChatTemplate | None:
        """The checkpoint's own template. One that says to stop at a turn's end was taught turns; where it brings none
        and its family has but one way to write them, that."""
        if settings.templates:
            return ChatTemplate.from_named(settings.templates)
        stops = settings.generation_eos or tokenizer_settings.ids_of(settings.config.get("eos_token_id"))
        ends = (name for token, name in tokenizer_settings.TAUGHT.items() if self._codec.token_id(token) in stops)
        name = next(ends, None)
        return None if name is None else ChatTemplate.builtin(name)

    def _id_of(self, settings: Settings, name: str, otherwise: int | None) -> int | None:
        token = settings.names.get(name)
        if (meant := tokenizer_settings.MISNAMED.get(token or "")) and self._codec.token_id(meant) is not None:
            token = meant
        id = self._codec.token_id(token) if token is not None else None
        if id is not None:
            return id
        return otherwise if isinstance(otherwise, int) and 0 <= otherwise < self._codec.size else None

    def _all_controls(self) -> tuple[Control, ...]:
        """Those of the file, and BOS, EOS, unknown and pad even where the file holds them as ordinary pieces."""
        controls = {c.id: c for c in self._codec.controls}
        for id in (self.bos_id, self.eos_id, self.unk_id, self.pad_id, *self.stop_ids):
            if id is not None and id < self.vocab_size and id not in controls and len(self.token(id).strip()) > 1:
                controls[id] = Control(self.token(id), id)
        return tuple(controls.values())

    def token_id(self, token: str) -> int | None:
        """The id of exactly this vocabulary entry ("▁the", "Ġthe", "<|eot_id|>"), or None. Refusal ``wrong-argument``
        for anything but a text."""
        if not isinstance(token, str):
            raise misused("tokenizer.token_id", "token", token)
        return self._codec.token_id(token)

    def token(self, id: int) -> str:
        """The vocabulary entry of an id in [0, vocab_size). Refusal ``wrong-argument`` for anything but a whole
        number."""
        if not isinstance(id, Integral):
            raise misused("tokenizer.token", "id", id)
        if not 0 <= id < self.vocab_size:
            raise IndexError(f"id {id} is outside the vocabulary of {self.vocab_size}")
        return self._codec.token(id)

    def piece(self, id: int) -> bytes:
        """The bytes that a token stands for in a text, a control token's name; none of an id beyond the vocabulary,
        which a model may have."""
        return self._pieces[id] if 0 <= id < self.vocab_size else b""

    @bound("tokenizer.encode", 'tokenizer.encode("Once upon a time")')
    def encode(self, text: str, *, control: bool = False, continues: bool = False) -> list[int]:
        """Ids of text, never with BOS or EOS added.

        control=False: what looks like a control token is encoded as the plain text it is. True: it becomes its id.
        continues: the text goes on from one already encoded, so SentencePiece's dummy space does not go before it.
        Refusals ``wrong-argument`` for anything but one text, and ``unknown-option``.
        """
        if not isinstance(text, str):
            raise misused("tokenizer.encode", "text", text)
        runs = self.encode_runs(text, self.finder.find(text) if control else (), {0: False} if continues else None)
        return [id for run in runs for id in run.ids]

    def encode_runs(
        self,
        text: str,
        matches: Sequence[Match],
        cuts: Mapping[int, bool] | None = None,
        markers: ControlFinder | None = None,
    ) -> list[TextRun]:
        """Ids by stretches of text: ``matches`` become control ids, all else is encoded as plain text.

        Each key of ``cuts`` is a position where a run begins (and the one before it ends); its value says whether that
        run is encoded as a text of its own (True) or as a continuation. ``markers``: more tokens that plain text may
        not become.
        """
        cuts = cuts or {}
        ends = sorted(cuts)
        runs: list[TextRun] = []
        at, after = 0, None
        for match in (*matches, None):
            stop = match.start if match is not None else len(text)
            prefix = self._codec.prefix_after(after) and not (after is not None and after.ordinary)
            if at == 0:
                prefix = cuts.get(0, prefix)
            for cut in (*(c for c in ends if at < c < stop), stop):
                if cut > at:
                    runs.append(TextRun(at, cut, self._plain(text[at:cut], prefix, markers)))
                at, prefix = cut, cuts.get(cut, False)
            if match is not None:
                runs.append(TextRun(match.start, match.end, [match.control.id]))
                at, after = match.end, match.control
        return runs

    def _plain(self, text: str, prefix: bool, markers: ControlFinder | None = None) -> list[int]:
        ids = self._codec.run(text, prefix)
        never = self._never | {c.id for c in markers.controls} if markers is not None else self._never
        if never.isdisjoint(ids) and self.unk_id not in ids:
            return ids
        cuts = {*self.finder.cuts(text), *(markers.cuts(text) if markers is not None else ())}
        if never.isdisjoint(ids) and not cuts:
            return ids  # a character that the vocabulary lacks is <unk> by right
        ids = self._in_parts(text, sorted(cuts), prefix)
        if not never.isdisjoint(ids):
            ids = self._in_parts(text, range(1, len(text)), prefix)
        if leaked := sorted(never.intersection(ids)):
            raise HalterError(f"plain text becomes the control tokens {[self.token(i) for i in leaked]}: {text[:80]!r}")
        return ids

    def _in_parts(self, text: str, cuts: Iterable[int], prefix: bool) -> list[int]:
        ids: list[int] = []
        at = 0
        for cut in (*cuts, len(text)):
            ids += self._codec.run(text[at:cut], prefix and at == 0)
            at = cut
        return ids

    def marker(self, text: str) -> Control | None:
        """A string that plain encoding turns into one id of that very name, so that typing it forges it; else None."""
        id = self._codec.token_id(text)
        if id is None or id in self._never or self._codec.run(text, False) != [id]:
            return None
        return Control(text, id, special=False, ordinary=True)

    @bound("tokenizer.decode", "tokenizer.decode(ids)")
    def decode(self, ids: Iterable[int], *, skip_control: bool = True) -> str:
        """The text of ids; with skip_control the special tokens are left out. A first dummy space is dropped. Refusals
        ``wrong-argument`` for anything but one list of ids, and ``unknown-option``."""
        try:
            ids = list(map(index, ids))  # of other libraries too, whose numbers do not compare as Python's do
        except TypeError:
            raise misused("tokenizer.decode", "ids", ids) from None
        skipped = self._skipped if skip_control else frozenset[int]()
        return decode(self._pieces, skipped, self.drops_first_space, ids)

    def stream(self, *, skip_control: bool = True, previous: Iterable[int] = ()) -> TextStream:
        """Decoding one id at a time; ``previous`` ids set the stage and are not said again."""
        skipped = self._skipped if skip_control else frozenset[int]()
        return TextStream(self._pieces, skipped, self.drops_first_space, previous)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self._codec.piece, self._codec.size)

    @cached_property
    def _skipped(self) -> frozenset[int]:
        return frozenset(c.id for c in self.controls if c.special)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the tokenizer's content and its special ids, not of how its files happen to be written."""
        ids = repr((self.bos_id, self.eos_id, self.unk_id)).encode()
        return hashlib.sha256(self._codec.canonical() + b"\0" + ids).hexdigest()
