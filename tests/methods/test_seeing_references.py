"""Methods by which a LLaMA of text sees against float64 references of their equations: logits, gradients, counts."""

from __future__ import annotations

import bounds
import pytest
import seeing_rows as cases
import torch
from seeing_rows import Case

V1 = {"adapter_len": 5, "adapter_layers": 2, "visual_hidden": 7}
V2 = {"adapter_len": 4, "adapter_layers": 2, "query_len": 4, "v_depth": 2, "v_num_heads": 3}
LATE = V2 | {"fusion": "late"}
EARLY = V2 | {"fusion": "early", "query_len": 3}
EXCITOR = {"adapter_len": 6, "adapter_layers": 2, "r": 3, "visual_r": 2}
FIVE = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MHA, MQA = (("kv_heads", 4),), (("kv_heads", 1), ("head_dim", 12))
CASES = [
    Case("llama_adapter", V1),
    Case("llama_adapter", V1, "siglip", MHA),
    Case("llama_adapter", V1 | {"encoder_states": (3, -1), "gate_activation": "identity"}, shape=MQA),
    Case("llama_adapter", V1 | {"gate_scope": "layer", "adapter_layers": 9}),
    Case("llama_adapter_v2", LATE),
    Case("llama_adapter_v2", LATE | {"scale_side": "in"}, "siglip", MQA),
    Case("llama_adapter_v2", LATE | {"scale_side": "none", "bias_targets": FIVE, "branch_rank": 2}, shape=MHA),
    Case("llama_adapter_v2", LATE | {"prompts_through": "plain", "train_norm": False, "branch_rank": 2}),
    Case("llama_adapter_v2", EARLY),
    Case("llama_adapter_v2", EARLY | {"scale_side": "in", "fusion_layer": 1}, "siglip"),
    Case("llama_adapter_v2", EARLY | {"adapter_len": 0, "fusion_layer": 2, "gate_scope": "layer"}, shape=MQA),
    Case("llama_adapter_v2", EARLY | {"adapter_layers": 3, "branch_rank": 2, "gate_activation": "identity"}, shape=MHA),
    Case("excitor", EXCITOR),
    Case("excitor", EXCITOR | {"gate_scope": "kv_head"}, "siglip"),
    Case("excitor", EXCITOR | {"rope_extra_key": False}, shape=MQA),
    Case("excitor", EXCITOR | {"rope_extra_key": False, "gate_scope": "kv_head", "adapter_layers": 3}, shape=MHA),
    Case("projector", {}),
    Case("projector", {"projector_depth": 1}, "siglip", MHA),
]


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {family: cases.eye(family, folder / family) for family in ("clip", "siglip")}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_those_of_the_equations(case, eyes):
    eye = eyes[case.family]
    model, adapter = case.built(eye)
    shown = cases.rows(several=case.method == "projector")
    found, trained = cases.ours(model, adapter, shown), cases.saved(adapter)
    for row, got in zip(shown, found, strict=True):
        want = case.wanted(eye, model, trained, row)
        bounds.assert_same(got, want)
        if row.shown and len(want) > 2 and case.method != "projector":  # a token alone looks nowhere else
            blind = case.wanted(eye, model, trained, cases.Row(tuple(row.words())))
            assert float((want - blind).abs().max()) > 1e-2 * float(want.abs().max())
