"""Refusals: the first twenty that were found, all of them in a file; what can be waived, and that it is noted."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path

import pytest

from halter.cli import main
from halter.errors import SHOWN_FOUND, SHOWN_LINES, WAIVABLE, Refusal, Waivers, together
from halter.files.found_list import keep_found
from halter.recipe import ChecksOptions
from halter.recipe.fields import keys_of

PACKAGE = Path(__file__).resolve().parents[1] / "halter"


def waivable(id: str = "double-bos", **more: object) -> Refusal:
    return Refusal(id, "looks wrong", fix="fix it", waivable=True, **more)  # type: ignore[arg-type]


def test_a_waived_refusal_is_noted_and_any_other_raised() -> None:
    waivers = Waivers(["double-bos"])
    waivers.refuse(waivable(found=["a.jsonl:3"]))
    waivers.refuse(waivable(found=["a.jsonl:3"]))
    assert waivers.facts() == [{"id": "double-bos", "text": "looks wrong. Found: a.jsonl:3. Fix: fix it."}]
    for refusal in (waivable("disk-space"), Refusal("double-bos", "another, which has no waiver")):
        with pytest.raises(Refusal) as caught:
            waivers.refuse(refusal)
        assert caught.value is refusal
    assert len(waivers.waived) == 1


def test_what_cannot_be_waived_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refusal) as caught:
        Waivers(["doubel-bos", "adapter-damaged", "disk-space", "xyz"])
    assert caught.value.id == "waiver-unknown" and len(caught.value.found) == 3
    assert "doubel-bos (did you mean double-bos?)" in caught.value.found and "xyz" in caught.value.found
    assert all(id in str(caught.value) for id in WAIVABLE)


def refusals_in_the_source() -> list[tuple[str, str, bool]]:
    """(file, id, waivable) of every Refusal(...) in the package whose id is written out."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
                words = {k.arg: k.value for k in node.keywords}
                flag = words.get("waivable")
                if isinstance(node.args[0], ast.Constant):
                    found.append((path.name, node.args[0].value, isinstance(flag, ast.Constant) and flag.value is True))
    return found


def test_the_table_of_waivers_is_the_package_s() -> None:
    found = refusals_in_the_source()
    assert len(found) > 100
    assert {id for _, id, flag in found if flag} == set(WAIVABLE)
    assert not [f"{file}: {id}" for file, id, flag in found if not flag and id in WAIVABLE]
    assert not [id for id in WAIVABLE if "damaged" in id or "mismatch" in id]


def test_the_recipe_says_what_can_be_waived() -> None:
    doc = keys_of(ChecksOptions)["allow"].doc
    assert doc.partition(": ")[2].rstrip(".").split(", ") == list(WAIVABLE)


def test_a_waivable_refusal_ends_by_saying_how_to_waive_it() -> None:
    assert str(waivable()).endswith(
        "To continue anyway: --allow double-bos; in a recipe checks.allow: [double-bos]; in Python "
        'allow="double-bos". [double-bos]'
    )
    assert "To go on" not in str(Refusal("x", "what"))


