"""The second peer: TRL's SFTTrainer over peft, with the settings that its documentation recommends for speed here.

Its loss is computed in chunks by default; padding-free batches and packing need FlashAttention, which no CPU has;
checkpointing, on by default, is switched off, because it saves memory that is there and costs a third more time.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from typing import Any

import torch
from datasets import Dataset
from side_peer import RATE, adapted, load
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from workloads import Setting, Work, data, model_folder

warnings.filterwarnings("ignore")


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.at:
            self.at.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at.append(time.perf_counter())


def measure(work: Work, setting: Setting) -> dict[str, Any]:
    """Steps of the same rows as every side's; only training rows have a second peer."""
    model = adapted(work, setting, load(work, setting))
    rows = data(work, setting, model.config.vocab_size)
    labels = [[-100] * row.supervised_from + row.tokens[row.supervised_from :] for row in rows]
    table = Dataset.from_dict({"input_ids": [row.tokens for row in rows], "labels": labels})
    total, clock = setting.warm + setting.steps, Clock()
    with tempfile.TemporaryDirectory() as folder:
        options = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=len(rows),
            max_steps=total,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=setting.dtype == "bfloat16",
            use_cpu=True,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            max_length=None,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(model_folder(setting))
        trainer = SFTTrainer(model, args=options, train_dataset=table, processing_class=tokenizer, callbacks=[clock])
        with torch.enable_grad():
            trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    seconds = [b - a for a, b in zip(clock.at, clock.at[1:])]
    return {
        "tokens": sum(len(row.tokens) for row in rows),
        "targets": sum(row.targets for row in rows),
        "seconds": seconds[setting.warm :],
        "losses": [line["loss"] for line in lines],
        "grad_norms": [line["grad_norm"] for line in lines],
    }
