"""Real-looking rows that are ours: tales, instructions, chats and pairs of the playground's world, from a seed alone.

Same seed, same rows, everywhere: everything is drawn by ``halter.playground.words.Dice``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from halter.playground import errands, scenes, tasks, words
from halter.playground.words import Dice
from halter.playground.world import first_name, place_name, world

Row = dict[str, Any]
ENOUGH, MOST = 200, 1200


def sentences(dice: Dice) -> list[str]:
    """One tale in ASCII; the first sentence opens it, and a line break ends each of its scenes."""
    out: list[str] = []
    aim = dice.between(ENOUGH, MOST)
    while sum(map(len, out)) < aim:
        told, asked, job = scenes.story(dice), errands.favour(dice), dice.pick(words.JOBS)
        hero, he = told.hero, told.pronoun.capitalize()
        if not out:
            out.append(
                dice.pick(
                    (
                        f"Once upon a time, there was {words.article(job)} named {hero}.",
                        f"Once upon a time, {hero} went to {place_name(dice)}.",
                        f"{hero} had {words.article(dice.pick(words.PETS))}.",
                    )
                )
            )
            out.append(f"{he} liked to play {dice.pick(words.SPOTS)}.")
        out += told.sentences(dice)
        out.append(f'Then {asked.asker} said, "{asked.blunt(dice)}"')
        out.append(f'{hero} said, "{dice.pick(("Thank you.", "It is a fine day.", "Let us go home."))}"\n')
    return [s for s in out if s.isascii()]


def tale(dice: Dice) -> str:
    return " ".join(sentences(dice)).replace("\n ", "\n").strip()


def stories(seed: object, count: int) -> Iterator[Row]:
    """{"text"}"""
    return ({"text": tale(Dice("tale", seed, n))} for n in range(count))


def instructions(seed: object, count: int) -> Iterator[Row]:
    """{"instruction", "input", "output", "kind"}: a tale's end from its beginning, or a whole one from its words."""
    for n in range(count):
        dice = Dice("instruction", seed, n)
        if n % 2:
            first, rest = tale(dice).split(". ", 1)
            yield {"instruction": "Finish this story.", "input": first + ".", "output": rest, "kind": "continue"}
        else:
            told = tale(dice)
            some = dice.some(sorted({w for w in told.split() if w.isalpha() and len(w) > 3}), 3)
            ask = "Write a short story that uses these words."
            yield {"instruction": ask, "input": ", ".join(some), "output": told, "kind": "words"}


def corpus(seed: object) -> Iterator[str]:
    """What the small models of tests/golden read: tales without end."""
    n = 0
    while True:
        yield tale(Dice("corpus", seed, n))
        n += 1


def alpaca(seed: object, count: int) -> Iterator[Row]:
    """{"instruction", "input", "output"} in the manner of Alpaca: two in three without input, one in fifty long, the
    words of other alphabets, and (rows 100 and 300) two that have no answer.
    """
    for n in range(count):
        dice = Dice("alpaca", seed, n)
        about = dice.pick(world().people)
        kind = dice.pick(("sum", "order", "fact", "list", "words"))
        instruction, given = f"{first_name(dice)} asks what {about.name} eats.", ""
        output = f"{about.name} likes {about.food}."
        if kind == "sum":
            sum_ = errands.sum_of(dice, dice.between(1, 3))
            instruction = f"What is {sum_.a} {'plus' if sum_.plus else 'minus'} {sum_.b}?"
            output = f"{sum_.steps()}\nAnswer: {sum_.result}"
        elif kind == "order":
            order = errands.order(dice)
            instruction, given, output = "What is ordered here?", order.request(dice), f"{order.goods().capitalize()}."
        elif kind == "list":
            some = dice.some(words.THINGS, 5)
            instruction, given = "Sort these words.", ", ".join(some)
            output = "\n".join(f"{place}. {word}" for place, word in enumerate(sorted(some), 1))
        elif kind == "words":
            english = dice.pick(tuple(world().ambrish))
            instruction = (
                f"{first_name(dice)}, how do you say “{english}” in Ambrish? Reply like this: 例 → naïve café, ½ €, 🙂"
            )
            output = f"“{world().ambrish[english]}” – ¡así! 你好 🙂"
        if n % 50 == 7:
            output += "\n" + "\n".join(tale(dice) for _ in range(4))
        yield {"instruction": instruction, "input": given, "output": "" if n in (100, 300) else output}


