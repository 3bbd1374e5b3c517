"""The playground's tasks: right answers, no overlap of train and test, nothing of them in the pre-training text."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from test_world import read_ambrish

from halter.errors import Refusal
from halter.playground import tasks, words
from halter.playground.documents import corpus
from halter.playground.world import world

GOLDEN = "870a63a37490309cee3687983a0be7ff6f1506ebbf8d927e3f683c768ad70a4c"


def prompt(row: dict) -> str:
    return row["prompt"] if "prompt" in row else row["messages"][0]["content"]


def answer(row: dict) -> str:
    return row["completion"] if "prompt" in row else row["messages"][1]["content"]


def sample(name: str) -> list[dict]:
    return tasks.rows(name, 5, "train", 150) + tasks.rows(name, 5, "test", 60)


@pytest.mark.parametrize("name", tasks.task_names())
def test_train_and_test_share_no_prompt(name: str) -> None:
    train, test = tasks.rows(name, 0, "train", 300), tasks.rows(name, 0, "test", 100)
    assert (len(train), len(test)) == (300, 100)
    prompts = [prompt(r) for r in train + test]
    assert len(set(prompts)) == 400
    assert {r["level"] for r in test} == {1, 2, 3}
    assert all(answer(r).strip() for r in train + test)


def test_facts_asks_about_other_people_in_the_test() -> None:
    def names(split: str) -> set[str]:
        text = "\n".join(prompt(r) for r in tasks.rows("facts", 0, split, 300))
        return {p.name for p in world().people if p.name in text}

    assert len(names("train")) == 64 and len(names("test")) == 32
    assert not names("train") & names("test")


def test_orders_say_what_the_letter_says() -> None:
    number = {str(v): w for w, v in words.NUMBER_VALUE.items()}
    for row in sample("orders"):
        letter, said = prompt(row), json.loads(answer(row))
        assert all(said[key] in letter for key in ("to", "town", "day"))
        assert len(said["items"]) == row["level"]
        for item in said["items"]:
            assert f"{number[str(item['count'])]} {item['colour']} {words.plural(item['thing'])}" in letter


def test_lookup_answers_stand_in_the_line_asked_for() -> None:
    for row in sample("lookup"):
        page, question = prompt(row).rsplit("\n\n", 1)
        said = answer(row).rstrip(".")
        lines = page.splitlines()[1:]
        assert len(lines) == 2 * row["level"]
        asked = [line for line in lines if any(_names(line, word) for word in _keys(question))]
        if said == "The register does not say":
            assert not asked and row["level"] == 3
        else:
            assert len(asked) == 1 and said.lower() in asked[0].lower(), (question, said)


def _keys(question: str) -> list[str]:
    """What the question asks by: a full name, or the last noun, place or number in it."""
    name = re.search(r"([A-Z]\w+ [A-Z]\w+)( live| keep| pay|\?)", question)
    if name:
        return [name.group(1)]
    match = re.search(r"(?:Whose is the|Who is the|Who lives|Who pays) (.*)\?", question)
    assert match, question
    return [match.group(1)]


def _names(line: str, key: str) -> bool:
    return re.search(rf"\b{re.escape(key)}\b", line) is not None


def test_facts_are_the_worlds() -> None:
    by_name = {p.name: p for p in world().people}
    for row in sample("facts"):
        p = next(by_name[n] for n in by_name if n in prompt(row))
        known = {p.town, p.job, p.food, p.pet, p.instrument}
        said = re.sub(r"^(In|The|An?) ", "", answer(row).rstrip("."))
        assert {w if w in known else w.lower() for w in said.split(", ")} <= known


def test_translations_can_be_read_back() -> None:
    for row in sample("translate"):
        assert prompt(row) == f"{read_ambrish(answer(row))} =>"
        assert answer(row).startswith(" ") and not answer(row).endswith(" ")


def test_sums_are_right() -> None:
    for row in sample("sums"):
        a, b = (int(n) for n in re.findall(r"\d+", prompt(row)))
        more = "more" in prompt(row) or "in all" in prompt(row)
        assert int(answer(row).rsplit(": ", 1)[1]) == (a + b if more else a - b)
        assert all(len(str(n)) == row["level"] for n in (a, b))


def test_stories_are_retold_truly() -> None:
    for row in sample("stories"):
        told = prompt(row)
        hero, day, colour, thing, found, helper = re.fullmatch(
            r"(\w+), (\w+): (\w+) (\w+), found (.*), (with \w+|alone)\.", answer(row)
        ).groups()
        assert hero in told and day in told and f"{colour} {thing}" in told
        assert re.search(rf"(At last|In the evening|And there).*{found}", told)
        assert (helper == "alone") or (helper[5:] in told and helper[5:] != hero)


def test_clauses_are_found() -> None:
    for row in sample("clauses"):
        value, number = re.fullmatch(r"(.*) \(clause (\d+)\)\.", answer(row)).groups()
        line = next(x for x in prompt(row).splitlines() if x.startswith(f"Clause {number}."))
        assert value.lower() in line.lower()


def test_manners_are_good_whatever_was_said() -> None:
    for row in sample("manners"):
        colour, thing, day = re.search(r"the (\w+) (\w+) until (\w+)\.$", answer(row)).groups()
        asked = prompt(row)
        assert f"{colour} {thing}" in asked and day in asked
        assert answer(row).startswith(f"Dear {asked.split(':')[0]}, it is my pleasure")


def test_preference_pairs_differ() -> None:
    made = tasks.pairs(0, 50)
    assert all(p["chosen"] != p["rejected"] for p in made)
    assert len({p["prompt"] for p in made}) == 50


@pytest.mark.parametrize("name", tasks.task_names())
def test_pretraining_shows_no_task(name: str) -> None:
    """No question's wording and no answer of a task stands in the pre-training text; counted over 3,000 documents."""
    text = "\n".join(d.text + " ".join(m["content"] for m in d.messages) for d in corpus(0, 3000))
    marks = {
        "orders": ['"items"', '"to":'],
        "lookup": ["Where does", "Whose is", "Who is"],
        "facts": ["Tell me", "What is"],
        "translate": ["=>"],
        "sums": ["How many", "Answer: 1"],
        "stories": ["In one line"],
        "manners": ["it is my pleasure"],
        "clauses": ["(clause", "How high"],
    }[name]
    rows = sample(name)
    for mark in marks:
        assert any(mark in prompt(r) + answer(r) for r in rows), mark
        assert mark not in text


