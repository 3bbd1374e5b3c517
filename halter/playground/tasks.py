"""The playground's tasks: each needs what the base knows, in a form that its pre-training never showed.

A task makes (prompt, answer) pairs of three levels of difficulty; train and test share no prompt (and, for ``facts``,
no person). The base scores (nearly) nothing on any of them before it is adapted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halter.errors import Refusal, meant
from halter.files import writing
from halter.playground import errands, scenes, words
from halter.playground.words import Dice
from halter.playground.world import Phrase, Sentence, phrase, sentence, world

LEVELS = (1, 2, 3)
TRAIN, TEST = 600, 150
Exchange = tuple[str, str]


@dataclass(frozen=True)
class Task:
    """``make(dice, level, split)`` gives one (prompt, answer); ``form`` is the rows' shape: "messages" or "prompt"."""

    name: str
    about: str
    form: str
    make: Callable[[Dice, int, str], Exchange]

    def row(self, prompt: str, answer: str, level: int) -> dict[str, object]:
        if self.form == "prompt":
            return {"prompt": prompt, "completion": answer, "level": level}
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return {"messages": said, "level": level}


def orders(dice: Dice, level: int, split: str) -> Exchange:
    o = errands.order(dice, level)
    items = [{"count": words.NUMBER_VALUE[n], "colour": colour, "thing": thing} for n, colour, thing in o.items]
    return o.request(dice), json.dumps({"to": o.to, "town": o.town, "day": o.day, "items": items})


def lookup(dice: Dice, level: int, split: str) -> Exchange:
    """Level 1: two entries, asked by name; 2: four, asked by any column; 3: six, one question in four has no answer."""
    r = scenes.register(dice, 2 * level)
    e = dice.pick(r.entries)
    asked: list[Exchange] = [
        (f"Where does {e.name} live?", f"{e.spot.capitalize()}."),
        (f"Which animal does {e.name} keep?", f"{words.article(e.pet).capitalize()}."),
        (f"How much does {e.name} pay?", f"{e.coins} coins."),
        (f"What is the trade of {e.name}?", f"{e.job.capitalize()}."),
    ]
    if level > 1:
        asked += [
            (f"Whose is the {e.pet}?", f"{e.name}."),
            (f"Who is the {e.job}?", f"{e.name}."),
            (f"Who lives {e.spot}?", f"{e.name}."),
            (f"Who pays {e.coins} coins?", f"{e.name}."),
        ]
    question, answer = dice.pick(asked)
    if level == 3 and dice.chance(0.25):
        away = [p for p in words.PETS if p not in {x.pet for x in r.entries}]
        question, answer = f"Whose is the {dice.pick(away)}?", "The register does not say."
    return f"{r.text(dice)}\n\n{question}", answer


def facts(dice: Dice, level: int, split: str) -> Exchange:
    """By heart, about the world's people; every third person is asked about in the test only."""
    everyone = world().people
    people = [p for n, p in enumerate(everyone) if (n % 3 == 0) == (split == "test")]
    p = dice.pick(people)
    first: list[Exchange] = [
        (f"What is the trade of {p.name}?", f"{p.job.capitalize()}."),
        (f"Where does {p.name} live?", f"In {p.town}."),
    ]
    second: list[Exchange] = [
        (f"What does {p.name} like to eat?", f"{p.food.capitalize()}."),
        (f"Which animal does {p.name} keep?", f"{words.article(p.pet).capitalize()}."),
        (f"Which instrument does {p.name} play?", f"The {p.instrument}."),
    ]
    third: list[Exchange] = [
        (f"Tell me the trade and the pet of {p.name}.", f"{p.job.capitalize()}, {p.pet}."),
        (f"Tell me the town and the instrument of {p.name}.", f"{p.town}, {p.instrument}."),
    ]
    return dice.pick((first, second, third)[level - 1])


def translate(dice: Dice, level: int, split: str) -> Exchange:
    """English to Ambrish. Level 1: no adjectives or numbers; 2: as in Ambrish texts; 3: adjectives on both sides."""
    s = sentence(dice)
    if level == 1:
        s = Sentence(Phrase(s.subject.noun), s.verb, Phrase(s.object.noun), s.past)
    elif level == 3:
        subject = phrase(dice, words.JOBS + words.PETS, number=False, adjective=1.0)
        s = Sentence(subject, s.verb, phrase(dice, words.THINGS, number=True, adjective=1.0), s.past)
    return f"{s.english()} =>", f" {s.ambrish(world().ambrish)}"


def sums(dice: Dice, level: int, split: str) -> Exchange:
    """A word problem with as many digits as its level, answered with the written-out sum."""
    s = errands.sum_of(dice, level)
    who, thing = dice.pick(world().people).first, words.plural(dice.pick(words.THINGS))
    if s.plus:
        story = dice.pick(
            (
                f"{who} has {s.a} {thing} and gets {s.b} more. How many are there now?",
                f"{who} made {s.a} {thing} in spring and {s.b} in autumn. How many in all?",
            )
        )
    else:
        story = dice.pick(
            (
                f"{who} had {s.a} {thing} and sold {s.b}. How many are left?",
                f"Of {s.a} {thing}, {s.b} broke. How many does {who} still have?",
            )
        )
    return story, f"{s.steps()} Answer: {s.result}"


