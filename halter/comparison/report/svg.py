"""Figures as SVG that lives inside a page: its colours are the page's, so that it is dark where the page is dark.

matplotlib writes fixed colours. It is given stand-ins, one for ink, one for paper and one a series, and in the finished
SVG these become currentColor and CSS variables. Markers, dashes and hatches tell the series apart without colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PAPER, FAINT = "#010203", "#fcfdfe", "#020406"
SERIES = tuple(f"#0101{n:02x}" for n in range(16, 28))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (10, 3)),
    (0, (2, 3)),
    (0, (8, 2, 2, 2)),
    (0, (1, 4)),
    (0, (4, 1, 4, 4)),
    (0, (12, 2, 1, 2)),
    (0, (6, 6)),
)
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "oo", "++", "||", "**", "//..", "OO")
_PAINT = {INK: "currentColor", PAPER: "var(--card)", FAINT: "var(--line)"} | {
    colour: f"var(--s{n})" for n, colour in enumerate(SERIES)
}
_LARGEST = 1.4
"""Pixels of a page that a point of a figure may become."""
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
SETTINGS: dict[str, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": FAINT,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.formatter.use_mathtext": False,
    "axes.linewidth": 0.8,
    "hatch.color": INK,
}


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib with these settings, and afterwards as it was."""
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, "backend": "svg", **SETTINGS}
    with matplotlib.rc_context(settings):
        yield


def svg(figure: Figure, name: str, words: str) -> str:
    """The figure as an <svg> element. ``name`` keeps its ids apart from other figures'; ``words`` say what it shows."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(out.getvalue())
    for element in list(root):
        if element.tag == f"{_SVG}metadata":
            root.remove(element)
    for defs in root.iter(f"{_SVG}defs"):
        for style in defs.findall(f"{_SVG}style"):
            defs.remove(style)  # it would hold for the whole page
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {
            "href" if key == _LINK else key: _own(key, value, name) for key, value in element.attrib.items()
        }
    wide = float(root.attrib["width"].removesuffix("pt"))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": words, "style": f"max-width: {wide * _LARGEST:.0f}px"}
    return ElementTree.tostring(root, encoding="unicode")


def _own(key: str, value: str, name: str) -> str:
    """An attribute with the page's colours, and ids of its own."""
    if key == "id":
        return f"{name}-{value}"
    if key == _LINK:
        return f"#{name}-{value.removeprefix('#')}"
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    return re.sub(r"#[0-9a-f]{6}", lambda found: _PAINT.get(found[0], found[0]), value)
