"""What users of transformers and peft bring along: calls, attributes and keywords by other names than ours, and what
each of them wants here. Nothing here does anything of theirs; it is said how the thing is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypeVar

from halter import kinds
from halter.errors import Refusal

LOADED = 'model, tokenizer = halter.load("path/or/hub-id")'
_LOADS = f"{LOADED} reads both"
TOKENS = "torch.tensor([[tokenizer.bos_id, *tokenizer.encode(TEXT)]])"
"""What a model takes; tokenizer.encode alone gives no BOS."""
_ENCODES = f"what a model takes is {TOKENS}".replace("TEXT", '"Once upon a time"')
_WEIGHTS = "the base is frozen and its weights are buffers: model.config.num_parameters counts them, "
_GENERATES = 'halter.generate(model, tokenizer, ["Once upon a time"], adapter, max_new_tokens=20)'
_MERGES = 'halter.merge(model, adapter, "merged") writes the merged model'
_BATCHES = "rows lie end to end here, so nothing is padded: "
_BATCHES += "[[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]"
WHOSE = {"Decoder": "model", "Tokenizer": "tokenizer", "Adapter": "adapter", "Generation": "answer"}
"""{class: what an object of it is called}."""
CALLS = {
    "Decoder": {
        "generate": 'halter.generate(model, tokenizer, ["Once upon a time"], max_new_tokens=20)',
        "from_pretrained": _LOADS,
        "save_pretrained": 'halter.merge(model, adapter, "merged") writes a model, adapter.save("mine") an adapter',
        "parameters": f"{_WEIGHTS}model.named_buffers() has them; adapter.parameters() are what is trained",
        "num_parameters": f"{_WEIGHTS}adapter.num_trainable those that are trained",
        "print_trainable_parameters": "adapter.num_trainable",
        "load_adapter": 'adapter = halter.load_adapter("runs/mine", model); model(tokens, adapter=adapter)',
        "merge_and_unload": _MERGES,
        "gradient_checkpointing_enable": 'train.activation_checkpointing="on" of a recipe, for halter.train',
        "resize_token_embeddings": "the vocabulary is the base's and stays as it is",
    },
    "Tokenizer": {
        "__call__": _ENCODES,
        "apply_chat_template": (
            'halter.generate(model, tokenizer, [[{"role": "user", "content": "Hello"}]], template="llama-3.1") takes '
            "messages and any of the templates; without one it takes the model's own"
        ),
        "batch_decode": "[tokenizer.decode(ids) for ids in rows]",
        "batch_encode_plus": _BATCHES,
        "encode_plus": _ENCODES,
        "pad": _BATCHES,
        "tokenize": "[tokenizer.token(id) for id in tokenizer.encode(text)]",
        "convert_tokens_to_ids": "[tokenizer.token_id(token) for token in tokens]",
        "convert_ids_to_tokens": "[tokenizer.token(id) for id in ids]",
        "add_special_tokens": "the vocabulary is the base's; tokenizer.encode(text, control=True) takes its own",
        "add_tokens": "the vocabulary is the base's and stays as it is",
        "get_vocab": "{tokenizer.token(id): id for id in range(tokenizer.vocab_size)}",
        "from_pretrained": _LOADS,
        "save_pretrained": 'halter.merge(model, adapter, "merged") writes the tokenizer beside the model',
    },
    "Adapter": {
        "__call__": "model(tokens, adapter=adapter)",
        "generate": _GENERATES,
        "from_pretrained": 'halter.load_adapter("runs/mine", model)',
        "save_pretrained": 'adapter.save("mine")',
        "merge_and_unload": _MERGES,
        "print_trainable_parameters": "adapter.num_trainable",
        "num_parameters": "adapter.num_trainable",
        "load": 'adapter = halter.load_adapter("runs/mine", model)',
        "merge": _MERGES,
    },
    "Generation": {"__getitem__": "answer.text is its text, answer.tokens are its ids"},
}
"""{class: {what users of transformers call on it: what they want here}}: nothing else is said of these names."""
ATTRIBUTES = {
    "Tokenizer": {
        "eos_token_id": "tokenizer.eos_id",
        "bos_token_id": "tokenizer.bos_id",
        "pad_token_id": "tokenizer.pad_id, None where there is none: nothing is padded here",
        "unk_token_id": "tokenizer.unk_id",
        "eos_token": 'tokenizer.names.get("eos_token")',
        "bos_token": 'tokenizer.names.get("bos_token")',
        "pad_token": "tokenizer.pad_id, None where there is none: nothing is padded here",
        "unk_token": 'tokenizer.names.get("unk_token")',
        "all_special_ids": "[control.id for control in tokenizer.controls]",
        "all_special_tokens": "[control.text for control in tokenizer.controls]",
        "model_max_length": "model.config.context",
        "padding_side": "rows lie end to end here, so nothing is padded",
    },
}
"""{class: {an attribute that users of transformers ask for: what they want here}}."""
OURS = {
    "max_new_tokens": "max_tokens max_length n_predict num_predict max_completion_tokens",
    "temperature": "temp",
    "n": "num_return_sequences best_of num_samples num_answers",
    "repetition_penalty": "repeat_penalty",
    "logprobs": "top_logprobs output_scores return_logprobs num_logprobs",
    "stop": "stop_sequence stop_sequences stop_strings stop_token",
    "model": "base base_model model_name_or_path model_name model_path model_id pretrained preset model_size",
    "adapter": "peft peft_model lora lora_path lora_weights adapter_path adapter_name_or_path",
    "input": "file prompts prompt_file input_file infile data dataset",
    "data": "input file input_file data_path dataset test test_file eval_file",
    "output": "out outfile out_file output_dir output_path output_file save save_path",
    "prompt": "instruction message query question text",
    "system": "system_prompt system_message",
    "template": "chat_template prompt_template apply_chat_template conversation_template",
    "tasks": "task",
    "fewshot": "num_fewshot",
    "dtype": "torch_dtype precision",
    "quantize": "quantization load_in bits",
    "device": "device_map gpu cuda n_gpu_layers",
    "threads": "num_threads n_threads",
    "memory": "vram gpu_memory ram max_memory",
    "on": "gpu gpu_name gpu_type hardware",
    "train": "train_file train_data dataset",
    "test": "eval_file test_file eval_data test_data",
    "methods": "peft_method adapters",
    "r": "rank lora_rank lora_r",
}
"""{an option of ours: what other programs call it}, where a command or function has ours."""
BITS = {"4": "nf4", "8": "int8"}
"""{bits of a weight: the storage of so many}, as others name them: 4bit, int4, fp4, 8-bit."""
NOT_HERE = "is not here; the nearest are"
SHORTEST = 3
"""Letters from which on a key can be near to another: of fewer any two are alike."""
_TRAINS = 'halter.train({"model": "DIR", "data": "my.jsonl", "method": "lora"})'
MODULE = {
    **dict.fromkeys(
        ("AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "LlamaTokenizer"), LOADED
    ),
    **dict.fromkeys(("LoraConfig", "get_peft_model"), 'halter.adapt(model, "lora", r=16)'),
    **dict.fromkeys(("PeftModel", "PeftConfig", "AutoPeftModelForCausalLM"), 'halter.load_adapter("runs/mine", model)'),
    **dict.fromkeys(("Trainer", "TrainingArguments", "SFTTrainer", "SFTConfig"), _TRAINS),
    "pipeline": _GENERATES,
    "chat": "halter chat RUN, in a shell",
    "save": 'adapter.save("mine")',
    "combine": "halter adapters combine, in a shell; halter.stack([first, second], [0.5, 0.5]) uses both at once",
}
"""{a name that others look for in the package: what they want here}."""
PEFT_METHODS = {name.upper(): name for name in "lora ia3 loha lokr prefix_tuning prompt_tuning p_tuning".split()}
PEFT_METHODS |= {"ADAPTION_PROMPT": "llama_adapter", "LN_TUNING": "norm_tuning"}
"""{peft_type: our method}."""
PEFT_OPTIONS = {
    "r": "r",
    "lora_alpha": "alpha",
    "alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target_modules",
    "use_rslora": "rslora",
    "exclude_modules": "exclude_modules",
    "layers_to_transform": "layers",
    "target_parameters": "target_parameters",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "lora_bias": "lora_bias",
    "num_virtual_tokens": "num_virtual_tokens",
    "adapter_len": "adapter_len",
    "adapter_layers": "adapter_layers",
}
"""{an option of peft's configurations: ours}, of those that our methods of the same kind have."""
LEAVE_OUT = "leave it out"
KEYWORDS = {
    "do_sample": "temperature, above 0",
    "load_in_4bit": 'quantize="nf4"',
    "load_in_8bit": 'quantize="int8"',
    "quantization_config": 'quantize="nf4", or int8',
    "eos_token_id": "stop_ids",
    "stop_token_ids": "stop_ids",
    "skip_special_tokens": "skip_control",
    "input_ids": "tokens, or first without a name",
    **dict.fromkeys(
        (
            "add_special_tokens",
            "attention_mask",
            "attn_implementation",
            "clean_up_tokenization_spaces",
            "low_cpu_mem_usage",
            "pad_token_id",
            "padding",
            "return_tensors",
            "truncation",
            "trust_remote_code",
            "use_cache",
            "use_fast",
            "batch_size",
            "task_type",
            "inference_mode",
        ),
        LEAVE_OUT,
    ),
    "labels": "leave them out: halter.train learns, and a call gives logits",
    "bias": "leave it out: the base's biases stay as they are; method bitfit trains them",
}
"""{a keyword of other libraries, in Python: ours for it and with what, or what is so here}."""
_OURS = re.compile(r"(\w+)(?:=|,|$)")
C = TypeVar("C", bound=type[Any])


def called_otherwise(kind: C) -> C:
    """The class with the names of CALLS, each of which refuses (``called-otherwise``) with the call that is meant, and
    with the AttributeError of ATTRIBUTES; checkers of types see none of them."""
    for name, fix in CALLS[kind.__name__].items():
        setattr(kind, name, staticmethod(_refusing(WHOSE[kind.__name__], name, fix)))
    if kind.__name__ in ATTRIBUTES:
        kind.__getattr__ = _missing
    return kind


def _refusing(whose: str, name: str, fix: str) -> Callable[..., Any]:
    call = {"__call__": f"{whose}(...)", "__getitem__": f"{whose}[...]"}.get(name, f"{whose}.{name}")

    def refuse(*_args: Any, **_options: Any) -> Any:
        raise Refusal("called-otherwise", "there is no such call here", where=call, fix=fix)

    refuse.__name__ = name
    refuse.__doc__ = f"Refuses: there is no such call here. Instead: {fix}."
    return refuse


def _missing(self: Any, name: str) -> Any:
    """Python asks this for an attribute that an object has not."""
    kind = type(self).__name__
    here = ATTRIBUTES[kind].get(name)
    told = f"; here it is {here}" if here else ""
    raise AttributeError(f"{WHOSE[kind]} has no attribute {name!r}{told}", name=name, obj=self)


MISUSED = {
    "tokenizer.encode": {
        "texts": "[tokenizer.encode(text) for text in texts]",
        "a conversation": CALLS["Tokenizer"]["apply_chat_template"],
        "a Generation": "answer.tokens are its ids",
        "answers": "[answer.tokens for answer in answers] are their ids",
        "": 'tokenizer.encode("Once upon a time")',
    },
    "tokenizer.decode": {
        "rows": "[tokenizer.decode(ids) for ids in rows]",
        "answers": "[answer.text for answer in answers]",
        "a Generation": "answer.text is its text",
        "a text": "tokenizer.decode(tokenizer.encode(TEXT))",
        "a number": "tokenizer.decode([ID])",
        "": "tokenizer.decode([ID, ID])",
    },
    "tokenizer.token": {"a text": "tokenizer.token_id(TEXT)", "": "[tokenizer.token(id) for id in ids]"},
    "tokenizer.token_id": {"a number": "tokenizer.token(ID)", "": "[tokenizer.token_id(token) for token in tokens]"},
}
"""{call: {what it is given in place of what it takes: the right call}}."""
TAKES = {"text": "one text", "ids": "one list of token ids, whole numbers", "token": "one text", "id": "a whole number"}


def misused(call: str, argument: str, value: Any) -> Refusal:
    """Refusal ``wrong-argument`` of a tokenizer's call that is given something else, with the call that is meant."""
    what, found = "an argument is not what the function takes", f"{argument}: {kinds.shown(value)}"
    fix = MISUSED[call].get(_called(value), MISUSED[call][""])
    expected = f"{argument}: {TAKES[argument]}"
    return Refusal("wrong-argument", what, where=call, found=[found], expected=expected, fix=fix)


def _called(value: Any) -> str:
    """What a value is, by the words of MISUSED; '' for what none of them names."""
    if isinstance(value, str | Real) or type(value).__name__ == "Generation":
        return "a text" if isinstance(value, str) else "a number" if isinstance(value, Real) else "a Generation"
    first = _first(value)
    if isinstance(first, str | Mapping) or type(first).__name__ == "Generation":
        return "texts" if isinstance(first, str) else "a conversation" if isinstance(first, Mapping) else "answers"
    return "rows" if _first(first) is not None else ""


def _first(value: Any) -> Any:
    """What a list begins with; None of anything else."""
    try:
        return next(iter(value), None) if isinstance(value, Collection) and not isinstance(value, bytes) else None
    except TypeError:  # an array without dimensions
        return None


def peft_call(value: Any) -> str:
    """The call that asks for what one of peft's configurations does; '' of anything else. Known by its attributes."""
    kind = str(getattr(value, "peft_type", "")).rpartition(".")[2]
    if kind not in PEFT_METHODS or isinstance(value, type):
        return ""
    start = str(getattr(value, "init_lora_weights", "")).partition("_")[0]
    name = "dora" if getattr(value, "use_dora", False) is True else PEFT_METHODS[kind]
    name = start if start in ("pissa", "olora") else name
    here = [(ours, getattr(value, theirs, None)) for theirs, ours in PEFT_OPTIONS.items()]
    options = {ours: one for ours, one in here if one}
    if kind == "LORA":  # without targets peft takes these of a LLaMA
        options.setdefault("target_modules", ["q_proj", "v_proj"])
    told = "".join(f", {key}={sorted(one) if isinstance(one, set) else one!r}" for key, one in options.items())
    return f'halter.adapt(model, "{name}"{told})'


def missing_name(name: str) -> str:
    """What is said behind a name that the package has not."""
    return f"; here it is {MODULE[name]}" if name in MODULE else ""


def refuse_unknown(given: Iterable[str], known: Sequence[str], whose: str, call: str = "") -> None:
    """Refusal ``unknown-option`` for options that ``whose`` has not, each with the one that is meant where that can be
    told. ``call``: a right call."""
    unknown = [name for name in given if name not in known]
    if unknown:
        found = [f"{name}{_meant(name, known)}" for name in unknown]
        raise Refusal("unknown-option", f"{whose} has no such option", found=found, expected=", ".join(known), fix=call)


def meant_of(word: str, listed: Sequence[str]) -> str:
    """That of the listed words which another was meant as; '' where none is near."""
    bits = re.fullmatch(r"(?:int|fp|nf|q|bnb)?[-_]?([48])[-_]?(?:bits?)?", word.lower())
    if bits and BITS[bits[1]] in listed:
        return BITS[bits[1]]
    close = get_close_matches(word.lower(), listed, 1)
    return close[0] if close and len(word) >= SHORTEST else ""


def ours_for(name: str) -> list[str]:
    """The options of ours that other programs call so."""
    return [ours for ours, others in OURS.items() if name in others.split()]


def _meant(name: str, known: Sequence[str]) -> str:
    """What is put behind an unknown option's name: ours for it, or the one that is spelt nearly so."""
    here = KEYWORDS.get(name, "")
    its = _OURS.match(here)
    if here and (its is None or its[1] in known):
        return f" ({here if here.startswith('leave') else f'here {here}'})"
    if ours := next((one for one in ours_for(name) if one in known), ""):
        return f" (here {ours})"
    close = get_close_matches(name, known, 1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
