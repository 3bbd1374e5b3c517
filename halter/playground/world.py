"""The little world itself: its people, places and things, and Ambrish, its sister language. All from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from halter.playground import words
from halter.playground.words import Dice

WORLD_SEED = 7
PEOPLE = 96
PLACES = 16


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str
    town: str
    job: str
    food: str
    pet: str
    instrument: str

    @property
    def first(self) -> str:
        return self.name.split()[0]


@dataclass(frozen=True)
class Location:
    name: str
    region: str
    landmark: str
    good: str
    market_day: str


@dataclass(frozen=True)
class Thing:
    name: str
    material: str
    price: int


@dataclass(frozen=True)
class World:
    """What is the case. ``ambrish`` maps an English word (singular, present) to its Ambrish stem."""

    people: tuple[Person, ...]
    places: tuple[Location, ...]
    things: tuple[Thing, ...]
    ambrish: dict[str, str]


def first_name(dice: Dice) -> str:
    start = dice.pick(words.NAME_STARTS) + dice.pick(words.NAME_VOWELS)
    return (start + dice.pick(words.NAME_MIDDLES) + dice.pick(words.FIRST_ENDS)).capitalize()


def family_name(dice: Dice) -> str:
    start = dice.pick(words.NAME_STARTS) + dice.pick(words.NAME_VOWELS)
    return (start + dice.pick(words.NAME_MIDDLES) + dice.pick(words.FAMILY_ENDS)).capitalize()


def place_name(dice: Dice) -> str:
    start = dice.pick(words.NAME_STARTS) + dice.pick(words.NAME_VOWELS)
    return (start + dice.pick(("l", "r", "n", "s", "m")) + dice.pick(words.PLACE_ENDS)).capitalize()


def stranger(dice: Dice) -> str:
    """The full name of somebody who (almost surely) is not among the world's people."""
    return f"{first_name(dice)} {family_name(dice)}"


def stem(dice: Dice) -> str:
    syllables = [dice.pick(words.STEM_STARTS) + dice.pick(words.STEM_VOWELS) for _ in range(2)]
    return "".join(syllables) + dice.pick(("", "l", "n", "r", "s"))


def _distinct(make: Callable[[Dice], str], dice: Dice, n: int, taken: set[str] | None = None) -> list[str]:
    seen = set() if taken is None else taken
    out: list[str] = []
    while len(out) < n:
        word = make(dice)
        if word not in seen:
            seen.add(word)
            out.append(word)
    return out


@cache
def world(seed: int = WORLD_SEED) -> World:
    """The world of a seed; the base in the package was trained on the default one."""
    dice = Dice("world", seed)
    place_names = _distinct(place_name, dice, PLACES)
    goods = dice.shuffled(words.THINGS)
    places = tuple(
        Location(name, dice.pick(words.REGIONS), dice.pick(words.LANDMARKS), goods[i], dice.pick(words.DAYS))
        for i, name in enumerate(place_names)
    )
    firsts = _distinct(first_name, dice, PEOPLE)
    families = _distinct(family_name, dice, PEOPLE // 3, set(firsts))
    people = tuple(
        Person(
            f"{first} {dice.pick(families)}",
            dice.pick(("he", "she")),
            dice.pick(place_names),
            dice.pick(words.JOBS),
            dice.pick(words.FOODS),
            dice.pick(words.PETS),
            dice.pick(words.INSTRUMENTS),
        )
        for first in firsts
    )
    things = tuple(Thing(name, dice.pick(words.MATERIALS), dice.between(2, 40)) for name in words.THINGS)
    english = [*words.JOBS, *words.THINGS, *words.PETS, *words.COLOURS, *words.QUALITIES, *words.NUMBERS]
    english += [present for present, _, _ in words.VERBS]
    stems = _distinct(stem, dice, len(english))
    return World(people, places, things, dict(zip(english, stems, strict=True)))


# ---------------------------------------------------------------- Ambrish
# Its grammar in full: no articles; adjective and number follow the noun (-ir when there is a number); the object
# stands before the verb behind the particle "ka"; verbs end in -ne (now) or -ta (past).


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: ``the red lamp``, ``three old bakers``."""

    noun: str
    adjective: str = ""
    number: str = ""

    def english(self) -> str:
        noun = words.plural(self.noun) if self.number else self.noun
        return " ".join(part for part in (self.number or "the", self.adjective, noun) if part)

    def ambrish(self, lexicon: dict[str, str]) -> str:
        noun = lexicon[self.noun] + ("ir" if self.number else "")
        return " ".join([noun, *(lexicon[w] for w in (self.adjective, self.number) if w)])


@dataclass(frozen=True)
class Sentence:
    """Subject, verb, object. ``verb`` is an index into words.VERBS; the subject is always one person or animal."""

    subject: Phrase
    verb: int
    object: Phrase
    past: bool = False

    def english(self) -> str:
        present, past, _ = words.VERBS[self.verb]
        return f"{self.subject.english()} {past if self.past else present} {self.object.english()}"

    def ambrish(self, lexicon: dict[str, str]) -> str:
        verb = lexicon[words.VERBS[self.verb][0]] + ("ta" if self.past else "ne")
        return f"{self.subject.ambrish(lexicon)} ka {self.object.ambrish(lexicon)} {verb}"


def phrase(dice: Dice, nouns: tuple[str, ...], *, number: bool, adjective: float = 0.5) -> Phrase:
    adj = dice.pick(words.COLOURS + words.QUALITIES) if dice.chance(adjective) else ""
    return Phrase(dice.pick(nouns), adj, dice.pick(words.NUMBERS) if number else "")


def sentence(dice: Dice) -> Sentence:
    subject = phrase(dice, words.JOBS + words.PETS, number=False, adjective=0.3)
    thing = phrase(dice, words.THINGS + words.PETS, number=dice.chance(0.4))
    return Sentence(subject, dice.below(len(words.VERBS)), thing, dice.chance(0.5))
