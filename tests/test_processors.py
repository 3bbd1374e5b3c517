"""`make processors` runs every value, and believes no variable that did not take effect."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import processors
import pytest
from processors import ATEN, CBWR, INTEL, ONEDNN, THREADS, NotShown, Processor

WHOLE = frozenset(flag for flags in processors.FLAGS.values() for flag in flags) | {"sse2"}
ZEN, SAPPHIRE = (
    Processor("Zen 4", "AuthenticAMD", WHOLE - {"amx_tile", "amx_bf16"}),
    Processor("x", "GenuineIntel", WHOLE),
)


@pytest.mark.parametrize("processor", [ZEN, SAPPHIRE], ids=["amd", "intel"])
def test_eight_settings_hold_every_value_and_as_many_pairs_as_eight_can(processor):
    values, reasons = processors.values_here(processor)
    settings = processors.covering(values)
    assert len(settings) <= 8 and settings == processors.covering(values)
    for name, some in values.items():
        assert {setting[name] for setting in settings} == set(some)
    # Whatever stands in no setting is told as impossible.
    named = {f"{n}={v}" for n, some in processors.VALUES.items() for v in some}
    assert named - {f"{n}={v}" for s in settings for n, v in s.items()} == set(reasons)
    pairs = {pair for setting in settings for pair in combinations(setting.items(), 2)}
    assert len(pairs) == 8 * 6  # no pair twice, which is the most
    few = [settings[number - 1] for number in processors.enough(settings)]
    assert {part for s in few for part in s.items()} == {part for s in settings for part in s.items()}
    assert len(few) <= 5


def test_what_a_processor_lacks_is_told_with_the_reason():
    old = Processor("old", "GenuineIntel", frozenset({"sse2", "avx2", "fma"}))
    values, reasons = processors.values_here(old)
    assert values == {ATEN: ["default", "avx2"], ONEDNN: ["AVX2"], INTEL: ["SSE4_2", "AVX2"], THREADS: ["1", "2", "3"]}
    assert "amx_bf16" in reasons[f"{ONEDNN}=AVX512_CORE_AMX"] and "avx512bw" in reasons[f"{ATEN}=avx512"]
    assert processors.values_here(Processor("arm", "", frozenset()))[0] == {THREADS: ["1", "2", "3"]}
    assert ONEDNN in processors.values_here(ZEN)[0] and "Intel" in processors.values_here(ZEN)[1][f"{INTEL}=AVX2"]


x86 = pytest.mark.skipif("avx2" not in Processor.here().flags, reason="no x86 processor with AVX2")


@pytest.fixture(scope="module")
def plain():
    return processors.probe({})


@x86
def test_a_variable_that_is_not_honoured_is_seen(plain):
    """One process that hears every variable and one that hears none; on Intel's processors MKL has another variable."""
    values, _ = processors.values_here(Processor.here())
    setting = {name: some[-1] if name in (CBWR, THREADS) else some[0] for name, some in values.items()}
    seen = processors.probe(processors.variables(setting))
    evidence = processors.shown(setting, seen, plain)
    assert len(evidence) == len(setting) and evidence[0] == "torch says DEFAULT" and evidence[-1] == "3 threads"
    for name, value in setting.items():
        if len(values[name]) == 1:  # what this processor has by itself: heard or not, nothing differs
            continue
        with pytest.raises(NotShown, match=f"{name}={value}"):
            processors.shown({name: value}, plain, plain)


@x86
def test_the_processes_of_the_tests_must_be_what_the_probe_was(plain, tmp_path, monkeypatch):
    quick = ["tests/test_same_bits.py", "-k", "a_copy", "-p", "no:cacheprovider"]
    monkeypatch.setenv("WORKERS", "0")  # no second process, which costs a start
    result = processors.run_tests({ATEN: "default", THREADS: "1"}, plain, quick, tmp_path / "log")
    assert not result.good and " passed" in result.said and "'DEFAULT'" in result.said and result.cpu > 0.1
    told = {"capability": plain.capability, "threads": plain.threads, "bits": dict(plain.bits)}
    assert processors.strangers([told, {**told, "threads": 7}], plain) == [{**told, "threads": 7}]


def test_what_computes_is_there():
    for path in [*processors.COMPUTES, *processors.LEFT_OUT, *processors.SWEEPS]:
        assert Path(processors.ROOT, path.split("::")[0]).exists(), path
    assert set(processors.what_computes(True)) < set(processors.what_computes(False))


def test_the_page_has_the_place_of_the_result():
    page = processors.PAGE.read_text("utf-8")
    assert [page.count(words) for words in processors.BETWEEN] == [1, 1]
