"""`halter serve`: one base and its adapters, asked over HTTP as OpenAI's models are."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halter.cli.flags import with_options
from halter.errors import Refusal
from halter.files.extras import missing_extra
from halter.generation.grammars.grammar import grammars_of
from halter.model.storages import held_in
from halter.playground import base_folder
from halter.pretrained.digest import BaseDigest, BaseIdentity, digest_base, digest_in_background
from halter.run.opening import Opened, OpenOptions, Subject, choose_template, find, open_subject, put_on
from halter.serve.adapters.held import OpenedAdapter
from halter.serve.adapters.naming import table_of
from halter.serve.audit.keeping import AuditedBase, keeping
from halter.serve.audit.log import AuditLog
from halter.serve.audit.options import AuditOptions, WhenFull
from halter.serve.settings import ServeOptions
from halter.serve.trust.admin_key import refuse_other
from halter.serve.trust.keys import ALL, KeyRing, read_keys
from halter.serve.trust.tenants import everybody
from halter.telling import tell

if TYPE_CHECKING:
    from halter.serve.wire.shapes import ServedBase

PLAYGROUND = "playground"


@with_options(serving=ServeOptions(), opening=OpenOptions())
def command(
    serving: ServeOptions,
    opening: OpenOptions,
    served: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Base model, folder or hub id; a run or an adapter stands for its base and itself; playground: the "
            "embedded little one.",
        ),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapter folder, run folder, or folder of these; NAME=FOLDER names one. May be given several times."
        ),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="Folder for a line for each request, which can be verified.")
    ] = None,
    audit_seal: Annotated[
        Path | None, typer.Option(help="Folder for the log's secret and head. Not given: AUDIT.seal, beside it.")
    ] = None,
    audit_sync: Annotated[
        str,
        typer.Option(help="When a line is on the disk: each (before its answer ends), never, or milliseconds later."),
    ] = "each",
    audit_full: Annotated[
        WhenFull, typer.Option(help="When a line cannot be written: refuse the request, or go-on and count them.")
    ] = "refuse",
) -> None:
    """Answer requests of OpenAI's API (chat, completions) with one base and any number of its adapters."""
    ring = _who_is_let_in(serving)
    auditing = AuditOptions.typed(audit_sync, audit_full)
    if audit is None and audit_seal is not None:
        raise Refusal("usage", "--audit-seal is for an audit log, and none is asked for", fix="--audit FOLDER, too")
    if served is None and opening.model is None and opening.adapter is None:
        raise Refusal("nothing-named", "no model is named", fix="halter serve playground, or halter serve MODEL")
    try:
        from halter.serve.running import serve
        from halter.serve.service import Service
        from halter.serve.wire.prompts import Speaking
        from halter.serve.wire.shapes import ServedBase
    except ImportError as error:
        raise missing_extra("serve", "halter serve", "halter serve", error) from error
    named = str(base_folder()) if served == PLAYGROUND and not Path(served).exists() else served
    subject = find(named, model=opening.model, adapter=opening.adapter)
    name = serving.name or (PLAYGROUND if named != served else Path(subject.base).name)
    words = [*(adapters or ()), *([str(subject.run or subject.adapter)] if subject.adapter else [])]
    table = table_of(words, taken=[name])
    _tell_unserved(ring, (name, *table))
    with ExitStack() as open_files:
        # Before the base is loaded: a log that is damaged or in use is told at once.
        log = None if audit is None else open_files.enter_context(AuditLog(audit, audit_seal, auditing))
        opened = open_subject(_base_of(subject), tell, opening)
        speaking = Speaking(opened.template, opened.template_date, opened.rules)
        base = ServedBase(name, opened.model, opened.tokenizer, speaking, *_digest(opened, made=log is not None))
        keep = None if log is None else keeping(log, _audited(base))
        admit = everybody if ring is None else ring.admit
        service = partial(Service, base, table, partial(opened_adapter, opened), serving, admit, keep)
        _run(serve(service, serving, tell), opened)


def _run(serving: Coroutine[Any, Any, None], opened: Opened) -> None:
    with suppress(Refusal):  # without llguidance a form is refused when one is asked for
        grammars_of(opened.tokenizer)
    # What is there by now stays until the end; Python would look through all of it again and again (0.2 to 0.7 s)
    # for what can go, in which time no thread goes on.
    gc.collect()
    gc.freeze()
    asyncio.run(serving)


def _who_is_let_in(serving: ServeOptions) -> KeyRing | None:
    """The keys in force. Refusals of their file, where the address could be used by more than is safe, and of
    folders that are not there."""
    ring = None if serving.keys is None else read_keys(serving.keys)
    serving.refuse_exposed()
    serving.refuse_bad_tls()
    serving.refuse_missing_runs()
    if serving.admin is not None:
        refuse_other(serving.admin)
    return ring


def _tell_unserved(ring: KeyRing | None, served: Iterable[str]) -> None:
    """A name in the file of keys that nothing has is a typing mistake more often than a plan."""
    named = {name for key in (() if ring is None else ring.keys) for name in key.adapters}
    if unserved := sorted(named - {ALL, *served}):
        tell(f"note: keys name what is not served: {', '.join(unserved)}")


def _base_of(subject: Subject) -> Subject:
    """The base alone, held as the subject's training held it."""
    held = {"quantize": subject.facts["quantize"]} if subject.facts.get("quantize") else {}
    return Subject(subject.base, subject.revision, facts=held)


def _digest(opened: Opened, made: bool) -> tuple[str, Future[BaseDigest] | None]:
    """The base's digest where it is known already, or is to be ``made``, which reads every weight once; else '', and
    what makes it while the base is served, for whoever asks what answered."""
    identity = opened.model.identity
    if not isinstance(identity, BaseIdentity):
        return "", None
    known = digest_base(identity.folder) if made else identity.kept()
    return ("", digest_in_background(identity.folder)) if known is None else (known.digest, None)


def _audited(base: ServedBase) -> AuditedBase:
    storage = held_in(base.model) or str(base.model.dtype).removeprefix("torch.")
    return AuditedBase(base.digest or None, storage, base.tokenizer.digest)


def opened_adapter(opened: Opened, folder: Path) -> OpenedAdapter:
    """An adapter of the server's table on its base, asked in the template that it was trained with. Refusals of
    run.opening."""
    subject = find(adapter=folder, model=opened.subject.base)
    adapter = put_on(subject, opened.model, opened.tokenizer, tell, opened.allow)
    assert adapter is not None
    template = choose_template(subject, opened.tokenizer)
    return OpenedAdapter(adapter, template, subject.facts.get("template_date"))
