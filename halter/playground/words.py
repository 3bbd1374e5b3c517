"""The plain words of the little world, and dice that fall the same way on every Python version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

JOBS = (
    "baker",
    "miller",
    "weaver",
    "potter",
    "fisher",
    "smith",
    "carpenter",
    "gardener",
    "teacher",
    "doctor",
    "painter",
    "singer",
    "cook",
    "tailor",
    "farmer",
    "sailor",
    "mason",
    "shepherd",
    "printer",
    "glazier",
    "hunter",
    "brewer",
)
THINGS = (
    "lamp",
    "ladder",
    "basket",
    "kettle",
    "blanket",
    "hammer",
    "mirror",
    "chair",
    "table",
    "barrel",
    "bell",
    "book",
    "boat",
    "bowl",
    "box",
    "broom",
    "bucket",
    "candle",
    "clock",
    "coat",
    "cup",
    "drum",
    "flag",
    "hat",
    "jar",
    "key",
    "knife",
    "letter",
    "map",
    "net",
    "pot",
    "ring",
    "rope",
    "saddle",
    "spoon",
    "wagon",
)
FOODS = (
    "bread",
    "soup",
    "honey",
    "cheese",
    "porridge",
    "fish",
    "plums",
    "pears",
    "beans",
    "mushrooms",
    "pancakes",
    "nuts",
    "cabbage",
    "apples",
    "berries",
    "dumplings",
)
PETS = ("goat", "cat", "dog", "goose", "pony", "owl", "hen", "rabbit", "donkey", "raven", "turtle", "ferret")
INSTRUMENTS = ("flute", "fiddle", "harp", "horn", "lute", "organ", "whistle", "viola")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey", "purple", "orange")
QUALITIES = ("old", "new", "small", "large", "heavy", "light", "round", "broken", "clean", "warm")
MATERIALS = ("wood", "iron", "clay", "glass", "wool", "leather", "copper", "straw", "stone", "tin")
SPOTS = (
    "by the well",
    "behind the mill",
    "near the bridge",
    "under the oak",
    "at the harbour",
    "next to the school",
    "on the hill",
    "beside the bakery",
    "in the old tower",
    "at the market",
    "close to the gate",
    "in the long barn",
)
REGIONS = ("north", "south", "east", "west")
LANDMARKS = ("a deep lake", "a high hill", "a wide river", "a dark forest", "a stone bridge", "a tall tower")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WEATHER = ("sunny", "rainy", "windy", "cloudy", "foggy", "cold", "mild", "snowy")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBER_VALUE = {word: value for value, word in enumerate(NUMBERS, start=2)}
# Present and past; the third column is the plain form.
VERBS = (
    ("sees", "saw", "see"),
    ("buys", "bought", "buy"),
    ("sells", "sold", "sell"),
    ("finds", "found", "find"),
    ("brings", "brought", "bring"),
    ("takes", "took", "take"),
    ("likes", "liked", "like"),
    ("keeps", "kept", "keep"),
    ("paints", "painted", "paint"),
    ("mends", "mended", "mend"),
    ("hides", "hid", "hide"),
    ("wants", "wanted", "want"),
)

NAME_STARTS = (
    "Br",
    "K",
    "T",
    "M",
    "S",
    "L",
    "D",
    "F",
    "V",
    "G",
    "H",
    "R",
    "N",
    "P",
    "Sh",
    "Th",
    "Dr",
    "Tr",
    "Gr",
    "W",
    "J",
    "",
)
NAME_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "au")
NAME_MIDDLES = ("l", "r", "n", "m", "s", "t", "v", "d", "rr", "ll", "nd", "st", "lk", "rn", "sk", "br", "lv", "zz")
FIRST_ENDS = ("a", "en", "o", "i", "is", "an", "el", "ia", "us", "e", "or", "in")
FAMILY_ENDS = ("er", "osk", "ven", "ick", "man", "ard", "ow", "ett", "un", "ald", "ish", "olm")
PLACE_ENDS = ("ton", "mere", "ford", "wick", "holm", "stead", "by", "vale", "gate", "haven")
STEM_STARTS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "sk", "tr")
STEM_VOWELS = ("a", "e", "i", "o", "u", "ë", "ö")


def plural(noun: str) -> str:
    """More than one of a thing, pet or job: the world's nouns are regular but for a few."""
    odd = {"knife": "knives", "goose": "geese"}
    if noun in odd:
        return odd[noun]
    if noun.endswith(("x", "s", "sh", "ch")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def article(noun: str) -> str:
    """``a lamp``, ``an owl``."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


class Dice:
    """Draws built on ``random.random`` alone, the only stream that Python promises to keep between versions."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random("/".join(str(s) for s in seed)).random

    def below(self, n: int) -> int:
        return int(self._random() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, p: float) -> bool:
        return self._random() < p

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def some(self, choices: Sequence[T], n: int) -> list[T]:
        """n different ones, in drawn order."""
        return self.shuffled(choices)[:n]

    def shuffled(self, choices: Sequence[T]) -> list[T]:
        out = list(choices)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out

    def weighted(self, weights: dict[T, float]) -> T:
        at = self._random() * sum(weights.values())
        for key, weight in weights.items():
            at -= weight
            if at < 0:
                return key
        return key
