"""The bench's frame on a tiny shape: what the record holds, that a wrong loss has no ratio, the floor by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import busy
import frame
import growth
import ladder
import limits
import page
import profiling
import table
import workloads
from workloads import Setting, Work

from halter.model.config import ModelConfig

SHAPE = {"dim": 64, "heads": 8, "kv_heads": 2, "head_dim": 8, "ffn_dim": 128, "vocab_size": 1280}
TINY = Setting(
    layers=2, changes=SHAPE, rows=3, longest=60, threads=1, steps=1, new_tokens=4, prompt_tokens=8, dtype="float32"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HALTER_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "bench"))


def made_up(**changes):
    """Sides that take no time: 100 tokens, Halter in 1 s and 1 GB, the peer in 4 s and 3 GB, a floor of 0.5 s."""
    results = {
        "halter": {"seconds": [1.0], "peak_bytes": 10**9, "losses": [2.0, 1.9], "grad_norms": [0.5, 0.5]},
        "peer": {"seconds": [4.0], "peak_bytes": 3 * 10**9, "losses": [2.0, 1.9], "grad_norms": [0.5, 0.5]},
        "limit": {"seconds": [0.5], "plain_seconds": 0.8},
    }
    calls = []

    def begin(side, work, setting, given):
        calls.append(side)
        return {"tokens": 100, **results[side], **changes.get(side, {})} if side != "prepare" else {}

    return begin, calls


def row(**changes):
    begin, calls = made_up(**changes)
    work = replace(workloads.find("lora-qv-step"), sides=("halter", "peer", "limit"))
    return frame.run_row(work, TINY, 3, lambda _: None, begin), calls


def test_medians_ratios_and_turns():
    found, calls = row()
    assert found["ratios"] == {
        "speed_peer": 4.0,
        "memory_peer": pytest.approx(1 / 3),
        "of_limit": 0.5,
        "of_plain_limit": pytest.approx(0.8),
    }
    assert found["halter"]["tokens_per_second"] == 100 and found["peer"]["loss"] == 2.0
    assert calls == ["prepare", *"halter peer limit limit peer halter halter peer limit".split()]


@pytest.mark.parametrize(
    "key, value",
    [("losses", [2.0, 1.95]), ("losses", [2.1, 1.9]), ("grad_norms", [0.5, 0.6]), ("losses", [float("nan"), 1.9])],
)
def test_a_row_that_computed_something_else_has_no_ratio(key, value):
    found, _ = row(halter={key: value})
    assert found["check"]["ok"] is False and found["ratios"] == {} and key in found["check"]["what"]
    assert "check failed" in table.cells(found)[0]


def test_a_side_that_fails_is_named_and_the_rest_stands():
    begin, _ = made_up()

    def broken(side, work, setting, given):
        if side == "peer":
            raise frame.SideFailed("no such wheel")
        return begin(side, work, setting, given)

    found = frame.run_row(workloads.find("llama_adapter-step"), TINY, 2, lambda _: None, broken)
    assert found["peer"] == {"missing": "no such wheel"} and found["check"] == {"ok": None, "what": "no peer"}
    assert found["ratios"].keys() == {"of_limit", "of_plain_limit"}


def test_the_floor_by_hand():
    """Two layers of 4 x 4 q and o, 2 x 4 k and v, 8 x 4 MLP, a head of 16 x 4; two rows of 3 and 5, 2 and 1 of them
    supervised; LoRA r=1 on q and v."""
    config = ModelConfig(layers=2, dim=4, heads=2, kv_heads=1, head_dim=2, ffn_dim=8, vocab_size=16, context=64)
    work = Work("x", "step", workloads.lora(1, workloads.QV))
    need = limits.floor(work, config, [3, 5], [2, 1])
    q, kv, mlp, head = 16, 8, 32, 64
    first = 2 * 8 * (q + 2 * kv) + 4 * 8 * (q + 3 * mlp)  # forward alone for q, k, v
    last = 4 * 8 * (2 * kv) + 4 * 3 * (2 * q + 3 * mlp)  # k and v on all tokens
    assert sum(p.operations for p in need.products) == first + last + 4 * 3 * head
    assert need.adapter == 6 * (8 * 8 + 8 * 6 + 3 * 8 + 8 * 6)  # q has 4 + 4 numbers, v 4 + 2
    # Pairs: 6 + 15 in the first layer; in the last, the tokens before the supervised ones see 1 + 2 and 4.
    assert need.attention == 6 * 2 * (21 + 7) * 4
    assert need.plain == 4 * (2 * 8 * (2 * q + 2 * kv + 3 * mlp) + 3 * head)
    full = limits.floor(Work("y", "step", {"name": "full"}), config, [3, 5], [2, 1])
    assert full.operations - full.attention == first + last + 4 * 3 * head + (
        2 * 8 * (2 * q + 2 * kv + 3 * mlp) + 2 * 8 * 2 * kv + 2 * 3 * (2 * q + 3 * mlp) + 2 * 3 * head
    )


def test_the_bytes_of_a_decoding_step_by_hand():
    config = ModelConfig(
        layers=2, dim=4, heads=2, kv_heads=1, head_dim=2, ffn_dim=8, vocab_size=16, context=64, dtype="bfloat16"
    )
    weights, held = 2 * (2 * 16 + 2 * 8 + 3 * 32), 3 * (8 + 2) * 2 * 2 * 1 * 2 * 2
    assert limits.decode_bytes(Work("x", "decode", batch=3), config, TINY) == 2 * weights + 2 * 16 * 4 + held
    nf4 = limits.decode_bytes(Work("x", "decode", quantize="nf4", batch=3), config, TINY)
    assert nf4 == int(weights * (0.5 + 1 / 64) + 2 * 16 * 4 + held)


def test_tables_replace_what_lies_between_their_markers(tmp_path):
    pytest.importorskip("matplotlib")
    record = {**frame.head(TINY), "rows": [row()[0]]}
    path = tmp_path / "performance.md"
    path.write_text("# Speed\n\n<!-- bench: table -->\nold\n<!-- end: table -->\n\nProse.\n")
    page.write(record, path)
    once = path.read_text()
    assert "old" not in once and "Prose." in once and "| lora-qv-step | 100.0 |" in once and "4.00x" in once
    page.write(record, path)
    assert path.read_text() == once


def test_the_page_keeps_the_rows_of_every_kind_of_processor_side_by_side(tmp_path):
    pytest.importorskip("matplotlib")
    path, slow = tmp_path / "performance.md", row(halter={"seconds": [2.0]})[0]
    head = frame.head(TINY)
    one, two = ({**head, "machine": {**head["machine"], "cpu": "EPYC", "can": can}} for can in ("AMX", "AVX2"))
    page.write({**one, "rows": [row()[0]]}, path)
    page.write({**two, "rows": [slow, {**slow, "name": "decode-1"}], "ladder": [], "growth": {}}, path)
    text = path.read_text()
    (line,) = [x for x in text.splitlines() if x.startswith("| lora-qv-step") and "4.00x" in x and "2.00x" in x]
    assert line == "| lora-qv-step | 100.0 | 4.00x | 50% | 33% | 50.0 | 2.00x | 25% | 33% |"
    assert "| decode-1 |  |  |  |  | 50.0 | 2.00x | 25% | 33% |" in text
    assert text.count("**EPYC (AMX)**") == 2 and text.count("**EPYC (AVX2)**") == 4  # the ladder and growth are its own
    page.write({**one, "rows": [slow]}, path)  # the same kind again: its row is replaced, the other's stays
    assert "| lora-qv-step | 50.0 | 2.00x | 25% | 33% | 50.0 | 2.00x | 25% | 33% |" in path.read_text()


def test_a_record_of_another_processor_is_not_added_to(tmp_path):
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"machine": {"cpu": "another", "can": "AMX"}, "rows": []}))
    before = file.read_bytes()
    done = subprocess.run(
        [sys.executable, str(frame.HERE / "run.py"), "start-help", "--quick", "--json", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(frame.ROOT)},
    )
    assert done.returncode == 1 and "another (AMX)" in done.stderr and file.read_bytes() == before


def test_the_processor_is_told_by_its_name_and_its_quickest_products(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name : A B\nflags : fpu avx2 avx512f avx512_bf16\n\nprocessor : 1\n")
    assert frame.processor(info) == ("A B", "AVX512-BF16")
    info.write_text("model name : A B\nflags : fpu avx2\n")
    assert frame.processor(info) == ("A B", "AVX2") and frame.processor(tmp_path / "none") == ("", "")


def test_the_page_in_the_tree_is_what_its_file_gives():
    kinds = json.loads(page.PAGE.with_suffix(".json").read_text())
    text = page.PAGE.read_text()
    for name, block in page.blocks(kinds).items():
        assert page.put(text, name, block) == text, name


@pytest.mark.nightly
def test_real_sides_agree_on_a_tiny_shape(tmp_path):
    """Halter and transformers with peft in processes of their own: equal losses and gradient norms in float32."""
    work = replace(
        workloads.find("lora-qv-step"), sides=("halter", "peer", "limit"), tolerance=1e-5, grad_tolerance=1e-4
    )
    found = frame.run_row(work, TINY, 1, lambda _: None)
    assert found["check"]["ok"], found["check"]
    assert found["halter"]["tokens"] == found["peer"]["tokens"] == found["limit"]["tokens"]
    assert all(found[side]["peak_bytes"] > 0 for side in ("halter", "peer"))
    (tmp_path / "record.json").write_text(json.dumps(found))  # all of it is JSON


def test_a_disturbed_side_is_run_again_and_the_quietest_try_counts():
    shares = iter([0.5, 0.2, 0.01, 0.9])
    found = frame.undisturbed(
        lambda *_: {"others": next(shares)}, "halter", workloads.find("lora-qv-step"), TINY, lambda _: None
    )
    assert found == {"others": 0.01, "tries": 3}
    shares = iter([0.5, 0.2, 0.3, 0.9])
    found = frame.undisturbed(
        lambda *_: {"others": next(shares)}, "halter", workloads.find("lora-qv-step"), TINY, lambda _: None
    )
    assert found == {"others": 0.2, "tries": 4}


def test_exponents_of_powers():
    assert growth.slopes([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx((2, 2, 2))
    assert growth.exponent([10, 20], [5, 5]) == pytest.approx(0)


def test_every_rung_of_the_ladder_has_the_same_loss(monkeypatch):
    """In float32 on a tiny shape; and the rungs are really taken away: the plain step makes every token's logits."""
    import side_halter
    from prepare import prepare

    from halter.model.decoder import Decoder

    work, heads = workloads.find("lora-all-step"), []
    prepare(work, TINY)
    head = Decoder.hidden
    monkeypatch.setattr(Decoder, "hidden", lambda *a, **k: heads.append(len(out := head(*a, **k))) or out)
    losses = []
    for rungs in (*range(len(ladder.RUNGS)), None):
        losses.append(side_halter.step(work, replace(TINY, rungs=rungs))["losses"])
    for other in losses[:-1]:
        assert other == pytest.approx(losses[-1], rel=1e-6)
    rows = workloads.data(work, TINY, 1280)
    padded, laid, wanted = (
        3 * max(len(r.tokens) for r in rows),
        sum(len(r.tokens) for r in rows),
        sum(r.targets for r in rows),
    )
    assert heads[0] == padded and heads[2] == laid and heads[8] == wanted == heads[-1]


