"""`halter chat`: talk to a run, an adapter or a model, and change the adapter while talking."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from halter.adapters.adapter import Adapter
from halter.adapters.sight import rules_of
from halter.cli import chat_words
from halter.cli.chat_words import HELP
from halter.cli.flags import with_options
from halter.data.parts import text_of
from halter.errors import Refusal
from halter.files import writing
from halter.generation.engine import stream
from halter.generation.options import GenerationOptions
from halter.generation.prompts import with_system
from halter.generation.seeing import Seeing
from halter.model.decoding import for_decoding
from halter.pictures.seen import LookedAt
from halter.readers.reader import PictureReader
from halter.run.opening import Opened, OpenOptions, Subject, choose_template, find, open_subject, put_on
from halter.run.words import readers_for
from halter.telling import tell
from halter.text.chat.conversations import ChatTemplate

BASE = "/base"
"""The base alone, a name that no folder has."""


@with_options(options=GenerationOptions(max_new_tokens=512), opening=OpenOptions())
def command(
    options: GenerationOptions,
    opening: OpenOptions,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Run folder, adapter folder, or model.")] = None,
    system: Annotated[str | None, typer.Option(help="System message to begin with.")] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="Picture ahead of the first question, like /image; once for each.")
    ] = None,
    reader: Annotated[
        list[str] | None,
        typer.Option(
            help="What reads the pictures, so that a text of each stands ahead of it, or in its place where the model "
            "sees none: ocr, caption, with options as in ocr:language=deu; none: nothing. Not given: as in the run's "
            "training. May be given several times."
        ),
    ] = None,
) -> None:
    """Talk to a run, an adapter or a model. /help lists what else can be typed."""
    if unshown := options.unshown("a chat"):
        tell(unshown)
    subject = find(run, model=opening.model, adapter=opening.adapter)
    readers = readers_for(reader or (), subject, bool(image))
    chat = Chat(open_subject(subject, tell, opening), options, system, forced=opening.template)
    chat.readers = readers if reader or image else None
    for path in image or ():
        chat.image(path)
    chat.run()


class Chat:
    """One conversation; the history stays when the adapter changes."""

    def __init__(
        self,
        opened: Opened,
        options: GenerationOptions,
        system: str | None = None,
        forced: str | None = None,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self.opened, self.options, self.forced = opened, options, forced
        self.write = write or _to_screen
        self.opening: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        """Parts of what is asked next."""
        self.readers: tuple[PictureReader, ...] | None = None
        """What reads them; None: not asked for, and nothing was to be read."""
        self.loaded: dict[str, tuple[Adapter | None, ChatTemplate | None]] = {BASE: (None, opened.template)}
        self.places: dict[str, Path] = {}
        self.current = BASE
        if opened.adapter is not None:
            self.current = self._name(opened.subject)
            self.loaded[self.current] = (opened.adapter, opened.template)
        self.turns = 0
        if system is not None:
            self.system(system)

    def run(self) -> None:
        """Read lines until the end."""
        self.write(f"{self._status()}. /help lists the commands.\n")
        with for_decoding(self.opened.model, 1, self.options.max_new_tokens):  # once, not at every turn
            self._talk()

    def _talk(self) -> None:
        while True:
            turn = _read_turn()
            if turn is None:
                self.write("\n")
                return
            text, quoted = turn
            try:
                if quoted and text:
                    self.say(text)
                elif not self.handle(text):
                    return
                if text and not sys.stdin.isatty():
                    self.write("\n")  # nothing else stands between answers where nobody types
            except Refusal as refusal:
                self.write(f"{refusal.paragraph()}\n")

    def handle(self, line: str) -> bool:
        """Do what one line says; False to leave."""
        word, _, rest = line.partition(" ")
        if chat_words.leaves(line):
            return False
        if word == "/help":
            self.write(f"{HELP}\n")
        elif word == "/reset":
            self.history, self.pictures = [], []
            self.write("The conversation is forgotten.\n")
        elif word == "/system":
            self.system(rest.strip())
            self.write("The system message is set.\n" if rest.strip() else "There is no system message now.\n")
        elif word == "/temperature":
            self.options = replace(self.options, temperature=chat_words.number(rest))
            self.write(f"The temperature is {self.options.temperature:g}.\n")
        elif word == "/image":
            self.image(rest.strip())
        elif word == "/retry":
            self.retry()
        elif word == "/save":
            self.save(rest.strip())
        elif word == "/base":
            self.switch(BASE)
        elif word == "/adapter":
            self.switch(rest.strip()) if rest.strip() else self.write(f"{', '.join(self.loaded)}\n{self._status()}.\n")
        elif line.startswith("/"):
            self.write(chat_words.unknown(word))
        elif line:
            if told := chat_words.without_slash(line):
                self.write(told)
            self.say(line)
        return True

    def system(self, text: str) -> None:
        """Begin the conversation with this system message, with none where it is empty. Refusal ``system-unused``."""
        template = self.loaded[self.current][1]
        self.opening = with_system([], text, template)[:1] if text else []

    def image(self, path: str) -> None:
        """Put a picture ahead of what is asked next. Refusals ``usage``, ``pictures-unseen``, ``picture-unusable``."""
        if not path:
            raise Refusal("usage", "/image needs the path of a picture", fix="/image cat.jpg")
        if self.loaded[self.current][1] is None:
            fix = "begin the chat with --template"
            raise Refusal("usage", "without a chat template a picture has no place in what is asked", fix=fix)
        part = {"type": "image", "path": str(Path(path).expanduser().absolute())}
        rules = rules_of(self.opened.model.config, self.loaded[self.current][0])
        if self.readers is None:
            self.readers = readers_for((), self.opened.subject, True)
        seeing = Seeing(rules, readers=self.readers)
        (read,), looked = seeing.look([{"role": "user", "content": [part]}])
        self.pictures.append(part)
        if self.readers:
            self.write(text_of(read["content"]))
        seen = _seen(looked[0]) if looked else "read, and not seen"
        self.write(f"{path}: {seen}. Now ask about it.\n")

    def retry(self) -> None:
        """Answer the last question again; sampling draws anew."""
        if not self.history:
            raise Refusal("nothing-asked", "there is no question yet to answer again", fix="ask one first")
        *self.history, asked, _ = self.history
        self.say(asked["content"])

    def save(self, file: str) -> None:
        """Write the conversation as one row of messages. Refusals ``usage`` and ``already-exists``."""
        if not file:
            raise Refusal(
                "usage", "/save needs the name of a new file", expected="/save chat.jsonl", fix="/save chat.jsonl"
            )
        row = {"messages": [*self.opening, *self.history]}
        writing.write_text(Path(file).expanduser(), json.dumps(row, ensure_ascii=False) + "\n")
        self.write(f"saved: {file}\n")

    def switch(self, name: str) -> None:
        """Answer with another adapter from now on. Refusals as of opening.find and load_adapter."""
        if name not in self.loaded:
            subject = find(adapter=self._place(name), model=self.opened.subject.base)
            adapter = put_on(subject, self.opened.model, self.opened.tokenizer, tell, self.opened.allow)
            assert adapter is not None
            template = choose_template(subject, self.opened.tokenizer, self.forced)
            name = self._name(subject)
            self.loaded[name] = (adapter, template)
        self.current = name
        self.write(f"{self._status()}.\n")

    def _place(self, name: str) -> Path:
        """The folder meant: as given, or beside the run or adapter that the chat was begun with."""
        begun = self.opened.subject.run or self.opened.subject.adapter
        beside = [] if begun is None else [begun.resolve().parent]
        for folder in (Path(name).expanduser(), *(parent / name for parent in beside)):
            if folder.is_dir():
                return folder
        places = ", ".join(map(str, dict.fromkeys([Path("."), *beside])))
        fix = "/base answers with the base alone" if name == "base" else ""
        expected = f"a folder, looked for in {places}"
        raise Refusal("no-such-adapter", f"there is no adapter {name!r}", expected=expected, fix=fix)

    def _name(self, subject: Subject) -> str:
        """What an adapter is called here: its folder's name, its path where another is called so."""
        folder = (subject.run or subject.adapter or Path()).resolve()
        alike = [name for name in self.loaded if name == folder.name and self.places.get(name) != folder]
        name = str(folder) if alike else folder.name
        self.places[name] = folder
        return name

    def _status(self) -> str:
        template = self.loaded[self.current][1]
        how = "no chat template: every line is continued as it stands"
        if template is not None:
            how = "the checkpoint's" if template.name == "checkpoint" else template.name
            how = f"chat template: {how}"
        who = "base alone" if self.current == BASE else f"with adapter {self.current}"
        return f"{self.opened.subject.base} {who}, {how}"

    def say(self, line: Any) -> None:
        """One turn: ask, stream the answer, remember both. ``line``: a text, or the parts of a turn that was said."""
        template = self.loaded[self.current][1]
        if template is None:
            self._stream(line)
            return
        parts = [*self.pictures, {"type": "text", "text": line}] if self.pictures and isinstance(line, str) else line
        self.history.append({"role": "user", "content": parts})
        try:
            answer = self._ask()
        except BaseException:
            self.history.pop()
            raise
        self.pictures = []
        self.history.append({"role": "assistant", "content": answer})

    def _ask(self) -> str:
        """The answer to the history, whose oldest turns go where the model's context is too short for all."""
        while True:
            try:
                return self._stream([*self.opening, *self.history])
            except Refusal as refusal:
                if refusal.id != "prompt-too-long" or len(self.history) < 3:
                    raise
                del self.history[:2]
                self.write("(the oldest turn is forgotten: the context is full)\n")

    def _stream(self, prompt: Any) -> str:
        adapter, template = self.loaded[self.current]
        options = vars(replace(self.options, seed=self.options.seed + self.turns))
        how = {"template": template, "template_date": self.opened.template_date, **options}
        how["readers"] = self.readers or ()
        pieces = stream(self.opened.model, self.opened.tokenizer, [prompt], adapter, **how)
        self.turns += 1
        said: list[str] = []
        try:
            for piece in pieces:
                said.append(piece.text)
                self.write(piece.text)
                if piece.result is not None and piece.result.cut_off:
                    self.write(f" [cut off: {piece.result.cut_off}]")
        except KeyboardInterrupt:
            self.write(" [stopped]")
        self.write("\n")
        return "".join(said).strip()


def _seen(found: LookedAt) -> str:
    grid = f"{found.grid[0]} by {found.grid[1]} tile{'s' if found.grid != (1, 1) else ''}"
    moving = f"; the first of its {found.frames} frames" if found.frames > 1 else ""
    return f"{found.size[0]} x {found.size[1]} pixels, {grid}{moving}"


def _to_screen(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


QUOTES = '"""'


def _read_turn() -> tuple[str, bool] | None:
    """(the next line, False), or (all lines between two that are three quotes, True); None at the end."""
    line = _read()
    if line is None or not line.strip().startswith(QUOTES):
        return None if line is None else (line.strip(), False)
    lines = [line.strip().removeprefix(QUOTES)]
    while not lines[-1].rstrip().endswith(QUOTES):
        line = _read("... ")
        if line is None:
            break
        lines.append(line.rstrip("\n"))
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n").strip(), True


def _read(sign: str = "> ") -> str | None:
    """The next line, with the terminal's editing where there is one; None at the end."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (input() edits lines once it is there)
        while True:
            try:
                return input(sign)
            except EOFError:
                return None
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit leaves)")
    return sys.stdin.readline() or None
