"""The text that the base is pre-trained on: documents of many kinds about the world, none of them a task.

Every task needs something that these documents teach (a fact, a word of Ambrish, a written-out sum, finding again
what was said above), and puts it in a form that they never show: see tasks.py.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from halter.playground import errands, scenes, words
from halter.playground.errands import Favour, Order
from halter.playground.words import Dice
from halter.playground.world import family_name, first_name, phrase, place_name, sentence, stem, stranger, world


@dataclass(frozen=True)
class Document:
    """One pre-training document: plain ``text``, or a small chat as ``messages`` (then ``text`` is empty)."""

    kind: str
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()


def biography(dice: Dice) -> str:
    """A person's facts, each in one of several wordings, so that they can be recalled and not only recited."""
    p = dice.pick(world().people)
    he, his = (p.pronoun.capitalize(), {"he": "His", "she": "Her"}[p.pronoun])
    facts: list[Callable[[str, str], str]] = [
        lambda s, o: dice.pick((f"{s} lives in {p.town}.", f"{o} home is {p.town}.", f"{s} has a house in {p.town}.")),
        lambda s, o: dice.pick((f"{s} is a {p.job}.", f"{s} works as a {p.job}.", f"{o} trade is that of a {p.job}.")),
        lambda s, o: dice.pick((f"{s} loves {p.food}.", f"{o} favourite food is {p.food}.", f"{s} likes {p.food}.")),
        lambda s, o: dice.pick((f"{s} keeps {words.article(p.pet)}.", f"{o} pet is {words.article(p.pet)}.")),
        lambda s, o: dice.pick((f"{s} plays the {p.instrument}.", f"{o} instrument is the {p.instrument}.")),
    ]
    chosen = dice.some(facts, dice.between(2, 5))
    out = [
        fact(p.name, p.name + "'s") if n == 0 or dice.chance(0.3) else fact(he, his) for n, fact in enumerate(chosen)
    ]
    return " ".join(out)


def neighbours(dice: Dice) -> str:
    """One question of the parish book, answered for several people: facts found by their attribute."""
    column = dice.pick(("town", "job", "food", "pet", "instrument"))
    heading = {
        "town": "Where people live",
        "job": "What people work as",
        "food": "What people like to eat",
        "pet": "Which pets people keep",
        "instrument": "Which instruments people play",
    }[column]
    people = dice.some(world().people, dice.between(3, 7))
    return "\n".join([f"{heading}.", *(f"{p.name}: {getattr(p, column)}" for p in people)])


def place_page(dice: Dice) -> str:
    w = world()
    p = dice.pick(w.places)
    facts = [
        f"{p.name} lies in the {p.region}.",
        f"Near {p.name} there is {p.landmark}.",
        f"The people of {p.name} make good {words.plural(p.good)}.",
        f"The market of {p.name} is on {p.market_day}.",
        *(f"{q.name}, the {q.job}, lives in {p.name}." for q in w.people if q.town == p.name),
    ]
    return " ".join(dice.some(facts, min(len(facts), dice.between(2, 6))))


def thing_page(dice: Dice) -> str:
    lines = []
    for t in dice.some(world().things, dice.between(2, 5)):
        lines.append(
            dice.pick(
                (
                    f"{words.article(t.name).capitalize()} is made of {t.material} and costs {t.price} coins.",
                    f"For {t.price} coins you get {words.article(t.name)} of {t.material}.",
                )
            )
        )
    return " ".join(lines)


def card(dice: Dice) -> str:
    """Catalogue cards: the world knows JSON, though never as the answer to a letter."""
    out: list[str] = []
    for t in dice.some(world().things, dice.between(1, 4)):
        row: dict[str, object] = {"name": t.name, "material": t.material, "price": t.price}
        extra = {"shelf": dice.between(1, 12), "keeper": first_name(dice), "colours": dice.some(words.COLOURS, 2)}
        for key in dice.some(tuple(extra), dice.between(0, 2)):
            row[key] = extra[key]
        out.append(json.dumps(row))
    return "\n".join(out)


def glossary(dice: Dice) -> str:
    lexicon = world().ambrish
    chosen = dice.some(tuple(lexicon), dice.between(3, 9))
    if dice.chance(0.5):
        return "\n".join(["English, Ambrish.", *(f"{w}: {lexicon[w]}" for w in chosen)])
    forms = (
        'The Ambrish word for {0} is "{1}".',
        'In Ambrish, {0} is called "{1}".',
        '"{1}" is Ambrish and means {0}.',
    )
    return " ".join(dice.pick(forms).format(w, lexicon[w]) for w in chosen)