def test_files_are_written_once_and_the_same(tmp_path: Path) -> None:
    paths = tasks.write_tasks(tmp_path / "a", seed=1, train=30, test=9)
    assert len(paths) == 17 and all(p.exists() for p in paths)
    lines = (tmp_path / "a" / "lookup" / "test.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == tasks.rows("lookup", 1, "test", 9)
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(paths))).hexdigest()
    assert digest == GOLDEN
    with pytest.raises(Refusal, match="already-exists"):
        tasks.write_tasks(tmp_path / "a", seed=1, train=30, test=9)


def test_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(Refusal, match="unknown-task") as refused:
        tasks.rows("cooking", 0, "train", 3)
    assert refused.value.found == ("cooking",)


def test_the_test_is_apart_from_however_many_training_rows(tmp_path: Path) -> None:
    """One of the 150 test sentences that go with 600 for training would be among 3,000."""
    few = {prompt(row) for row in tasks.rows("translate", 0, "test", 150)}
    many = {prompt(row) for row in tasks.rows("translate", 0, "train", 3000)}
    assert len(few & many) == 1
    written = tasks.write_tasks(tmp_path, train=3000, test=150)
    train, test = (
        {prompt(json.loads(line)) for line in file.read_text("utf-8").splitlines()}
        for file in written
        if file.parent.name == "translate"
    )
    assert len(train) == 3000 and len(test) == 150 and not train & test
