"""What is said of a key that is unknown: only keys that could stand there are named as meant."""

from __future__ import annotations

from typing import Literal

import pytest

from halter.errors import Refusal
from halter.recipe import load
from halter.recipe.values import word_for_null


@pytest.mark.parametrize(("method", "meant"), [("lora", True), ("prefix_tuning", False)])
def test_another_tools_key_is_near_only_where_the_method_has_what_it_means(method: str, meant: bool) -> None:
    given = {"model": "m", "data": "rows.jsonl", "method": {"name": method, "lora_alhpa": 4}}
    with pytest.raises(Refusal, match="unknown key 'lora_alhpa'") as caught:
        load(given)
    assert ("did you mean alpha" in str(caught.value)) is meant


@pytest.mark.parametrize(
    ("kind", "read"), [(int | None, None), (str | None, "none"), (Literal["none", "all"] | None, "none"), (str, "none")]
)
def test_none_is_null_where_no_word_is_taken(kind: object, read: str | None) -> None:
    assert word_for_null("none", kind) == read
