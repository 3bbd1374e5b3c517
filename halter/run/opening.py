"""From what a person names (a run, an adapter, a model) to a model that can be asked: base, adapter, template."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from halter import recipe as recipes
from halter.adapters import folder_files, loading
from halter.adapters.adapter import Adapter
from halter.adapters.sight import rules_of
from halter.errors import Refusal, Waivers
from halter.files.nearby import adapter_folder
from halter.files.reading import junk_refused
from halter.files.runs import RunFolder
from halter.model.decoder import Decoder
from halter.model.pictures import PictureRules
from halter.model.storages import STORAGES, Quantize
from halter.numerics import threads
from halter.pretrained.device import Offload
from halter.pretrained.digest import BaseDigest, BaseIdentity, digest_in_background
from halter.pretrained.load import load
from halter.recipe import Recipe
from halter.telling import Say, tell
from halter.text.chat.conversations import BUILTIN, ChatTemplate
from halter.text.tokenizer import Tokenizer

RAW = "raw"
"""As a template's name: no template, text is used as it stands."""


@dataclass(frozen=True)
class OpenOptions:
    """How a subject is opened; the flags of generate, chat and evaluate."""

    model: str | None = None
    """Base model (folder or hub id), where the run or adapter does not say, or another is wanted."""
    adapter: str | None = None
    """Adapter folder or run folder to put on the model."""
    template: str | None = None
    """Chat template: llama-2, llama-3, llama-3.1, llama-3.2-vision, llama-4, alpaca, vicuna, chatml, zephyr, a Jinja
    file, or raw for none. Not given: the one that the adapter was trained with, else the checkpoint's own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What weights are held and computed in; auto: the checkpoint's own."""
    quantize: Literal["nf4", "int8", "none"] | None = None
    """nf4 holds the base in 4 bits, int8 in 8, none does not. Not given: as in training."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; not given: the first accelerator there is."""
    offload: Offload = "none"
    """layers keeps the base's layers in CPU memory, two of them at a time on the GPU."""
    threads: int | None = None
    """CPU threads that compute. Not given: your OMP_NUM_THREADS, else (evaluate) as many as the run was trained with,
    else as many as other programs leave cores free."""
    allow: tuple[str, ...] = ()
    """Ids of refusals that are waived; the id stands in square brackets at the end: base-differs, tokenizer-differs."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise Refusal("open-options", f"--threads {self.threads}: at least one thread computes", fix="leave it out")


class HowKeywords(TypedDict, total=False):
    """The fields of OpenOptions that say how a subject is opened, as keyword arguments for editors."""

    template: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    quantize: Literal["nf4", "int8", "none"] | None
    device: str | None
    offload: Offload
    threads: int | None
    allow: str | Sequence[str]


class WhatKeywords(TypedDict, total=False):
    """The other fields of OpenOptions, what is opened; a test holds them alike."""

    model: str | None
    adapter: str | None


@dataclass(frozen=True)
class Subject:
    """What is to be asked, before anything large is read."""

    base: str
    """Folder or hub id of the base model."""
    revision: str | None = None
    adapter: Path | None = None
    """Folder of the adapter; None: the base alone."""
    run: Path | None = None
    """Run folder, where one was named."""
    recipe: Recipe | None = None
    """What the run or the adapter was trained by, where that is known."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The adapter's halter.json."""


@dataclass(frozen=True)
class Opened:
    """A base with its tokenizer, an adapter or none, and the template in which they are asked (None: plain text)."""

    subject: Subject
    model: Decoder
    tokenizer: Tokenizer
    adapter: Adapter | None
    template: ChatTemplate | None
    template_date: str | None
    allow: tuple[str, ...] = ()
    """Ids of the refusals that were waived."""

    @property
    def rules(self) -> PictureRules | None:
        """How pictures are taken; None: nobody sees them."""
        return rules_of(self.model.config, self.adapter)


