"""What people of the world do with one another: sums, orders and favours, each as facts with their wording."""

from __future__ import annotations

from dataclasses import dataclass

from halter.playground import words
from halter.playground.words import Dice
from halter.playground.world import first_name, place_name, stranger, world


@dataclass(frozen=True)
class Sum:
    """a + b or a - b (never below zero), worked column by column."""

    a: int
    b: int
    plus: bool = True

    @property
    def result(self) -> int:
        return self.a + self.b if self.plus else self.a - self.b

    def sign(self) -> str:
        return "+" if self.plus else "-"

    def steps(self) -> str:
        """The written-out sum: ``27 + 48: 7 + 8 = 15, carry 1. 2 + 4 + 1 = 7. So 27 + 48 = 75.``"""
        carry = 0
        parts: list[str] = []
        a, b = self.a, self.b
        while a or b or not parts:
            x, y = a % 10, b % 10
            if self.plus:
                total = x + y + carry
                line = f"{x} + {y}" + (" + 1" if carry else "") + f" = {total}"
                carry = int(total > 9)
                more = a > 9 or b > 9
                parts.append(line + (", carry 1" if carry and more else ""))
            else:
                low = x - carry < y
                top = x - carry + (10 if low else 0)
                shown = f"{x} - 1 = {x - 1}, " if carry else ""
                shown += f"borrow: {top} - {y} = {top - y}" if low else f"{top} - {y} = {top - y}"
                carry = int(low)
                parts.append(shown)
            a, b = a // 10, b // 10
        asked = f"{self.a} {self.sign()} {self.b}"
        return f"{asked}: {'. '.join(parts)}. So {asked} = {self.result}."


def sum_of(dice: Dice, digits: int) -> Sum:
    low, high = 10 ** (digits - 1), 10**digits - 1
    a, b = dice.between(low, high), dice.between(low, high)
    if dice.chance(0.5):
        return Sum(a, b)
    return Sum(max(a, b), min(a, b), plus=False)


@dataclass(frozen=True)
class Order:
    """Somebody asks for goods to be sent. Level 1 has one item, levels 2 and 3 two and three."""

    items: tuple[tuple[str, str, str], ...]  # number word, colour, thing
    to: str
    town: str
    day: str

    def goods(self) -> str:
        said = [f"{n} {colour} {words.plural(thing)}" for n, colour, thing in self.items]
        return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)

    def request(self, dice: Dice) -> str:
        goods, to, town, day = self.goods(), self.to, self.town, self.day
        return dice.pick(
            (
                f"Please send {goods} to {to} in {town} by {day}.",
                f"{to} in {town} needs {goods} by {day}.",
                f"By {day} I would like to have {goods} sent to {town}, for {to}.",
                f"Could you bring {goods} to {town} on {day}? They are for {to}.",
                f"My name is {to} and I live in {town}. I want to order {goods} for {day}.",
                f"We are out of {words.plural(self.items[0][2])} here in {town}! Send {goods} before {day}. {to}",
            )
        )


def order(dice: Dice, level: int = 0) -> Order:
    level = level or dice.between(1, 3)
    items = tuple(
        (dice.pick(words.NUMBERS), dice.pick(words.COLOURS), thing) for thing in dice.some(words.THINGS, level)
    )
    known = dice.chance(0.3)
    to = dice.pick(world().people).name if known else stranger(dice)
    return Order(items, to, place_name(dice), dice.pick(words.DAYS))


@dataclass(frozen=True)
class Favour:
    """A neighbour wants to borrow something."""

    asker: str
    asked: str
    colour: str
    thing: str
    day: str

    def request(self, dice: Dice) -> str:
        what = f"{self.colour} {self.thing}"
        return dice.pick(
            (
                f"Could you lend me your {what} until {self.day}?",
                f"I need {words.article(what)} until {self.day}. May I take yours?",
                f"May I borrow your {what}? You will have it back on {self.day}.",
                f"Would you let me use the {what} until {self.day}?",
            )
        )

    def blunt(self, dice: Dice) -> str:
        what = f"{self.colour} {self.thing}"
        return dice.pick(
            (
                f"Give me your {what}! I want it until {self.day}.",
                f"I take your {what} now. You get it back on {self.day}.",
                f"Hand over the {what} until {self.day}, and be quick.",
            )
        )

    def polite(self, dice: Dice) -> str:
        return dice.pick(
            (
                f"Of course, {self.asker}. The {self.thing} is yours until {self.day}.",
                f"With pleasure, {self.asker}. Please take the {self.colour} {self.thing}.",
                f"Gladly, {self.asker}. I will bring the {self.thing} over myself.",
            )
        )

    def rude(self, dice: Dice) -> str:
        return dice.pick(
            (
                f"No. Buy your own {self.thing}, {self.asker}.",
                f"Leave me alone, {self.asker}. The {self.colour} {self.thing} stays here.",
                f"What a silly question. You would only break my {self.thing}.",
            )
        )


def favour(dice: Dice) -> Favour:
    asker, asked = first_name(dice), first_name(dice)
    return Favour(asker, asked, dice.pick(words.COLOURS), dice.pick(words.THINGS), dice.pick(words.DAYS))
