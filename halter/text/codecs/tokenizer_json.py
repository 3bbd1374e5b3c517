"""tokenizer.json, the Hugging Face format, through the ``tokenizers`` library."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from halter.errors import Refusal
from halter.files.reading import MAX_TEXT_BYTES, read_json
from halter.text.codecs.bounds import costly
from halter.text.codecs.codec import Control, check_ids

SPACE = "▁"  # U+2581, SentencePiece's sign for a space
SUPPORTED = "a BPE or Unigram model with a byte-level or SentencePiece decoder, as every LLaMA tokenizer has"

LONG = 2000
"""Characters above which a text is encoded as a batch of one outside the main thread: ``encode`` of the library holds
the interpreter, a second for a million characters, and other threads with it. The main thread may fork (data.workers),
before which the library must not have had threads of its own."""


class JsonCodec:
    """A tokenizer.json; its added tokens, padding, truncation and post-processor are kept from the library."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        spec = read_json(self._path, MAX_TEXT_BYTES)  # Llama 3's has 17 MB
        model = spec.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") not in ("BPE", "Unigram"):
            raise self._unsupported(f"model type {model.get('type') if isinstance(model, dict) else model!r}")
        if wrong := costly(spec):
            raise self._unsupported(", ".join(wrong))
        self._spec = spec
        vocab = model.get("vocab") or {}
        ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
        added = [
            Control(**{k: a[k] for k in _ADDED if k in a}, text=a["content"]) for a in spec.get("added_tokens") or ()
        ]
        ids.update((a.text, a.id) for a in added)
        check_ids(ids, self._path)
        self._ids: dict[str, int] = ids
        self.size = max(ids.values(), default=-1) + 1
        self._tokens = [""] * self.size
        for token, id in ids.items():
            self._tokens[id] = token
        # An added token of white space or of one character is ordinary vocabulary that BPE lacks, not a control token.
        self.controls = tuple(a for a in added if len(a.text.strip()) > 1)
        self._added = {a.id for a in added}
        self.byte_level = _find(spec.get("decoder"), "ByteLevel") is not None
        self._byte_fallback = _find(spec.get("decoder"), "ByteFallback") is not None
        self._scheme = _prefix_scheme(spec)
        self.drops_first_space = _drops_first_space(spec.get("decoder"))
        self._check_decoder()
        self.bos_id = _opening_id(spec.get("post_processor"))
        self.eos_id: int | None = None
        self.pad_id: int | None = None
        self.stop_ids: tuple[int, ...] = ()
        unknown = model.get("unk_token", model.get("unk_id"))
        self.unk_id = ids.get(unknown) if isinstance(unknown, str) else unknown
        if unknown is not None and self.unk_id is None:
            raise Refusal(
                "tokenizer-unreadable",
                f"lacks its own unknown token {unknown!r}",
                where=str(self._path),
                fix="fetch the file again",
            )
        self._prefixed = self._library(bare=False)
        self._bare = self._prefixed if self._scheme == "never" else self._library(bare=True)

    def _unsupported(self, what: str) -> Refusal:
        return Refusal(
            "tokenizer-unsupported",
            f"has {what}",
            where=str(self._path),
            expected=SUPPORTED,
            fix="give a base with a tokenizer of the LLaMA family",
        )

    def _check_decoder(self) -> None:
        decoder = self._spec.get("decoder")
        sentencepiece = _find(decoder, "Metaspace") or _find(decoder, "Replace")
        if not self.byte_level and sentencepiece is None:
            raise self._unsupported(f"the decoder {decoder.get('type') if isinstance(decoder, dict) else decoder}")

    def _library(self, bare: bool) -> tokenizers.Tokenizer:
        spec = {k: self._spec.get(k) for k in ("version", "normalizer", "pre_tokenizer", "model")}
        spec |= {"truncation": None, "padding": None, "post_processor": None, "decoder": None}
        control = {c.text for c in self.controls}
        spec["added_tokens"] = [a for a in self._spec.get("added_tokens") or () if a["content"] not in control]
        if bare:
            spec["normalizer"] = _without_prefix(spec["normalizer"])
            spec["pre_tokenizer"] = _without_prefix(spec["pre_tokenizer"])
        try:
            with self._panics_refused():
                return tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises plain Exception for whatever it cannot read
            raise self._unreadable(f"the tokenizers library cannot read it: {str(error)[:500]}") from None

    def _unreadable(self, what: str) -> Refusal:
        return Refusal("tokenizer-unreadable", what, where=str(self._path), fix="fetch the file again")

    @contextmanager
    def _panics_refused(self) -> Iterator[None]:
        """A panic of the Rust library, which is no Exception, is the file's fault: an expression without end, say."""
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise self._unreadable(f"the tokenizers library fails at it: {str(error)[:500]}") from None

    def run(self, text: str, prefix: bool) -> list[int]:
        library = self._prefixed if prefix else self._bare
        with self._panics_refused():
            if len(text) > LONG and threading.current_thread() is not threading.main_thread():
                ids: list[int] = library.encode_batch_fast([text], add_special_tokens=False)[0].ids
            else:
                ids = library.encode(text, add_special_tokens=False).ids
        return ids

    def prefix_after(self, control: Control | None) -> bool:
        if control is None:
            return self._scheme != "never"
        return self._scheme == "each"

    def piece(self, id: int) -> bytes:
        token = self._tokens[id]
        if id in self._added:
            return token.encode()
        return _from_table(token, _byte_table()) if self.byte_level else sentencepiece_bytes(token, self._byte_fallback)

    def token(self, id: int) -> str:
        return self._tokens[id]

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def canonical(self) -> bytes:
        model = dict(self._spec["model"])
        # Older files write a merge as "a b", newer ones as ["a", "b"].
        model["merges"] = [m.split(" ", 1) if isinstance(m, str) else m for m in model.get("merges") or ()]
        parts = {k: self._spec.get(k) for k in ("normalizer", "pre_tokenizer", "decoder", "added_tokens")}
        return json.dumps(parts | {"model": model}, sort_keys=True, separators=(",", ":")).encode()


