"""Every two values of any two options of a method meet in one adapter, which obeys the laws; no option is listed here.

The sets are made by covering.py from the method's own dataclass, the base's kind beside its options: of a new method
too.
"""

from __future__ import annotations

import typing

import pytest
import sighted
import together
import torch

from halter.contract.registry import find, names

every_method = pytest.mark.parametrize("name", names())


@every_method
def test_every_choice_of_an_option_is_in_some_set(name):
    """What a type names (true, false, a Literal's values) is for use; only numbers and modules may make no sense."""
    space, covered = together.option_sets(name)
    hints = typing.get_type_hints(find(name))
    for option, values in space.items():
        hint = hints.get(option, bool)
        chosen = bool in (hint, type(None)) or typing.get_origin(hint) is typing.Literal
        met = [value for value in values if any(s[option] is value or s[option] == value for s in covered.sets)]
        assert met and (not chosen or len(met) == len(values)), option
    assert not sighted.sees(name) or any(one["encoder"] for one in covered.sets)


@every_method
def test_every_value_is_met_in_an_adapter_that_obeys_the_laws(name, tmp_path):
    obey(name, together.few_of(name), tmp_path)


@pytest.mark.nightly  # beside the pairs, in which every one of these sets stands (test_pairs)
@every_method
def test_every_two_values_meet_in_an_adapter_that_obeys_the_laws(name, tmp_path):
    obey(name, together.sets_of(name), tmp_path)


def obey(name, sets, folder):
    for number, method in sets:
        try:
            adapter = together.made(method, number)
            assert not torch.equal(together.logits(number, adapter), together.logits(number, None, adapter))
            assert not together.without_gradient(number, adapter)
            together.is_saved_as_it_is(number, adapter, folder / "adapter")
            together.folds_or_says_where(number, adapter)
            together.is_alone_in_a_mixed_batch(number, [adapter])
        except Exception as error:
            error.add_note(f"on {together.BASES[number]}: {method}")
            raise
