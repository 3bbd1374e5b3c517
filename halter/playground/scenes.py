"""What is written down in the world: stories, contracts and registers, each as facts with their telling.

Pre-training documents show the tellings (and recaps); the tasks ask about the same facts in forms that the base
has never seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from halter.playground import words
from halter.playground.words import Dice
from halter.playground.world import first_name, place_name, stranger


@dataclass(frozen=True)
class Story:
    """Somebody loses something, looks for it in vain, and finds it with or without help."""

    hero: str
    pronoun: str
    colour: str
    thing: str
    weather: str
    day: str
    looked: tuple[str, ...]
    found: str
    helper: str

    def sentences(self, dice: Dice) -> list[str]:
        he, his = self.pronoun, {"he": "his", "she": "her"}[self.pronoun]
        what = f"{self.colour} {self.thing}"
        out = [
            dice.pick(
                (
                    f"On a {self.weather} {self.day}, {self.hero} lost {his} {what}.",
                    f"It was a {self.weather} {self.day} when {self.hero} could not find {his} {what}.",
                    f"One {self.weather} {self.day} {self.hero} saw that {his} {what} was gone.",
                )
            )
        ]
        for n, spot in enumerate(self.looked):
            start = ("First", "Then", "After that")[n]
            out.append(f"{start} {he} looked {spot}, but {dice.pick(('it was not there', 'there was nothing'))}.")
        if self.helper:
            out.append(
                dice.pick(
                    (
                        f"{he.capitalize()} asked {self.helper} for help.",
                        f"At noon {he} met {self.helper}, who wanted to help.",
                        f"{self.helper} heard of it and came along.",
                    )
                )
            )
        who = "they" if self.helper else he
        out.append(
            dice.pick(
                (
                    f"At last {who} found the {self.thing} {self.found}.",
                    f"In the evening {who} saw the {self.thing} {self.found}.",
                    f"And there, {self.found}, {who} found the {self.thing}.",
                )
            )
        )
        out.append(dice.pick((f"{self.hero} was very happy.", f"{self.hero} went home with a song.", "All was well.")))
        return out

    def text(self, dice: Dice) -> str:
        return " ".join(self.sentences(dice))


def story(dice: Dice, level: int = 0) -> Story:
    level = level or dice.between(1, 3)
    spots = dice.some(words.SPOTS, level + 1)
    return Story(
        first_name(dice),
        dice.pick(("he", "she")),
        dice.pick(words.COLOURS),
        dice.pick(words.THINGS),
        dice.pick(words.WEATHER),
        dice.pick(words.DAYS),
        tuple(spots[1:]),
        spots[0],
        first_name(dice) if dice.chance(0.5) else "",
    )


CLAUSES = ("rent", "term", "repairs", "notice", "animals", "deposit", "delay")


@dataclass(frozen=True)
class Contract:
    """A lease. ``clauses``: (subject, value, sentence), numbered from 2; clause 1 says what is let."""

    owner: str
    tenant: str
    thing: str
    town: str
    clauses: tuple[tuple[str, str, str], ...]

    def text(self) -> str:
        lines = [f"Contract between {self.owner} (owner) and {self.tenant} (tenant)."]
        lines.append(f"Clause 1. The owner lets the {self.thing} in {self.town} to the tenant.")
        lines += [f"Clause {n}. {text}" for n, (_, _, text) in enumerate(self.clauses, start=2)]
        return "\n".join(lines)

    def number(self, subject: str) -> int:
        return 2 + [name for name, _, _ in self.clauses].index(subject)


def clause(dice: Dice, subject: str) -> tuple[str, str, str]:
    n = dice.between(2, 30)
    day, month = dice.pick(words.DAYS), dice.pick(words.MONTHS)
    who, pet = dice.pick(("owner", "tenant")), dice.pick(words.PETS)
    value, text = {
        "rent": (f"{n} coins", f"The tenant pays {n} coins on the first {day} of each month."),
        "term": (f"{n} months", f"The contract begins in {month} and runs for {n} months."),
        "repairs": (f"the {who}", f"The {who} mends the roof, the doors and the windows."),
        "notice": (f"{n} weeks", f"Who wants to end the contract says so {n} weeks before."),
        "animals": (f"one {pet}", f"The tenant may keep one {pet} in the house and no other animal."),
        "deposit": (f"{n} coins", f"The tenant leaves {n} coins with the owner until the end."),
        "delay": (f"{n} coins", f"Who pays late owes {n} coins more for every week."),
    }[subject]
    return subject, value, text


def contract(dice: Dice, level: int = 0) -> Contract:
    level = level or dice.between(1, 3)
    subjects = dice.some(CLAUSES, 2 + level)
    owner, tenant = stranger(dice), stranger(dice)
    thing = dice.pick(("mill", "house", "barn", "bakery", "garden", "shop", "tower"))
    return Contract(owner, tenant, thing, place_name(dice), tuple(clause(dice, s) for s in subjects))


@dataclass(frozen=True)
class Entry:
    name: str
    job: str
    spot: str
    pet: str
    coins: int


@dataclass(frozen=True)
class Register:
    """A page of a town's register: a few strangers, no two alike in any column."""

    town: str
    entries: tuple[Entry, ...]

    def line(self, dice: Dice, e: Entry) -> str:
        return dice.pick(
            (
                f"{e.name} is a {e.job}, lives {e.spot}, keeps {words.article(e.pet)} and pays {e.coins} coins.",
                f"{e.name}, a {e.job}, lives {e.spot} with {words.article(e.pet)} and pays {e.coins} coins.",
            )
        )

    def text(self, dice: Dice) -> str:
        return "\n".join([f"Register of {self.town}.", *(self.line(dice, e) for e in self.entries)])

    def recap(self, dice: Dice, e: Entry) -> str:
        """One fact said once more, found by another fact."""
        return dice.pick(
            (
                f"{e.name} lives {e.spot}.",
                f"{e.name} keeps {words.article(e.pet)}.",
                f"{e.name} pays {e.coins} coins.",
                f"{e.name} is a {e.job}.",
                f"The {e.pet} belongs to {e.name}.",
                f"The {e.job} is {e.name}.",
                f"The house {e.spot} belongs to {e.name}.",
                f"The {e.coins} coins come from {e.name}.",
                f"The {e.job} keeps {words.article(e.pet)}.",
                f"The {e.job} lives {e.spot}.",
                f"The {e.job} pays {e.coins} coins.",
            )
        )


def register(dice: Dice, size: int = 0) -> Register:
    n = size or dice.between(2, 6)
    jobs, spots, pets = (dice.some(column, n) for column in (words.JOBS, words.SPOTS, words.PETS))
    coins = dice.some(range(2, 60), n)
    return Register(
        place_name(dice), tuple(Entry(stranger(dice), *row) for row in zip(jobs, spots, pets, coins, strict=True))
    )
