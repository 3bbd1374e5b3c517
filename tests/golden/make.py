"""Makes the small models beside this file, which stand where a test wants one that has learned: ``python make.py``.

``story`` is a LLaMA of 260,032 parameters with a SentencePiece tokenizer of 512 pieces (bytes for what it does not
know), ``letters`` one of a few thousand that knows single characters and no bytes, ``pieces`` a tokenizer alone, as
Meta ships it. All read tests/own_rows.py, nothing else. Tokenizers come out the same everywhere; weights do on the
same machine with the same number of threads (elsewhere sums are taken in another order), and are kept in git.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, normalizers, processors

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import own_rows  # noqa: E402

from halter.adapters.adapter import adapt  # noqa: E402
from halter.data.example import Example  # noqa: E402
from halter.model.config import ModelConfig  # noqa: E402
from halter.model.decoder import Decoder  # noqa: E402
from halter.pretrained.save import write_model  # noqa: E402
from halter.run.making import in_order, take_over  # noqa: E402
from halter.training import optimizers, schedule  # noqa: E402
from halter.training.loop import Events, Feed, train_loop  # noqa: E402
from halter.training.trainee import Trainee  # noqa: E402

STORY = ModelConfig(
    layers=5,
    dim=64,
    heads=8,
    kv_heads=4,
    head_dim=8,
    ffn_dim=172,
    vocab_size=512,
    context=512,
    tied=True,
    bos_token_id=1,
    eos_token_ids=(2,),
    dtype="float32",
)
LETTERS = ModelConfig(
    layers=2,
    dim=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn_dim=88,
    vocab_size=0,
    context=256,
    tied=True,
    bos_token_id=1,
    eos_token_ids=(2,),
    dtype="float32",
)
STEP_TOKENS = 3072
CLEAR = 0.02
"""Logits of a few units have errors near 1e-5 in float32, whatever the processor and the order of its sums."""
PROMPT = "Below is an instruction that describes a task, paired with an input. ### Instruction: ### Response:"
FOREIGN = "Zürich naïve café señor Straße Łódź Привет! Γειά 你好世界 こんにちは ½ € “said” — 1234567890 [INST] {x} <y>"


def sentencepiece_model(texts: list[str], **options: Any) -> bytes:
    """A tokenizer.model. One thread and no sampling: the same texts give the same bytes."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        num_threads=1,
        character_coverage=1.0,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_surface=r" \342\201\207 ",
        max_sentence_length=1 << 16,
        minloglevel=2,
        **options,
    )
    return written.getvalue()


def as_json(model: bytes, byte_fallback: bool) -> tokenizers.Tokenizer:
    """The same tokenizer for the ``tokenizers`` library: a merge wherever two pieces make a third, best piece first."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    vocab = {piece.piece: id for id, piece in enumerate(proto.pieces)}
    normal = [piece.piece for piece in proto.pieces if piece.type == 1]
    merges = [(p[:at], p[at:]) for p in normal for at in range(1, len(p)) if p[:at] in vocab and p[at:] in vocab]
    library = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=byte_fallback, fuse_unk=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    bytes_too = [decoders.ByteFallback()] if byte_fallback else []
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), *bytes_too, decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    return library


def write_tokenizer(folder: Path, model: bytes, context: int, byte_fallback: bool) -> tokenizers.Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    library = as_json(model, byte_fallback)
    (folder / "tokenizer.model").write_bytes(model)
    library.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    for name, value in (("tokenizer_config", settings), ("special_tokens_map", names)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
    return library


def untrained(config: ModelConfig) -> Decoder:
    generator = torch.Generator().manual_seed(0)
    model = Decoder(config, torch.float32, "cpu")
    for name, size in config.tensor_shapes().items():
        std = 0.2 if "embed_tokens" in name else size[-1] ** -0.5
        std *= 0.3 if "o_proj" in name or "down_proj" in name else 1.0
        model.set_tensor(name, torch.ones(size) if len(size) == 1 else torch.randn(size, generator=generator) * std)
    return model


def write_trained(folder: Path, config: ModelConfig, library: tokenizers.Tokenizer, tokens: int) -> None:
    """Train on ``tokens`` tokens of tales, each read once, and write config.json and model.safetensors."""
    model, used, rows = untrained(config), 0, []
    for text in own_rows.corpus(0):
        ids = np.array([*library.encode(text).ids, 2][: config.context], dtype=np.int32)
        rows.append(Example(ids, np.ones(len(ids), dtype=bool), "tales"))
        used += len(ids)
        if used >= tokens:
            break
    steps = in_order(rows, STEP_TOKENS)
    adapter = adapt(model, "full", seed=0)
    optimizer = optimizers.make("adamw", adapter.groups(4e-3, 0.05), 4e-3, (0.9, 0.95), 1e-8, lambda _: None)
    trainee = Trainee(
        adapter, optimizer, schedule.make("cosine", len(steps), 30), torch.amp.GradScaler("cpu", enabled=False), 1.0, 0
    )
    told = itertools.count(1)

    def log(line: dict[str, Any]) -> None:
        if (step := next(told)) % 10 == 0 or step == len(steps):
            print(f"{folder.name}: step {step} of {len(steps)}, loss {line['loss']:.4f}", flush=True)

    train_loop(model, [trainee], [Feed(rows, lambda _: steps, len(steps))], Events(log=log))
    take_over(model, trainee.adapter)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_model(model, config, folder)


def write_greedy(folder: Path, prompt: str = "Once upon a time", most: int = 200) -> None:
    """greedy.json: what transformers says in float64, as far as every choice is clear in float32 too (``margin``)."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "story", dtype=torch.float64).eval()
    library = tokenizers.Tokenizer.from_file(str(folder / "story" / "tokenizer.json"))
    ids, margins = library.encode(prompt).ids, []
    for _ in range(most):
        with torch.no_grad():
            (best, second), (chosen, _) = (t.tolist() for t in model(torch.tensor([ids])).logits[0, -1].topk(2))
        if best - second < CLEAR:
            break
        margins.append(best - second)
        ids.append(chosen)
    told = {"prompt": prompt, "text": library.decode(ids), "margin": min(margins)}
    (folder / "greedy.json").write_text(json.dumps(told, indent=2) + "\n")


def make(folder: Path, story_tokens: int = 700_000, letters_tokens: int = 150_000) -> None:
    """Write story/, letters/ and pieces/ into ``folder``; 0 tokens leave weights as they are."""
    texts = [line for text in itertools.islice(own_rows.corpus(1), 4000) for line in text.split("\n")]
    model = sentencepiece_model([*texts, *[PROMPT] * 50], model_type="bpe", vocab_size=512, byte_fallback=True)
    library = write_tokenizer(folder / "story", model, STORY.context, True)
    letters = sorted({c for text in texts for c in text if c != " "} | {"▁"})
    model = sentencepiece_model(texts, model_type="char", vocab_size=len(letters) + 3)
    characters = write_tokenizer(folder / "letters", model, LETTERS.context, False)
    (folder / "pieces").mkdir(exist_ok=True)
    (folder / "pieces" / "tokenizer.model").write_bytes(
        sentencepiece_model(
            [*texts, *[PROMPT, FOREIGN] * 50],
            model_type="bpe",
            vocab_size=1000,
            byte_fallback=True,
            remove_extra_whitespaces=False,
        )
    )
    if story_tokens:
        write_trained(folder / "story", STORY, library, story_tokens)
        write_greedy(folder)
    if letters_tokens:
        config = ModelConfig(**{**vars(LETTERS), "vocab_size": characters.get_vocab_size()})
        write_trained(folder / "letters", config, characters, letters_tokens)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