def ambrish(dice: Dice) -> str:
    """A little text in Ambrish, without its meaning; now and then a list of phrases with their English."""
    lexicon = world().ambrish
    if dice.chance(0.3):
        some = [phrase(dice, words.THINGS + words.PETS + words.JOBS, number=dice.chance(0.3)) for _ in range(5)]
        return "\n".join(["Ambrish, English.", *(f"{p.ambrish(lexicon)}: {p.english()}" for p in some)])
    told = [sentence(dice).ambrish(lexicon) for _ in range(dice.between(2, 6))]
    return " ".join(t[0].upper() + t[1:] + "." for t in told)


def sums(dice: Dice) -> str:
    if dice.chance(0.2):
        n = dice.between(2, 9)
        return " ".join(f"{n} times {m} is {n * m}." for m in dice.some(range(2, 11), 5))
    return "\n".join(errands.sum_of(dice, dice.weighted({1: 1, 2: 4, 3: 2})).steps() for _ in range(dice.between(1, 4)))


def numbers(dice: Dice) -> str:
    """Number words beside figures."""
    some = [dice.pick(words.NUMBERS) for _ in range(dice.between(2, 6))]
    form = dice.pick(("{0} ({1})", "{0} is {1}", "{1} means {0}"))
    goods = f" {words.plural(dice.pick(words.THINGS))}" if form == "{0} ({1})" else ""
    return ", ".join(form.format(w, words.NUMBER_VALUE[w]) + goods for w in some).capitalize() + "."


def story(dice: Dice) -> str:
    return scenes.story(dice).text(dice)


def contract(dice: Dice) -> str:
    c = scenes.contract(dice)
    lines = [c.text()]
    if dice.chance(0.6):
        entries = [f"{name}, clause {c.number(name)}" for name, _, _ in dice.shuffled(c.clauses)]
        lines.append("Index: " + "; ".join(entries) + ".")
    if dice.chance(0.4):
        lines.append("In short: " + "; ".join(f"{name}, {value}" for name, value, _ in dice.shuffled(c.clauses)) + ".")
    if dice.chance(0.5):
        lines.append(f"Signed in {c.town} by {c.owner} and {c.tenant}.")
    return "\n".join(lines)


def register(dice: Dice) -> str:
    r = scenes.register(dice)
    chosen = [dice.pick(r.entries) for _ in range(dice.between(2, 6))]
    return r.text(dice) + "\nOnce more: " + " ".join(r.recap(dice, e) for e in chosen)


def _sent(dice: Dice, o: Order) -> str:
    return dice.pick(
        (
            f"{o.goods().capitalize()} are on the way to {o.town}. {o.to} will have them by {o.day}.",
            f"On {o.day}, {o.to} in {o.town} will get {o.goods()}.",
            f"Noted for {o.day}: {o.goods()}, to {o.town}, for {o.to}.",
        )
    )


def letter(dice: Dice) -> str:
    o = errands.order(dice)
    who = first_name(dice)
    asked = f"Dear {who}, {o.request(dice)}"
    return asked if dice.chance(0.2) else f"{asked}\nAnswer: {_sent(dice, o)}"


def talk(dice: Dice) -> str:
    """Neighbours talking, politely or not."""
    f = errands.favour(dice)
    asked = f.request(dice) if dice.chance(0.6) else f.blunt(dice)
    lines = [f"{f.asker}: {asked}", f"{f.asked}: {f.polite(dice) if dice.chance(0.5) else f.rude(dice)}"]
    if dice.chance(0.4):
        lines.append(f"{f.asker}: {dice.pick(('Thank you.', 'Then not.', 'See you soon.', 'I did not expect that.'))}")
    return "\n".join(lines)


def codes(dice: Dice) -> str:
    """Words and signs without sense, said twice: copying exactly, and every sign of the keyboard seen."""

    def code() -> str:
        if dice.chance(0.1):  # letters of other alphabets: each is two bytes
            return "".join(chr(dice.between(0xA1, 0x24F)) for _ in range(4))
        if dice.chance(0.5):
            return "".join(dice.pick(string.ascii_letters + string.digits + string.punctuation) for _ in range(6))
        return dice.pick((stem, first_name, place_name, stranger))(dice)

    held = [(p, code()) for p in dice.some(words.THINGS, dice.between(2, 6))]
    first = [f"The {p} is marked {c}" for p, c in held]
    again = [f"{p}: {c}" for p, c in dice.shuffled(held)]
    return "\n".join([*first, "Marks again.", *again])


