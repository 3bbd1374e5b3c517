"""Who sees the pictures of a row: its adapter by an encoder, or the base by a tower of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from halter.contract.method import Method
from halter.encoders.sight import AdapterSight
from halter.errors import Refusal
from halter.model.config import ModelConfig
from halter.model.pictures import PictureRules


class Sees(Protocol):
    """An adapter, as far as pictures are concerned."""

    @property
    def sight(self) -> AdapterSight | None: ...


def sight_of(methods: Sequence[Method]) -> AdapterSight | None:
    """How an adapter of these methods takes pictures; None: it is blind. Refusal ``two-sights``."""
    seeing = [method for method in methods if method.looks]
    if not seeing:
        return None
    counts = {method.picture_tokens for method in seeing}
    if counts != {0} and len(seeing) > 1:
        what = "in one adapter a picture has the tokens of one method, or all methods see it from all of the row"
        found = [f"{method.name()}: {method.picture_tokens} tokens a picture" for method in seeing]
        raise Refusal("two-sights", what, found=found, fix="give an encoder to one of these methods")
    return AdapterSight(tuple(dict.fromkeys(look for method in seeing for look in method.looks)), counts.pop())


def rules_of_methods(config: ModelConfig, methods: Sequence[Method]) -> PictureRules | None:
    """``rules_of`` an adapter of these methods that is not built. Refusals ``two-sights``, ``encoder-unread``."""
    return sight_of(methods) or config.pictures


def joint_sight(adapters: Iterable[Sees]) -> AdapterSight | None:
    """The sight of adapters that are used together on the same rows. Refusal ``two-sights``."""
    sights = [one.sight for one in adapters if one.sight is not None]
    if len(sights) > 1 and any(one.tokens for one in sights):
        what = "these adapters take pictures in different ways, and a row has its pictures in one"
        found = [f"{one.tokens} tokens a picture" for one in sights]
        raise Refusal("two-sights", what, found=found, fix="use one of them for rows with pictures")
    looks = tuple(dict.fromkeys(look for one in sights for look in one.looks))
    return AdapterSight(looks, sights[0].tokens) if sights else None


def rules_of(config: ModelConfig, adapter: Sees | None) -> PictureRules | None:
    """How the rows of ``adapter`` on a base of this shape take pictures; None: nobody sees them."""
    own = None if adapter is None else adapter.sight
    return config.pictures if own is None else own
