"""tokenizer.model as SentencePiece writes it (LLaMA 1, LLaMA 2, Code Llama), through the ``sentencepiece`` library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from halter.errors import Refusal
from halter.files.extras import missing_extra
from halter.files.reading import read_bytes
from halter.text.codecs.codec import Control, check_ids
from halter.text.codecs.tokenizer_json import sentencepiece_bytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class SentencePieceCodec:
    """Every run between control tokens is one call of Meta's encode(): a dummy space goes before it.

    ``added`` are tokens that a tokenizer_config.json puts behind the model's own pieces.
    """

    def __init__(self, path: str | Path, added: Iterable[Control] = ()) -> None:
        added = tuple(added)
        try:
            import sentencepiece
            from sentencepiece import sentencepiece_model_pb2
        except ImportError as error:
            raise missing_extra("meta", "tokenizer.model files of LLaMA 1 and 2", path, error) from None
        self._data = read_bytes(path)
        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        try:
            model.ParseFromString(self._data)
            self._prefixed = sentencepiece.SentencePieceProcessor(model_proto=self._data)
            self._collapses = model.normalizer_spec.remove_extra_whitespaces
            model.normalizer_spec.add_dummy_prefix = False
            self._bare = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        except Exception as error:  # protobuf and the library each raise their own kinds
            raise Refusal(
                "tokenizer-unreadable",
                f"is no SentencePiece model: {error}",
                where=str(path),
                fix="fetch the file again",
            ) from None
        broken = [i for i, piece in enumerate(model.pieces) if not isinstance(piece.piece, str)]
        if broken:  # protobuf's Python hands out bytes for what is not UTF-8
            raise Refusal(
                "tokenizer-unreadable",
                "has pieces that are no text",
                where=str(path),
                found=broken,
                fix="fetch the file again",
            )
        check_ids({p.piece: i for i, p in enumerate(model.pieces)} | {a.text: a.id for a in added}, path)
        self._added = tuple(a for a in added if a.id >= len(model.pieces))
        self._tokens = [p.piece for p in model.pieces]
        self._types = [p.type for p in model.pieces]
        self._tokens += [""] * (max((a.id + 1 for a in self._added), default=0) - len(self._tokens))
        for a in self._added:
            self._tokens[a.id] = a.text
        self.size = len(self._tokens)
        self._ids = {token: i for i, token in reversed(list(enumerate(self._tokens)))}
        decreed = (UNKNOWN, CONTROL, USER_DEFINED)
        self.controls = self._added + tuple(
            Control(self._tokens[i], i, special=t != USER_DEFINED) for i, t in enumerate(self._types) if t in decreed
        )
        self.drops_first_space = self._prefixed.encode("a") != self._bare.encode("a")
        bos, eos = self._prefixed.bos_id(), self._prefixed.eos_id()
        self.bos_id = bos if bos >= 0 else None
        self.eos_id = eos if eos >= 0 else None
        self.pad_id: int | None = None
        self.stop_ids: tuple[int, ...] = ()
        self.unk_id: int | None = self._prefixed.unk_id()

    def run(self, text: str, prefix: bool) -> list[int]:
        # A model that collapses spaces also drops the one that a continuation begins with: the dummy one replaces it.
        prefix = prefix or (self._collapses and text.startswith(" "))
        ids: list[int] = (self._prefixed if prefix else self._bare).encode(text)
        return ids

    def prefix_after(self, control: Control | None) -> bool:
        return True

    def piece(self, id: int) -> bytes:
        token = self._tokens[id]
        plain = id < len(self._types) and self._types[id] in (NORMAL, BYTE, USER_DEFINED)
        return sentencepiece_bytes(token) if plain else token.encode()

    def token(self, id: int) -> str:
        return self._tokens[id]

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def canonical(self) -> bytes:
        added = repr(sorted((a.id, a.text) for a in self._added)) if self._added else ""
        return self._data + added.encode()