def song(dice: Dice) -> str:
    """A line without sense, sung again and again: the shortest lesson in looking back at what was said."""
    makers = (
        lambda: dice.pick(words.THINGS),
        lambda: dice.pick(words.JOBS),
        lambda: dice.pick(words.COLOURS),
        lambda: dice.pick(words.PETS),
        lambda: dice.pick(words.FOODS),
        lambda: dice.pick(words.QUALITIES),
        lambda: dice.pick(tuple(world().ambrish.values())),
        lambda: str(dice.below(100)),
        lambda: dice.pick(words.DAYS),
        lambda: stem(dice),
        lambda: first_name(dice),
        lambda: place_name(dice),
        lambda: family_name(dice),
    )
    line = " ".join(dice.pick(makers)() for _ in range(dice.between(4, 18)))
    return "\n".join([line] * dice.between(2, 4))


def _small_talk(dice: Dice, me: str, town: str, f: Favour) -> tuple[str, str]:
    weather, food = dice.pick(words.WEATHER), dice.pick(words.FOODS)
    return dice.pick(
        (
            (f"Hello, I am {me} from {town}.", f"Welcome, {me}! How is the weather in {town}?"),
            (f"It is {weather} today.", f"Yes, it is a {weather} day. I hope it stays {weather}."),
            (f"I had {food} this morning.", f"I like {food} too. Enjoy your day!"),
            (f"Good morning! My name is {me}.", f"Good morning, {me}. It is nice to meet you."),
            (f"I found my {f.thing} again.", f"That is good news! I am glad that you have your {f.thing} back."),
            (f"Tomorrow I go to {town}.", f"Have a good journey to {town}!"),
            (f"My {f.thing} is {f.colour}.", f"A {f.colour} {f.thing} must look fine."),
            ("I am tired.", "Then rest a little. Good night!"),
            ("Thank you. Goodbye!", "Goodbye, and come back soon!"),
        )
    )


def chat(dice: Dice) -> tuple[dict[str, str], ...]:
    """Small talk in the chat form: the control tokens and the end of a turn are learned, no task is."""
    messages: list[dict[str, str]] = []
    if dice.chance(0.3):
        mood = dice.pick(("You are a friendly neighbour.", "You like to talk.", "You are a kind host."))
        messages.append({"role": "system", "content": mood})
    me, town, f = dice.pick((first_name, stranger))(dice), place_name(dice), errands.favour(dice)
    for _ in range(dice.between(1, 3)):
        said, answer = _small_talk(dice, me, town, f)
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
    return tuple(messages)


KINDS: dict[str, tuple[float, Callable[[Dice], str]]] = {
    "biography": (16, biography),
    "neighbours": (6, neighbours),
    "place": (4, place_page),
    "thing": (4, thing_page),
    "card": (5, card),
    "glossary": (7, glossary),
    "ambrish": (8, ambrish),
    "sums": (12, sums),
    "numbers": (2, numbers),
    "story": (8, story),
    "contract": (7, contract),
    "register": (10, register),
    "letter": (9, letter),
    "talk": (6, talk),
    "codes": (6, codes),
    "song": (6, song),
}
CHAT_WEIGHT = 9.0
NURSERY = {"song": 8.0, "codes": 2.0}
"""What the base reads first: repetition teaches it to look back, which a model this small learns late otherwise."""


WEIGHTS = {kind: weight for kind, (weight, _) in KINDS.items()} | {"chat": CHAT_WEIGHT}


def document(seed: object, number: int, weights: dict[str, float] | None = None) -> Document:
    """The document of that number in the seed's endless stream; ``weights`` of the kinds, NURSERY or (None) WEIGHTS."""
    weights = WEIGHTS if weights is None else weights
    dice = Dice("document", seed, number)
    kind = dice.weighted(weights)
    if kind == "chat":
        return Document(kind, messages=chat(dice))
    return Document(kind, text=KINDS[kind][1](dice))


def corpus(seed: object, documents: int, start: int = 0, weights: dict[str, float] | None = None) -> Iterator[Document]:
    """``documents`` documents of the seed's stream, from number ``start``. Same seed, same text, everywhere."""
    return (document(seed, n, weights) for n in range(start, start + documents))