def test_a_clock_sees_every_operation_of_both_passes():
    a, b = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
    with profiling.Clock() as clock:
        (a @ b).square().sum().backward()
    shapes = {kind.shapes: (spent.calls, kind.operations) for kind, spent in clock.found.items() if kind.operations}
    assert shapes == {((3, 5), (5, 7)): (1, 210), ((5, 3), (3, 7)): (1, 210), ((3, 7), (7, 5)): (1, 210)}
    whole = 2 * sum(spent.seconds for spent in clock.found.values())
    lines = profiling.table(whole, clock.found, 3).splitlines()
    assert sum(float(line.split("|")[3].strip(" %")) for line in lines[2 : lines.index("")]) == pytest.approx(
        100, abs=0.5
    )
    assert any(line.startswith("| Python between them |") and " 50.0% |" in line for line in lines)


def test_families():
    kinds = {
        "aten.mm.default": "matrix products",
        "halter.attend_backward.default": "attention",
        "aten._to_copy.default": "copies and casts",
        "aten.silu.default": "element by element",
        "aten.t.default": "views",
        "aten._fused_adamw_.default": "optimizer",
    }
    assert {name: profiling.Kind(name, (), "").family for name in kinds} == kinds
    assert profiling.Kind("aten.linear.default", ((3, 5), (7, 5)), "").operations == 2 * 3 * 5 * 7


