"""Small tokenizers of every kind, made on the spot, with the same files as the real ones."""

from __future__ import annotations

import base64
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


def tiktoken_file(path: Path) -> dict[bytes, int]:
    merges = tiktoken_merges()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{base64.b64encode(t).decode()} {r}\n" for t, r in merges.items()))
    return merges