def find(named: str | Path | None = None, *, model: str | None = None, adapter: str | Path | None = None) -> Subject:
    """What ``named`` is: a run folder, an adapter folder, or a model (folder or hub id).

    ``adapter`` names an adapter or a run beside a model; ``model`` overrides the base that a run or an adapter names.
    Refusals: ``nothing-named``, ``run-unfinished``, ``not-an-adapter``, ``base-unknown``, ``two-adapters``.
    """
    if named is not None and adapter is not None and _is_tuned(Path(named)):
        raise Refusal("two-adapters", f"{named} has an adapter, and {adapter} is another", fix="name one of them")
    tuned = adapter if adapter is not None else named if named is not None and _is_tuned(Path(named)) else None
    if tuned is None:
        base = model or named
        if base is None:
            fix = "give a run folder, an adapter folder, or --model DIR"
            raise Refusal("nothing-named", "no model is named", fix=fix).by_keyword()
        return Subject(str(base))
    other = str(named) if named is not None and tuned is not named else None
    return _tuned(Path(tuned), model or other)


CHECKPOINT = "adapter-0.safetensors"


def _is_tuned(folder: Path) -> bool:
    return RunFolder(folder).begun or any((folder / name).is_file() for name in (folder_files.CONFIG, CHECKPOINT))


def _tuned(folder: Path, base: str | None) -> Subject:
    """The subject of a run folder or an adapter folder; ``base`` where the user named one."""
    if (folder / CHECKPOINT).is_file():  # of a run that may go on from it; its adapter is no result yet
        asked, folder = folder, folder.resolve().parents[1]
        if RunFolder(folder).finished:
            tell(f"note: {asked} is a checkpoint, from which a run goes on; the result of {folder} is taken")
    run = RunFolder(folder) if RunFolder(folder).begun else None
    place = adapter_folder(folder)
    with junk_refused("adapter-unreadable", "its halter.json is not as it should be", place):
        facts = folder_files.checked_facts(place)
        _check_kinds(facts)
        kept = facts.get("recipe")
        recipe = recipes.load(run.recipe) if run is not None else recipes.load(kept) if kept else None
        known = folder_files.base_config(place)
    path = None if run is None else run.path
    if base is not None:
        return Subject(base, None, place, path, recipe, facts)
    name = recipe.model.path if recipe is not None else known.get("name")
    if not name:
        what = "the adapter does not say what its base is"
        raise Refusal("base-unknown", what, where=str(place), fix="give --model DIR").by_keyword()
    # A relative path was meant from where training was started.
    absolute = known.get("folder")
    moved = not Path(name).expanduser().is_dir() and absolute is not None and Path(absolute).is_dir()
    revision = None if moved else known.get("revision")
    if absolute is not None and revision is None and not (moved or Path(name).expanduser().exists()):
        what = f"{folder} was trained on {name}, and there is no such folder now"
        raise Refusal("model-not-found", what, fix="say where its base lies now: --model DIR").by_keyword()
    return Subject(str(absolute) if moved else str(name), revision, place, path, recipe, facts)


_KINDS: dict[str, Any] = {
    "base": dict,
    "tokenizer": dict,
    "template": dict,
    "recipe": dict,
    "template_source": str,
    "template_date": str,
    "quantize": str,
    "threads": int,
}


def _check_kinds(facts: Mapping[str, Any]) -> None:
    """TypeError, which the caller turns into a Refusal, for facts of other kinds than save_adapter's."""
    wrong = [key for key, kind in _KINDS.items() if not isinstance(facts.get(key), kind | None)]
    inner = [("base", "name"), ("base", "folder"), ("base", "revision"), ("tokenizer", "digest")]
    inner += [("template", "name"), ("template", "digest")]
    wrong += [
        f"{key}.{name}"
        for key, name in inner
        if key not in wrong and not isinstance((facts.get(key) or {}).get(name), str | None)
    ]
    if facts.get("template") and not isinstance(facts.get("template_source"), str):
        wrong.append("template_source")
    if wrong:
        raise TypeError(f"unexpected kinds of values: {', '.join(wrong)}")


def open_subject(subject: Subject, say: Say, options: OpenOptions | None = None, as_trained: bool = False) -> Opened:
    """Load base and adapter as ``options`` say, the base held as it was in training where they say nothing.

    Weights or a tokenizer that are not the adapter's are refused (``base-differs``, ``tokenizer-differs``), and said
    where ``options.allow`` waives that. From here on torch computes with as many threads as ``options`` say, or in the
    training where ``as_trained``, or as other programs leave cores free. Refusals as of load, load_adapter and find.
    """
    options = options or OpenOptions()
    Waivers(options.allow)  # refuses what cannot be waived
    chosen_threads = threads.choose(options.threads, subject.facts.get("threads") if as_trained else None)
    threads.put(chosen_threads)
    if chosen_threads.remarkable():
        say(chosen_threads.words())
    held = options.quantize or subject.facts.get("quantize") or (subject.recipe and subject.recipe.model.quantize)
    storing: Quantize | None = held if held in STORAGES else None  # type: ignore[assignment]
    how = options.dtype, storing, options.device, subject.revision
    model, tokenizer = load(subject.base, *how, offload=options.offload, say=say)
    adapter = put_on(subject, model, tokenizer, say, options.allow)
    chosen = choose_template(subject, tokenizer, options.template)
    _tell_other_template(subject, chosen, say)
    return Opened(subject, model, tokenizer, adapter, chosen, subject.facts.get("template_date"), options.allow)