def test_what_is_kept_beside_a_busy_core_is_the_share_of_the_quiet_speed(monkeypatch):
    """Sides that take no time: quiet 2 s, beside the program 4, where it starts later 5; the peer 3, 30 and 60."""
    asked = []

    def run_side(side, row, when, **more):
        asked.append((side, when, more))
        seconds = {
            "halter": {"quiet": 2.0, "before": 4.0, "later": 5.0},
            "peer": {"quiet": 3.0, "before": 30.0, "later": 60.0},
        }
        taken = 1.9 if more.get("HALTER_WAITING") == "off" else seconds[side][when]
        return {"seconds": taken, "rest": taken, "tokens": 100, "threads": 2 if when == "quiet" else 1}

    monkeypatch.setattr(busy, "run_side", run_side)
    monkeypatch.setattr(frame, "start", lambda *_: {})
    found = busy.measure("lora-all-step", 2, ("halter", "peer"), lambda _: None)
    assert found["halter"]["kept"] == {"before": 0.5, "later": 0.4}
    assert found["peer"]["kept"] == {"before": 0.1, "later": 0.05}
    assert found["quiet_share"] == pytest.approx(0.95)
    assert asked.count(("halter", "quiet", {"HALTER_WAITING": "off"})) == 2 and len(asked) == 2 * 7
    line = busy.table({"lora-all-step": found}).splitlines()[-1]
    assert line == "| lora-all-step | 50 tok/s | 95% | 50% | 40% | 33 tok/s | 10% | 5% |"


