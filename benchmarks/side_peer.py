"""The peer's side: transformers and peft (bitsandbytes for NF4) as their documentation uses them."""

from __future__ import annotations

import time
import warnings
from typing import Any

import bitsandbytes  # noqa: F401  (imported by transformers at the first 4-bit load; its memory is no model's)
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM
from workloads import WARM_PROMPTS, Row, Setting, Work, data, first_adapter, model_folder, prompts

RATE = 1e-3
warnings.filterwarnings("ignore")


def load(work: Work, setting: Setting) -> LlamaForCausalLM:
    dtype = getattr(torch, setting.dtype)
    asked: dict[str, Any] = {"dtype": dtype}
    if work.quantize == "nf4":
        asked["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return AutoModelForCausalLM.from_pretrained(model_folder(setting), **asked)


def padded(rows: list[Row]) -> dict[str, torch.Tensor]:
    """One batch as transformers' collators make it: padded right, labels -100 where nothing is learnt."""
    longest = max(len(row.tokens) for row in rows)
    batch = {key: torch.full((len(rows), longest), fill) for key, fill in (("input_ids", 0), ("labels", -100))}
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    for number, row in enumerate(rows):
        n = len(row.tokens)
        batch["input_ids"][number, :n] = torch.tensor(row.tokens)
        batch["attention_mask"][number, :n] = 1
        batch["labels"][number, row.supervised_from : n] = torch.tensor(row.tokens[row.supervised_from :])
    return batch


def adapted(work: Work, setting: Setting, model: LlamaForCausalLM) -> Any:
    """The base with the adapter that Halter begins with, its numbers in float32 as peft has them."""
    assert work.method is not None
    if work.method["name"] == "full":
        return model
    if work.quantize:
        model.gradient_checkpointing_disable()
    return PeftModel.from_pretrained(model, first_adapter(work, setting), is_trainable=True)


def step(work: Work, setting: Setting) -> dict[str, Any]:
    model = adapted(work, setting, load(work, setting))
    model.train()
    rows = data(work, setting, model.config.vocab_size)
    batch = padded(rows)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    seconds, losses, norms = [], [], []
    for _ in range(setting.warm + setting.steps):
        began = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        del loss
        seconds.append(time.perf_counter() - began)
    return {
        "tokens": sum(len(row.tokens) for row in rows),
        "targets": sum(row.targets for row in rows),
        "seconds": seconds[setting.warm :],
        "losses": losses,
        "grad_norms": norms,
    }


@torch.inference_mode()
def evaluate(work: Work, setting: Setting) -> dict[str, Any]:
    model = load(work, setting).eval()
    rows = data(work, setting, model.config.vocab_size)
    batch = padded(rows)
    seconds, losses = [], []
    for _ in range(setting.warm + setting.steps):
        began = time.perf_counter()
        losses.append(model(**batch).loss.item())
        seconds.append(time.perf_counter() - began)
    return {
        "tokens": sum(len(row.tokens) for row in rows),
        "targets": sum(row.targets for row in rows),
        "seconds": seconds[setting.warm :],
        "losses": losses,
    }


def answers(model: LlamaForCausalLM, asked: list[list[int]], count: int) -> tuple[float, list[list[int]]]:
    ids = torch.tensor(asked)
    began = time.perf_counter()
    with torch.inference_mode():
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count, max_new_tokens=count
        )
    return time.perf_counter() - began, made[:, ids.shape[1] :].tolist()


def decode(work: Work, setting: Setting) -> dict[str, Any]:
    """As Halter's side: an answer of one more token, less an answer of one."""
    model = load(work, setting).eval()
    asked = prompts(work, setting, model.config.vocab_size)
    answers(model, asked, 2)
    for _ in range(WARM_PROMPTS):
        answers(model, asked, 1)
    first = [answers(model, asked, 1)[0] for _ in range(setting.steps)]
    whole = [answers(model, asked, 1 + setting.new_tokens) for _ in range(setting.steps)]
    seconds = [all_ - one for (all_, _), one in zip(whole, first, strict=True)]
    return {
        "tokens": work.batch * setting.new_tokens,
        "seconds": seconds,
        "prefill_seconds": first,
        "answers": whole[0][1],
    }


def to_first_token(work: Work, setting: Setting) -> dict[str, Any]:
    began = time.perf_counter()
    model = load(work, setting).eval()
    AutoTokenizer.from_pretrained(model_folder(setting))
    loaded = time.perf_counter() - began
    made = answers(model, prompts(work, setting, model.config.vocab_size), 1)[1]
    return {"tokens": 1, "seconds": [time.perf_counter() - began], "loading_seconds": loaded, "answers": made}


def measure(work: Work, setting: Setting) -> dict[str, Any]:
    kinds = {"step": step, "evaluate": evaluate, "decode": decode, "load": to_first_token}
    return kinds[work.kind](work, setting)


@torch.inference_mode()
def check(work: Work, setting: Setting, given: list[list[int]]) -> dict[str, Any]:
    """How far below the best logit, by the peer's own, each token of ``given`` answers lies: the largest gap."""
    model = load(work, setting).eval()
    asked = prompts(work, setting, model.config.vocab_size)
    tokens = torch.tensor([a + b for a, b in zip(asked, given, strict=True)])
    start = len(asked[0]) - 1
    logits = model(tokens).logits[:, start:-1].float()
    chosen = logits.gather(2, tokens[:, start + 1 :, None]).squeeze(2)
    return {"gap": float((logits.amax(-1) - chosen).max()), "spread": float(logits.std())}