_ADDED = ("id", "special", "lstrip", "rstrip", "single_word")


def _find(component: Any, kind: str) -> dict[str, Any] | None:
    """The first normalizer, pre-tokenizer or decoder of this type in a component or a sequence of them."""
    if not isinstance(component, dict):
        return None
    if component.get("type") == kind:
        return component
    for part in _parts(component):
        if (found := _find(part, kind)) is not None:
            return found
    return None


def _parts(component: dict[str, Any]) -> list[Any]:
    for key in ("normalizers", "pretokenizers", "decoders", "processors"):
        if key in component:
            return list(component[key])
    return []


def _prefix_scheme(spec: dict[str, Any]) -> str:
    """Before which runs a space is put: never, first (of the text), each."""
    if _find(spec.get("normalizer"), "Prepend") is not None:
        return "each"
    if (metaspace := _find(spec.get("pre_tokenizer"), "Metaspace")) is not None:
        scheme = metaspace.get("prepend_scheme") or ("always" if metaspace.get("add_prefix_space", True) else "never")
        return {"always": "each", "first": "first"}.get(scheme, "never")
    byte_level = _find(spec.get("pre_tokenizer"), "ByteLevel")
    return "each" if byte_level is not None and byte_level.get("add_prefix_space", True) else "never"


def _without_prefix(component: Any) -> Any:
    if not isinstance(component, dict):
        return component
    if component.get("type") == "Prepend":
        return None
    component = copy.deepcopy(component)
    if component.get("type") == "Metaspace":
        component["prepend_scheme"] = "never"
        component.pop("add_prefix_space", None)
    elif component.get("type") == "ByteLevel":
        component["add_prefix_space"] = False
    for key in ("normalizers", "pretokenizers"):
        if key in component:
            component[key] = [kept for part in component[key] if (kept := _without_prefix(part)) is not None]
    return component


def _drops_first_space(decoder: Any) -> bool:
    strip, metaspace = _find(decoder, "Strip"), _find(decoder, "Metaspace")
    if strip is not None:
        return strip.get("content") == " " and strip.get("start", 0) >= 1
    return metaspace is not None and metaspace.get("prepend_scheme", "always") != "never"


def _opening_id(post_processor: Any) -> int | None:
    """The id that the file's post-processor puts before a text, if it does."""
    template = _find(post_processor, "TemplateProcessing") or {}
    first: dict[str, Any] = next(iter(template.get("single") or ({},)))
    if "SpecialToken" not in first:
        return None
    ids = template.get("special_tokens", {}).get(first["SpecialToken"]["id"], {}).get("ids", [])
    return int(ids[0]) if len(ids) == 1 else None


def sentencepiece_bytes(piece: str, byte_fallback: bool = True) -> bytes:
    """A SentencePiece piece as bytes: <0x0A> is a byte, U+2581 a space."""
    if byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.replace(SPACE, " ").encode()


@cache
def _byte_table() -> dict[str, int]:
    """{character: byte} of byte-level BPE (GPT-2, encoder.py): printable bytes stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


def _from_table(token: str, table: dict[str, int]) -> bytes:
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        return token.encode()