def test_the_busy_program_is_busy_and_ends_with_its_caller():
    """Also where the caller is killed: nothing is left behind on somebody's machine."""
    code = "import busy, os, sys\nwith busy.program() as running:\n    print(running, flush=True); sys.stdin.read()"
    environment = os.environ | {"PYTHONPATH": str(Path(busy.__file__).parent)}
    caller = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    program = int(caller.stdout.readline())
    end = time.monotonic() + 20
    while _work(program) < 0.2 and time.monotonic() < end:
        time.sleep(0.1)
    assert _work(program) >= 0.2 and os.getsid(program) == program
    caller.kill()
    caller.communicate()
    while _alive(program) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _alive(program)


def _alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


def _work(process):
    """Seconds of the processor that it had."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def test_a_command_is_measured_from_where_its_work_is_under_way(monkeypatch):
    words = [sys.executable, "-c", "import time; time.sleep(1.2)"]
    command = busy.Command(lambda _: words, lambda _, seconds: seconds > 0.6)
    found = busy.run_command(command, "quiet")
    assert 1.2 <= found["seconds"] and found["rest"] <= found["seconds"] - 0.6
    with pytest.raises(frame.SideFailed):
        busy.run_command(busy.Command(lambda _: [sys.executable, "-c", "1/0"], lambda *_: False), "quiet")


def test_no_side_is_told_about_threads(monkeypatch):
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "HALTER_WAITING"):
        monkeypatch.setenv(name, "1")
    assert not [name for name in busy.environment() if name.startswith(busy.TOLD)]
    assert busy.environment(GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"