def test_a_few_are_shown_and_all_are_in_a_file(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lines = [f"rows.jsonl:{n}: no token to learn" for n in range(SHOWN_FOUND + 25)]
    refusal = Refusal("bad-rows", "45 rows cannot be used", found=lines)
    assert str(refusal).count("no token to learn") == SHOWN_FOUND and "and 25 more" in str(refusal)
    assert main._report(refusal, debug=False) == 2
    told = capsys.readouterr().err
    assert told.count("no token to learn") == SHOWN_LINES and "and 42 more" in told and told.count("\n") <= 6
    kept = next(tmp_path.glob("halter-bad-rows-*.txt"))
    assert f"and 42 more; all of them are in {kept}" in told and kept.read_text().splitlines()[1:] == lines
    assert keep_found(refusal) == kept and len([*tmp_path.iterdir()]) == 1  # the next try's in the last one's place
    assert keep_found(Refusal("bad-rows", "few", found=lines[: SHOWN_LINES + 1])) is None
    assert keep_found(Refusal("names", "few", found=range(SHOWN_FOUND))) is None
    together = Refusal("bad-rows", "many", found=lines, groups=["no token to learn: 45 rows, rows.jsonl:0, 2, 4, ..."])
    assert main._report(together, debug=False) == 2
    told = capsys.readouterr().err
    assert told.startswith("halter: many. Found:\n  no token to learn: 45 rows, rows.jsonl:0, 2, 4, ...; all")
    told_whole = Refusal("bad-rows", "many", found=lines, groups=["no token to learn: 45 rows, rows.jsonl:0-44"])
    assert keep_found(told_whole) is None


def test_the_file_lands_in_the_run_folder_where_there_is_one(tmp_path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    refusal = Refusal("bad-rows", "many", found=range(30))
    refusal.folder = tmp_path / "run"
    assert keep_found(refusal).parent == tmp_path / "run"
    refusal.folder = tmp_path / "not-there"
    assert keep_found(refusal).parent == tmp_path  # beside where the run folder was to be
    refusal.folder = tmp_path / "no" / "not-there"
    assert keep_found(refusal).parent == tmp_path / "tmp"


def test_one_list_for_each_output_and_no_file_of_anybody_else_is_replaced(tmp_path, monkeypatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    refusal = Refusal("bad-rows", "many", found=range(30))
    kept = []
    for name in ("one", "two", "one", "two"):
        refusal.folder = tmp_path / "runs" / name
        refusal.folder.parent.mkdir(exist_ok=True)
        kept.append(keep_found(refusal))
    assert kept[0] == kept[2] != kept[1] == kept[3] and len([*(tmp_path / "runs").iterdir()]) == 2
    kept[0].write_text("mine\n")
    other = keep_found(Refusal("bad-rows", "many", found=range(30)))
    assert other.parent == tmp_path / "tmp"
    refusal.folder = tmp_path / "runs" / "one"
    assert keep_found(refusal) not in (kept[0], kept[1]) and kept[0].read_text() == "mine\n"
    link = tmp_path / "tmp" / "linked.txt"
    link.write_text("theirs\n")
    other.unlink()
    other.symlink_to(link)
    assert keep_found(Refusal("bad-rows", "many", found=range(30))) != other and link.read_text() == "theirs\n"


def test_several_refusals_are_told_one_by_one(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parts = [waivable(), Refusal("bad-rows", "many", found=range(30)), Refusal("device-missing", "no cuda:7")]
    whole = together(parts)
    assert whole.parts == tuple(parts) and together(parts[:1]) is parts[0]
    assert all(str(part) in str(whole) for part in parts)
    assert main._report(whole, debug=False) == 2
    told = capsys.readouterr().err
    assert "3 mistakes" in told and all(f"[{part.id}]" in told for part in parts)
    text = next(tmp_path.glob("halter-preflight-*.txt")).read_text()
    assert "[bad-rows] many\n  0\n  1\n" in text


def test_no_message_is_longer_than_six_lines(tmp_path, monkeypatch, capsys) -> None:
    """Whatever the list holds: the kinds of faults that a stranger saw in 7 to 46 lines."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kinds = [
        [f"rows.jsonl:{n}: broken JSON: Expecting value" for n in range(242)],
        [f"tensor.{n} is {[n, 64]}, not {[64, 64]}" for n in range(36)],
        [f"r.jsonl:{n}: reason number {'abcdefghij'[n % 10] * 9}" for n in range(24)],
        [f"one of {n}" for n in range(9)],
        ["x" * 300] * 12,
    ]
    for found in kinds:
        for waivable in (False, True):
            parts = {"where": "w", "expected": "e", "fix": "f", "found": found, "waivable": waivable}
            refusal = Refusal("some-id", "what", **parts)
            main._report(refusal, debug=False)
            assert len(capsys.readouterr().err.splitlines()) <= 6, found[:2]


@pytest.mark.parametrize(
    ("fix", "told"),
    [
        ("give --data FILE", 'give data="FILE"'),
        ("a run, or --model DIR; --n 2", 'a run, or model="DIR"; n=2'),
        ("--memory 8.5GB, or less", 'memory="8.5GB", or less'),
        ("the folder (--model)", "the folder (model)"),
        ("give --template (llama-3, alpaca)", "give template (llama-3, alpaca)"),
        ("--on-long cut", 'on_long="cut"'),
    ],
)
def test_flags_are_keywords_in_python_and_flags_on_the_command_line(fix: str, told: str) -> None:
    refusal = Refusal("odd", "looks wrong", fix=fix).by_keyword()
    assert str(refusal) == f"looks wrong. Fix: {told}. [odd]"
    assert refusal.paragraph() == f"looks wrong. Fix: {fix}. [odd]"
