"""Words of other programs in a command's place, and what does the same here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

FOLDER = "halter merge RUN --output merged writes a model folder"
COMMANDS = {
    "server api deploy host vllm": "halter serve MODEL --adapters FOLDER, for OpenAI's clients",
    "export gguf ggml onnx save": f"{FOLDER}; llama.cpp's convert_hf_to_gguf.py makes GGUF of it",
    "quantize quantise quant gptq awq": "--quantize nf4 or int8 of halter train holds a base in 4 or 8 bits; "
    f"{FOLDER}, which llama.cpp's tools quantise",
    "finetune fine-tune fine_tune sft tune fit adapt lora qlora peft learn": "halter train --model DIR --data FILE "
    "--method lora",
    "dpo orpo kto ppo grpo rlhf reward pretrain": "single answers are learned here: halter train --model DIR "
    "--data FILE",
    "run ask infer inference predict complete prompt query talk": "halter chat RUN, or halter generate RUN "
    '--prompt "..."',
    "pull download fetch install": "a model of the hub is fetched where it is named: --model OWNER/NAME",
    "login logout": "a token of the hub is read from HF_TOKEN",
    "push upload publish share": "nothing is sent anywhere: hf upload OWNER/NAME RUN/adapter",
    "list ls ps models runs": "halter adapters list runs",
    "show info describe cat": "halter adapters show RUN; halter inspect shows rows, halter plan a model",
    "eval test score bench benchmark validate lm-eval lm_eval": "halter evaluate RUN --data FILE",
    "check env diagnose status": "halter doctor",
    "estimate memory vram size": "halter plan --model DIR --memory 24GB",
    "preprocess tokenize tokenise dataset data": "halter inspect --model DIR --data FILE shows every token; "
    "halter train reads rows by itself",
    "resume continue": "halter train --resume --output RUN",
    "create new config configure setup": "halter init lora",
    "fuse join": f"{FOLDER}; halter adapters combine A B --output both makes one adapter of several",
    "combine compress convert diff": "a word of halter adapters: halter adapters {word}",
    "sweep tune-lr search ablate": "halter compare --model DIR --train A --test B --methods lora,dora --output DIR",
    "webui web ui gui studio board": "there is no page to work in: halter chat RUN, halter train --model DIR "
    "--data FILE",
    "rm remove delete": "a run is a folder: rm -r RUN",
    "version": "halter --version",
}
"""{what other programs call it: what does that here}."""
ADAPTERS = {
    "merge join add average stack sum fuse": "halter adapters combine A B --output both makes one of several; "
    "halter merge RUN --output merged folds one into its base",
    "ls": "halter adapters list FOLDER",
    "info inspect describe cat": "halter adapters show FOLDER",
    "compare": "halter adapters diff A B",
    "quantize quantise prune shrink": "halter adapters compress FOLDER --bits 8 --output small",
    "export import": "halter adapters convert FOLDER --to peft --output theirs",
    "rm remove delete": "an adapter is a folder: rm -r FOLDER",
}
"""The same of the words behind `halter adapters`."""


def in_place_of(
    word: str, known: Sequence[str], table: Mapping[str, str], command: str, after: Sequence[str] = ()
) -> str:
    """What to type in place of a word that ``command`` has not; the first folder of the words ``after`` it for RUN."""
    for theirs, here in table.items():
        if word.lower() in theirs.split():
            folder = next((one for one in after if not one.startswith("-") and Path(one).is_dir()), "RUN")
            return here.replace("{word}", word.lower()).replace("RUN", folder)
    close = get_close_matches(word, known, 1)
    return f"did you mean {command} {close[0]}?" if close else f"{command} --help lists them"
