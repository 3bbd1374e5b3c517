"""A method dropped in as one file, the template of docs/guide/add-a-method.md, passes every law as it stands."""

from __future__ import annotations

import re

from dropping_in import NAME, asked, dropped_in


def test_the_template_passes_all_laws(tmp_path):
    dropped_in(tmp_path, "halter", "tests")
    for rule in (["check"], ["format", "--check"]):
        asked(tmp_path, "-m", "ruff", *rule, "--no-cache", f"halter/methods/{NAME}.py")
    files = ("laws", "pairs", "option_sets", "compiled", "stacked", "ready", "mixed_quickly")
    files += ("base_untouched", "low_rank")
    laws = [*(f"tests/laws/test_{file}.py" for file in files), "tests/test_floors.py", "tests/training/test_options.py"]
    chosen = f"{NAME} or registry or rule or table or (ordered_pair and lora)"  # lora before it, all others after it
    said = asked(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *laws, "-k", chosen)
    passed = int(re.findall(r"(\d+) passed", said)[0])
    print(f"the template method: {passed} laws and rules passed")
    assert passed > 90