def put_on(
    subject: Subject, model: Decoder, tokenizer: Tokenizer, say: Say, allow: Collection[str] = ()
) -> Adapter | None:
    """The subject's adapter on a model that is loaded, None where it has none. Refusals as open_subject's."""
    if subject.adapter is None:
        return None
    try:
        _compare_tokenizers(subject, tokenizer, say, allow)
    except Refusal:  # what no waiver helps is told first: shapes that differ
        loading.load_adapter(subject.adapter, model, {*allow, "base-differs"}, lambda _: None)
        raise
    adapter = loading.load_adapter(subject.adapter, model, allow, say)
    _compare_bases(subject.facts.get("base"), model, say, allow)
    return adapter


def _compare_tokenizers(subject: Subject, tokenizer: Tokenizer, say: Say, allow: Collection[str]) -> None:
    """Refusal ``tokenizer-differs``; only said where it is waived."""
    trained_on = (subject.facts.get("tokenizer") or {}).get("digest")
    if trained_on in (None, tokenizer.digest):
        return
    what = "the tokenizer of this base is not the one that the adapter was trained with; answers may be nonsense"
    if "tokenizer-differs" not in allow:
        raise Refusal(
            "tokenizer-differs",
            what,
            where=subject.base,
            found=[f"this one's SHA-256 is {tokenizer.digest[:16]}..., the adapter's had {str(trained_on)[:16]}..."],
            fix="give the folder that the adapter was trained on (--model)",
            waivable=True,
        ).by_keyword()
    say(f"waived, tokenizer-differs: {what}")


def _compare_bases(recorded: Mapping[str, Any] | None, model: Decoder, say: Say, allow: Collection[str]) -> None:
    """Say what was waived, and have a digest that is not known yet made in the background (pretrained.digest)."""
    identity = model.identity
    if not recorded or not isinstance(identity, BaseIdentity):
        return
    if "base-differs" in allow:
        for difference in identity.differences(recorded):
            say(f"waived, base-differs: {difference}")
    elif recorded.get("digest") and identity.kept() is None:

        def compare(future: Future[BaseDigest]) -> None:
            if future.exception() is None and future.result().digest != recorded["digest"]:
                say(
                    "WARNING: the adapter was trained on other weights than these (base-differs, found by the full "
                    "digest of the base, which is made once); from now on they are refused."
                )

        digest_in_background(identity.folder).add_done_callback(compare)


def _tell_other_template(subject: Subject, chosen: ChatTemplate | None, say: Say) -> None:
    """Another template than that of training is somebody's wish, and seldom a good one."""
    trained = subject.facts.get("template")
    if trained and trained.get("digest") != (None if chosen is None else chosen.digest):
        used = "none" if chosen is None else chosen.name
        say(f"warning: the adapter was trained with the template {trained['name']}, and {used} is used")


def choose_template(subject: Subject, tokenizer: Tokenizer, asked: str | None = None) -> ChatTemplate | None:
    """The template asked for, else the adapter's, else the checkpoint's; None: text is used as it stands."""
    if asked == RAW:
        return None
    if asked is not None:
        return ChatTemplate.named(asked)
    if "template" not in subject.facts:
        return tokenizer.chat_template
    trained = cast("dict[str, str] | None", subject.facts["template"])
    if not trained:
        return None
    own = tokenizer.chat_template
    if own is not None and own.digest == trained["digest"]:
        return own
    if trained["name"] in BUILTIN and ChatTemplate.builtin(trained["name"]).digest == trained["digest"]:
        return ChatTemplate.builtin(trained["name"])
    return ChatTemplate.from_source(subject.facts["template_source"], trained["name"])
