"""Everything that peft writes for the methods that Halter claims, read to equal logits, and written back for peft.

One row a configuration of peft's, made as a user of peft makes it: its defaults, and each option that changes the
file. peft is the oracle both ways; every trained number is moved off its start first.
"""

from __future__ import annotations

import json

import bounds
import pytest
import tiny
import torch

from halter.adapters.loading import load_adapter
from halter.contract.registry import find, names

peft = pytest.importorskip("peft")
TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(2))
BASES = {
    "plain": {},
    "tied": {"tied": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
}
LORA = {"r": 4, "lora_alpha": 8}
PATTERNS = {"rank_pattern": {"q_proj": 2, "up_proj": 5}, "alpha_pattern": {"v_proj": 64.0}}
ALL = "all-linear"

# name: (the bases it is tried on, peft's configuration class, its arguments)
ROWS: dict[str, tuple[str, str, dict]] = {
    "lora": ("plain tied biased", "LoraConfig", {}),
    "lora-all-linear": ("plain biased", "LoraConfig", {**LORA, "target_modules": ALL}),
    "lora-rslora-patterns": ("plain", "LoraConfig", {**LORA, **PATTERNS, "use_rslora": True, "target_modules": ALL}),
    "lora-layers": ("plain", "LoraConfig", {**LORA, "layers_to_transform": [1]}),
    "lora-no-layers": ("plain", "LoraConfig", {**LORA, "layers_to_transform": []}),
    "lora-layer-number": ("plain", "LoraConfig", {**LORA, "layers_to_transform": 1}),
    "lora-exclude": ("plain", "LoraConfig", {**LORA, "target_modules": ALL, "exclude_modules": ["up_proj"]}),
    "lora-embedding": ("plain", "LoraConfig", {**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    "lora-head": ("plain", "LoraConfig", {**LORA, "target_modules": ["lm_head", "q_proj"]}),
    "lora-bias-all": ("plain biased", "LoraConfig", {**LORA, "bias": "all"}),
    "lora-bias-all-linear": ("biased", "LoraConfig", {**LORA, "target_modules": ALL, "bias": "all"}),
    "lora-bias-only": ("plain biased", "LoraConfig", {**LORA, "bias": "lora_only"}),
    "lora-lora-bias": ("biased", "LoraConfig", {**LORA, "lora_bias": True, "use_rslora": True}),
    "lora-save-head": ("plain", "LoraConfig", {**LORA, "modules_to_save": ["lm_head"]}),
    "lora-save-tables": ("plain", "LoraConfig", {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "lora-save-norms": ("plain", "LoraConfig", {**LORA, "modules_to_save": ["norm"]}),
    "lora-save-one-norm": ("plain", "LoraConfig", {**LORA, "modules_to_save": ["input_layernorm"]}),
    "lora-save-linear": ("plain biased", "LoraConfig", {**LORA, "modules_to_save": ["o_proj", "layers.1.mlp.up_proj"]}),
    "lora-save-table-tied": ("tied", "LoraConfig", {**LORA, "modules_to_save": ["embed_tokens"]}),
    "lora-tokens": ("plain tied", "LoraConfig", {**LORA, "trainable_token_indices": [3, 5]}),
    "lora-tokens-of-a-tied-head": ("tied", "LoraConfig", {**LORA, "trainable_token_indices": {"lm_head": [3, 5]}}),
    "lora-tokens-of-tied-both": (
        "tied",
        "LoraConfig",
        {**LORA, "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [7]}},
    ),
    "lora-tokens-of-both": (
        "plain",
        "LoraConfig",
        {**LORA, "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [7]}},
    ),
    "lora-tokens-and-head": (
        "plain",
        "LoraConfig",
        {**LORA, "trainable_token_indices": [3, 5], "modules_to_save": ["lm_head"]},
    ),
    "lora-gaussian": ("plain", "LoraConfig", {**LORA, "init_lora_weights": "gaussian"}),
    "dora": ("plain tied biased", "LoraConfig", {"use_dora": True}),
    "dora-rslora": ("plain biased", "LoraConfig", {**LORA, "use_dora": True, "use_rslora": True}),
    "dora-rslora-patterns": (
        "plain biased tied",
        "LoraConfig",
        {**LORA, **PATTERNS, "use_dora": True, "use_rslora": True, "target_modules": ALL},
    ),
    "dora-save-head": ("plain", "LoraConfig", {**LORA, "use_dora": True, "modules_to_save": ["lm_head"]}),
    "dora-bias-all": ("biased", "LoraConfig", {**LORA, "use_dora": True, "bias": "all"}),
    "dora-embedding": ("plain", "LoraConfig", {**LORA, "use_dora": True, "target_modules": ["embed_tokens", "q_proj"]}),
    "ia3": ("plain tied biased", "IA3Config", {}),
    "ia3-exclude": ("plain", "IA3Config", {"exclude_modules": ["layers.0.self_attn.k_proj"]}),
    "ia3-save-head": ("plain", "IA3Config", {"modules_to_save": ["lm_head"]}),
    "loha": ("plain tied biased", "LoHaConfig", {"target_modules": ["q_proj", "v_proj"]}),
    "loha-all": (
        "plain",
        "LoHaConfig",
        {"r": 3, "alpha": 7, "target_modules": ALL, "rank_pattern": {"up_proj": 5}, "alpha_pattern": {"v_proj": 32}},
    ),
    "loha-head": ("plain", "LoHaConfig", {"target_modules": ["lm_head", "o_proj"], "layers_to_transform": [1]}),
    "vera": ("plain tied biased", "VeraConfig", {"r": 5, "target_modules": ["q_proj", "v_proj"]}),
    "vera-all": (
        "plain",
        "VeraConfig",
        {
            "r": 3,
            "target_modules": ALL,
            "projection_prng_key": 7,
            "vera_dropout": 0.1,
            "d_initial": 0.3,
            "layers_to_transform": [1],
        },
    ),
    "vera-no-projection": ("plain", "VeraConfig", {"r": 4, "target_modules": ["up_proj"], "save_projection": False}),
    "loha-save-head": ("plain", "LoHaConfig", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "loha-dropouts": (
        "plain",
        "LoHaConfig",
        {"target_modules": ["q_proj"], "rank_dropout": 0.5, "module_dropout": 0.5},
    ),
    "lokr": ("plain tied biased", "LoKrConfig", {"target_modules": ["q_proj", "v_proj"]}),
    "lokr-all": ("plain", "LoKrConfig", {"r": 2, "alpha": 7, "target_modules": ALL, "rank_pattern": {"up_proj": 1}}),
    "lokr-both": ("plain", "LoKrConfig", {"r": 1, "target_modules": ALL, "decompose_both": True}),
    "lokr-factor": ("plain", "LoKrConfig", {"r": 2, "target_modules": ALL, "decompose_factor": 4}),
    "lokr-odd-factor": ("plain", "LoKrConfig", {"r": 2, "target_modules": ALL, "decompose_factor": 7}),
    "lokr-lycoris": ("plain", "LoKrConfig", {"target_modules": ["q_proj"], "init_weights": "lycoris"}),
    "lokr-exclude": ("plain", "LoKrConfig", {"target_modules": ALL, "exclude_modules": ["up_proj", "lm_head"]}),
    "lokr-save-head": ("plain", "LoKrConfig", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "prefix": ("plain tied biased", "PrefixTuningConfig", {"num_virtual_tokens": 5}),
    "prefix-projected": (
        "plain",
        "PrefixTuningConfig",
        {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 16},
    ),
    "prompt": ("plain tied", "PromptTuningConfig", {"num_virtual_tokens": 5}),
    "p-tuning": ("plain tied", "PromptEncoderConfig", {"num_virtual_tokens": 5, "encoder_hidden_size": 16}),
    "p-tuning-lstm": (
        "plain",
        "PromptEncoderConfig",
        {
            "num_virtual_tokens": 5,
            "encoder_hidden_size": 16,
            "encoder_reparameterization_type": "LSTM",
            "encoder_dropout": 0.0,
        },
    ),
    "adaption-prompt": ("plain biased", "AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}),
    "norms": ("plain tied", "LNTuningConfig", {}),
    "norms-one": ("plain", "LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "norms-last": ("plain", "LNTuningConfig", {"target_modules": ["norm"]}),
    "norms-pattern": ("plain", "LNTuningConfig", {"target_modules": r".*layers\.1\..*norm"}),
    "norms-exclude": ("plain", "LNTuningConfig", {"exclude_modules": ["layers.0.input_layernorm"]}),
    "norms-save-head": ("plain", "LNTuningConfig", {"modules_to_save": ["lm_head"]}),
    "tokens": ("plain tied", "TrainableTokensConfig", {"token_indices": [4, 9]}),
    "tokens-of-the-head": ("plain", "TrainableTokensConfig", {"token_indices": [4, 9], "target_modules": ["lm_head"]}),
    "tokens-of-the-tied-head": (
        "tied",
        "TrainableTokensConfig",
        {"token_indices": [4, 9], "target_modules": ["lm_head"]},
    ),
    "tokens-of-both": (
        "plain",
        "TrainableTokensConfig",
        {"token_indices": [4, 9], "target_modules": ["embed_tokens", "lm_head"]},
    ),
}
CASES = [(base, name) for name, (bases, _, _) in ROWS.items() for base in bases.split()]


def test_every_configuration_of_pefts_for_a_kind_of_ours_has_rows():
    """A kind that Halter reads is tried with all that peft lets one set, or the matrix is not what it says."""
    ours = {find(name).peft_type for name in names() if not find(name).peft_type.startswith("HALTER")}
    tried = {getattr(peft, kind)(task_type="CAUSAL_LM").peft_type.value for _, kind, _ in ROWS.values()}
    assert tried == ours


def theirs_on(model, kind, options):
    """peft's model over the same base, every trained number moved."""
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **options)
    torch.manual_seed(0)
    made = peft.get_peft_model(tiny.peer(model), config).eval()
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("base", "name"), CASES, ids=lambda v: v)
def test_what_peft_writes_is_read_and_what_is_written_back_peft_reads(base, name, tmp_path):
    _, kind, options = ROWS[name]
    model = tiny.decoder(tiny.config(**BASES[base]))
    theirs = theirs_on(model, kind, options)
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = load_adapter(tmp_path / "theirs", model)
    with torch.no_grad():
        want, plain = theirs(TOKENS).logits[:, -20:], model(TOKENS)  # virtual tokens have outputs too
        assert float((want - plain).abs().max()) > 1e-2, "the row trains nothing"
        bounds.assert_same(model(TOKENS, adapter=adapter), want)
        adapter.save(tmp_path / "ours")
        back = peft.PeftModel.from_pretrained(tiny.peer(model), tmp_path / "ours").eval()
        bounds.assert_same(back(TOKENS).logits[:, -20:], want)
        again = load_adapter(tmp_path / "ours", model)
        assert torch.equal(model(TOKENS, adapter=again), model(TOKENS, adapter=adapter))
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["peft_type"] == json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())["peft_type"]
