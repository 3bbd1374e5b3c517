"""Small tokenizers of every kind, made on the spot, with the same files as the real ones."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "Once upon a time there was a little girl named Lily who loved to play outside in the park.",
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind: it's 1234567 o'clock!",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "user assistant system ipython [INST] [/INST] <<SYS>> ### Instruction: ### Response: USER: ASSISTANT:",
    '{"name": "get_weather", "parameters": {"city": "Zürich", "days": [1, 2]}} 你好世界 🙂 naïve café\n\n\tend',
] * 3
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA4_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
HEAD, HEAD_END = "<|start_header_id|>", "<|end_header_id|>"
LLAMA3_SPECIAL = [BOS, EOS, "<|finetune_right_pad_id|>", HEAD, HEAD_END, "<|eom_id|>", EOT, "<|python_tag|>"]
NOT_FLAGGED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>"]
LLAMA3_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
    " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def write(folder: Path, library: tokenizers.Tokenizer, **config: Any) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config})
    )
    return folder


def byte_level() -> tokenizers.Tokenizer:
    """Byte-level BPE as in Llama 3, with its special tokens and some that are added but not flagged special."""
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    library.train_from_iterator(SENTENCES, trainer)
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in LLAMA3_SPECIAL])
    library.add_tokens([AddedToken(t, special=False, normalized=False) for t in NOT_FLAGGED])
    library.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, library.token_to_id(BOS))]
    )
    return library


def llama3(folder: Path, template: str | None = LLAMA3_TEMPLATE, **config: Any) -> Path:
    names = {"bos_token": BOS, "eos_token": EOT, "pad_token": "<|finetune_right_pad_id|>"}
    if template is not None:
        names["chat_template"] = template
    return write(folder, byte_level(), **(names | config))


LLAMA4_NAMES = (
    "begin_of_text end_of_text fim_prefix fim_middle fim_suffix header_start header_end eom eot step python_start "
    "python_end finetune_right_pad image_start image_end tile_x_separator tile_y_separator image patch "
    "reasoning_thinking_start reasoning_thinking_end"
).split()


def llama4(folder: Path, instruct: bool = True, template: str | None = None) -> Path:
    """Files as Hugging Face's of Llama 4, with a small vocabulary, fewer control tokens and none of the pad's trap."""
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA4_SPLIT), behavior="isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    library.add_special_tokens([AddedToken(f"<|{n}|>", special=True, normalized=False) for n in LLAMA4_NAMES])
    bos, ids = library.token_to_id(BOS), {name: library.token_to_id(f"<|{name}|>") for name in LLAMA4_NAMES}
    library.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, bos)]
    )
    names = {"bos_token": BOS, "eos_token": "<|eot|>" if instruct else EOS, "pad_token": "<|finetune_right_pad|>"}
    write(folder, library, **names, **({} if template is None else {"chat_template": template}))
    ends = [ids["end_of_text"], ids["eom"], ids["eot"]] if instruct else ids["end_of_text"]
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": bos, "eos_token_id": ends}))
    return folder


def sentencepiece_like(prefix: str, added: list[AddedToken] | None = None) -> tokenizers.Tokenizer:
    """BPE with byte fallback as in Llama 2's tokenizer.json. prefix: prepend, always, first or never."""
    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    metaspace = prefix if prefix in ("always", "first", "never") else "never"
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))],
        show_progress=False,
    )
    library.train_from_iterator([s.replace(" ", " ▁") for s in SENTENCES], trainer)
    spec = json.loads(library.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    if prefix == "prepend":
        spec["pre_tokenizer"] = None
    library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    if prefix == "prepend":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if prefix != "never" else [])
    )
    library.add_tokens(added or [])
    return library


def tiktoken_merges() -> dict[bytes, int]:
    """A rank table that grew from the bytes by merges, as tiktoken's are."""
    merges = {bytes([b]): b for b in range(256)}
    words = [w for s in SENTENCES for w in s.encode().replace(b" ", b"\n ").split(b"\n") if w]
    for word in words:
        for end in range(2, len(word) + 1):  # every beginning, so that each is made of two known parts
            merges.setdefault(word[:end], len(merges))
    return merges


def llama4_merges() -> dict[bytes, int]:
    """As many ranks as Llama 4's file has, each put together of two before it: words, pairs of bytes, letters."""
    merges = tiktoken_merges()
    for one, two in itertools.product(range(256), repeat=2):
        merges.setdefault(bytes((one, two)), len(merges))
    for size in (3, 4):
        for letters in itertools.product(b"etaoinshrdlcumwfgypbvk", repeat=size):
            if len(merges) < 200_000:
                merges.setdefault(bytes(letters), len(merges))
    return merges


def tiktoken_file(path: Path, merges: dict[bytes, int] | None = None) -> dict[bytes, int]:
    merges = merges or tiktoken_merges()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{base64.b64encode(t).decode()} {r}\n" for t, r in merges.items()))
    return merges