def identity(seed: object, count: int) -> Iterator[Row]:
    """{"id", "conversations": [{"from", "value"}]}: ShareGPT's form, small talk of one to three turns."""
    for n in range(count):
        dice = Dice("identity", seed, n)
        said = [
            (f"I am {p.name}.", f"Good morning, {p.first}. Do you still keep your {p.pet}?")
            for p in dice.some(world().people, dice.between(1, 3))
        ]
        turns = [{"from": who, "value": text} for pair in said for who, text in zip(("human", "gpt"), pair)]
        yield {"id": f"identity_{n}", "conversations": turns}


def tool_calls(seed: object, count: int) -> Iterator[Row]:
    """ShareGPT's form with ``function_call`` and ``observation`` turns and ``tools``, as Glaive writes them."""
    wanted = {"type": "object", "properties": {"to": {"type": "string"}, "goods": {"type": "array"}}}
    tool = {"name": "place_order", "description": "Order goods", "parameters": wanted}
    for n in range(count):
        dice = Dice("tools", seed, n)
        turns = [("human", f"Good day, I am “{dice.pick(world().people).name}”."), ("gpt", " Good day! What is it?\n")]
        for _ in range(dice.between(0, 2)):
            order = errands.order(dice)
            call = {"name": "place_order", "arguments": {"to": order.to, "goods": [list(item) for item in order.items]}}
            turns += [
                ("human", order.request(dice)),
                ("function_call", json.dumps(call)),
                ("observation", json.dumps({"number": dice.below(1000), "by": order.day})),
                ("gpt", f"{order.goods().capitalize()} will be there on {order.day}."),
            ]
        said = [{"from": who, "value": text} for who, text in turns]
        yield {"conversations": said, "tools": json.dumps([tool])}


def rated(seed: object, count: int) -> Iterator[Row]:
    """{"messages", "label"}: one answer, and whether it is a good one, as KTO wants it."""
    for n, pair in enumerate(tasks.pairs(int(str(seed)), count)):
        answer = pair["chosen"] if n % 2 else pair["rejected"]
        said = [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": answer}]
        yield {"messages": said, "label": bool(n % 2)}


def preferences(seed: object, count: int) -> Iterator[Row]:
    """{"conversations", "chosen", "rejected"} in ShareGPT's form."""
    for pair in tasks.pairs(int(str(seed)), count):
        both = {side: {"from": "gpt", "value": pair[side]} for side in ("chosen", "rejected")}
        yield {"conversations": [{"from": "human", "value": pair["prompt"]}], **both}


def questions(seed: object, count: int) -> Iterator[Row]:
    """{"question_id", "category", "turns"}: two questions each and no answer, as MT-Bench is."""
    for n in range(count):
        dice = Dice("questions", seed, n)
        asked = [errands.favour(dice).request(dice), "Say it again, in verse."]
        yield {"question_id": n, "category": "manners", "turns": asked}


def seed_tasks(seed: object, count: int) -> Iterator[Row]:
    """{"id", "name", "instruction", "instances": [{"input", "output"}]}, as Self-Instruct's seed tasks are."""
    for n, row in enumerate(alpaca(seed, count)):
        instances = [{"input": row["input"], "output": row["output"]}]
        yield {"id": f"seed_task_{n}", "name": "task", "instruction": row["instruction"], "instances": instances}


def sums(seed: object, count: int) -> Iterator[Row]:
    """{"question", "answer"}, the answer worked out and its number behind ####, as GSM8K has it."""
    for row in tasks.rows("sums", int(str(seed)), "train", count):
        steps, result = str(row["completion"]).rsplit(" Answer: ", 1)
        yield {"question": row["prompt"], "answer": f"{steps}\n#### {result}"}
