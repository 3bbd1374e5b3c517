"""litgpt's side, where it is installed: its LoRA model in "bf16-true", its chunked head and loss, padded batches.

Its adapter begins with numbers of its own, so the first loss alone can be compared: B is zero on every side.
"""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any

import torch
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy
from safetensors.torch import load_file
from side_peer import RATE, padded
from workloads import QV, Setting, Work, data, model_folder

HEAD_CHUNK = 128  # litgpt's own choice in its finetuning scripts


def config(work: Work, setting: Setting) -> Config:
    """The preset of litgpt's, with LoRA where the row has it."""
    assert work.method is not None
    everywhere = work.method["target_modules"] != QV
    where = dict.fromkeys(("lora_query", "lora_value"), True)
    where |= dict.fromkeys(("lora_key", "lora_projection", "lora_mlp"), everywhere)
    names = {"llama-3.2-1b": "Llama-3.2-1B"}
    if setting.changes or work.quantize or setting.preset not in names:
        raise SystemExit("litgpt: only the plain preset without quantisation")
    return Config.from_name(
        names[setting.preset],
        n_layer=setting.layers,
        lora_r=work.method["r"],
        lora_alpha=work.method["alpha"],
        **where,
    )


def model(work: Work, setting: Setting) -> GPT:
    made = config(work, setting)
    state: dict[str, torch.Tensor] = {}
    files = sorted(model_folder(setting).glob("*.safetensors"))
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    with contextlib.redirect_stdout(io.StringIO()):
        copy_weights_hf_llama(made, {}, state, weights)
    with torch.device("meta"):
        gpt = GPT(made)
    gpt = gpt.to_empty(device="cpu").to(getattr(torch, setting.dtype))
    gpt.load_state_dict(state, strict=False)
    gpt.cos, gpt.sin = gpt.rope_cache()
    for part in gpt.modules():
        if isinstance(getattr(part, "lora_A", None), torch.nn.Parameter):
            part.reset_parameters()
    mark_only_lora_as_trainable(gpt)
    return gpt


def measure(work: Work, setting: Setting) -> dict[str, Any]:
    gpt = model(work, setting)
    rows = data(work, setting, gpt.config.padded_vocab_size)
    batch = padded(rows)
    trained = [p for p in gpt.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    gpt.max_seq_length = batch["input_ids"].shape[1]
    gpt.train()
    seconds, losses = [], []
    for _ in range(setting.warm + setting.steps):
        began = time.perf_counter()
        logits = gpt(batch["input_ids"], lm_head_chunk_size=HEAD_CHUNK)
        logits[-1] = logits[-1][..., :-1, :]
        loss = chunked_cross_entropy(logits, batch["labels"][..., 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        del loss, logits
        seconds.append(time.perf_counter() - began)
    return {
        "tokens": sum(len(row.tokens) for row in rows),
        "targets": sum(row.targets for row in rows),
        "seconds": seconds[setting.warm :],
        "losses": losses[:1],
    }