def stories(dice: Dice, level: int, split: str) -> Exchange:
    s = scenes.story(dice, level)
    helped = f"with {s.helper}" if s.helper else "alone"
    return f"{s.text(dice)}\n\nIn one line?", f"{s.hero}, {s.day}: {s.colour} {s.thing}, found {s.found}, {helped}."


def manners(dice: Dice, level: int, split: str) -> Exchange:
    """Always a polite answer, whatever the tone. Level 1: asked politely; 2: bluntly; 3: either, for two people."""
    f = errands.favour(dice)
    blunt = level == 2 or (level == 3 and dice.chance(0.5))
    asked = f.blunt(dice) if blunt else f.request(dice)
    who = f.asker if level < 3 else f"{f.asker} and {dice.pick(world().people).first}"
    answer = f"Dear {who}, it is my pleasure to lend you the {f.colour} {f.thing} until {f.day}."
    return f"{who}: {asked}", answer


def clauses(dice: Dice, level: int, split: str) -> Exchange:
    c = scenes.contract(dice, level)
    subject, value, _ = dice.pick(c.clauses)
    question = {
        "rent": "How high is the rent?",
        "term": "How long does it run?",
        "repairs": "Who does the repairs?",
        "notice": "How long is the notice?",
        "animals": "Which animals are allowed?",
        "deposit": "How high is the deposit?",
        "delay": "What does a delay cost?",
    }[subject]
    return f"{c.text()}\n\n{question}", f"{value.capitalize()} (clause {c.number(subject)})."


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("orders", "turn a letter that orders goods into JSON", "messages", orders),
        Task("lookup", "answer a question about a page of a register", "messages", lookup),
        Task("facts", "answer from memory about people, asked in a new way", "messages", facts),
        Task("translate", "translate sentences from English into Ambrish", "prompt", translate),
        Task("sums", "solve a word problem with written-out steps", "prompt", sums),
        Task("stories", "retell a story in one line of fixed form", "messages", stories),
        Task("manners", "answer every request politely, in one form", "messages", manners),
        Task("clauses", "find a term of a contract and its clause", "messages", clauses),
    )
}


def task_names() -> tuple[str, ...]:
    return tuple(TASKS)


def task(name: str) -> Task:
    if name not in TASKS:
        raise Refusal(
            "unknown-task",
            "no such playground task",
            found=[name],
            expected=f"one of {', '.join(TASKS)}",
            fix=meant(name, TASKS),
        )
    return TASKS[name]


def rows(
    name: str, seed: int, split: str, count: int, levels: tuple[int, ...] = LEVELS, beside: int = TRAIN
) -> list[dict[str, object]]:
    """``count`` rows of a task's "train" or "test" split, the levels in turn; no prompt comes twice, and none of the
    test is among the first ``beside`` of the training rows.

    Rows are ``{"messages": [user, assistant], "level"}`` or ``{"prompt", "completion", "level"}``. A task that runs
    out of different prompts (``facts`` in the test) gives as many as there are.
    """
    made = task(name)
    train = _pairs(made, seed, "train", count if split == "train" else max(count, beside), levels)
    if split == "train":
        return [made.row(*pair, level) for pair, level in train]
    known = {prompt for (prompt, _), _ in train}
    return [made.row(*pair, level) for pair, level in _pairs(made, seed, "test", count, levels, known)]


def _pairs(
    made: Task, seed: int, split: str, count: int, levels: tuple[int, ...], known: set[str] | None = None
) -> list[tuple[Exchange, int]]:
    seen, n = set(known or ()), 0
    out: list[tuple[Exchange, int]] = []
    while len(out) < count and n < 40 * count:
        level = levels[n % len(levels)]
        pair = made.make(Dice("task", made.name, seed, split, n), level, split)
        n += 1
        if pair[0] not in seen:
            seen.add(pair[0])
            out.append((pair, level))
    return out


def pairs(seed: int, count: int) -> list[dict[str, object]]:
    """Preference pairs of ``manners``: {"prompt", "chosen", "rejected"}, the polite answer chosen."""
    out: list[dict[str, object]] = []
    for n in range(count):
        dice = Dice("pairs", seed, n)
        f = errands.favour(dice)
        asked = f.request(dice) if dice.chance(0.5) else f.blunt(dice)
        out.append({"prompt": f"{f.asker}: {asked}", "chosen": f.polite(dice), "rejected": f.rude(dice)})
    return out


def write_tasks(folder: Path, seed: int = 0, train: int = TRAIN, test: int = TEST) -> list[Path]:
    """Write TASK/train.jsonl and TASK/test.jsonl for every task, and manners/pairs.jsonl; returns the paths."""
    folder, written = Path(folder), []

    def write(path: Path, lines: list[dict[str, object]]) -> None:
        writing.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        written.append(path)

    for name in TASKS:
        write(folder / name / "train.jsonl", rows(name, seed, "train", train))
        write(folder / name / "test.jsonl", rows(name, seed, "test", test, beside=max(train, TRAIN)))
    write(folder / "manners" / "pairs.jsonl", pairs(seed, train))
    return written
