"""Letters in pictures, read by tesseract: a program of the system's packages, started once for each picture."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from functools import lru_cache, partial
from typing import Any

from halter.errors import Refusal
from halter.pictures.process import PictureFault
from halter.readers.reader import CHARACTERS, PictureReader

PROGRAM = "tesseract"
SECONDS = 60.0
"""For one picture."""
LANGUAGE = re.compile(r"[A-Za-z][A-Za-z0-9_/]*")
LAYOUTS, SCALES = range(1, 14), range(1, 5)
INSTALL = "apt-get install tesseract-ocr (Debian, Ubuntu), brew install tesseract (macOS)"


def ocr(language: str = "eng", layout: int = 6, scale: int = 1, characters: int = CHARACTERS) -> PictureReader:
    """``language``: tesseract's names, several as deu+eng. ``layout``: its --psm (6 takes the picture for one block,
    whose lines go from edge to edge; 3 finds columns, and loses half of what stands on a small form). ``scale``: how
    many times a picture is enlarged first.

    Refusals ``extra-missing`` without the program, ``reader-language``, ``reader-options``, ``reader-failed``.
    """
    wrong = [] if layout in LAYOUTS else [f"layout={layout}: tesseract's are 1 to 13"]
    wrong += [] if scale in SCALES else [f"scale={scale}: 1 to 4"]
    if wrong:
        raise Refusal("reader-options", "options that reader ocr cannot use", found=wrong, fix="change these")
    program = shutil.which(PROGRAM)
    if program is None:
        what = "the program tesseract is not installed; it is needed for reader ocr"
        raise Refusal("extra-missing", what, fix=INSTALL)
    version, languages = _installed(program, os.environ.get("TESSDATA_PREFIX", ""))
    missing = [one for one in language.split("+") if not LANGUAGE.fullmatch(one) or one not in languages]
    if missing:
        raise Refusal(
            "reader-language",
            "tesseract has not been given these languages",
            found=missing,
            expected=", ".join(languages),
            fix=f"ocr:language={languages[0]}, or Debian's package tesseract-ocr-{missing[0].replace('_', '-')}",
        )
    how = ["-l", language, "--psm", str(layout)]
    decides = " ".join([version, *how, f"x{scale}"])
    return PictureReader("ocr", partial(_read, program, tuple(how), scale), decides, characters=characters)


@lru_cache
def _installed(program: str, data: str) -> tuple[str, tuple[str, ...]]:
    """(its version, its languages); ``data``: the folder that the environment names. Refusal ``reader-failed``."""
    try:
        said = [
            subprocess.run([program, word], capture_output=True, timeout=SECONDS, text=True, errors="replace").stdout
            for word in ("--version", "--list-langs")
        ]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(str(error)) from error
    version, languages = said[0].partition("\n")[0].strip(), tuple(said[1].split("\n")[1:])
    languages = tuple(one.strip() for one in languages if one.strip())
    if not version or not languages:
        raise _failed("it tells no version, or no language")
    return version, languages


def _read(program: str, how: tuple[str, ...], scale: int, picture: Any) -> str:
    held = io.BytesIO()
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale))
    picture.save(held, "PNG")
    calm = {**os.environ, "OMP_THREAD_LIMIT": "1"}  # its threads wait for one another longer than they work
    command = [program, "stdin", "stdout", *how]
    try:
        done = subprocess.run(command, input=held.getvalue(), capture_output=True, timeout=SECONDS, env=calm)
    except subprocess.TimeoutExpired:
        raise PictureFault(f"tesseract was not done with it after {SECONDS:g} seconds") from None
    except OSError as error:
        raise _failed(str(error)) from error
    if done.returncode:
        told = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1][:200]
        raise PictureFault(f"tesseract could not read it: {told or f'exit code {done.returncode}'}")
    return done.stdout.decode("utf-8", "replace")


def _failed(why: str) -> Refusal:
    return Refusal("reader-failed", "tesseract cannot be used", found=[why], fix="try tesseract --list-langs yourself")
