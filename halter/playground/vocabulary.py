"""The playground's tokenizer: byte-level BPE trained on the world, control tokens as in Llama 3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from halter.playground.documents import Document

VOCABULARY = 2048
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
PAD = "<|finetune_right_pad_id|>"
CONTROL = (BOS, EOS, PAD, HEADER, HEADER_END, TURN_END)
# A word with the space before it, one digit, a run of signs, a line break, other space.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n|[^\S\n]+"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def render(document: Document) -> str:
    """The document as one string between BOS and EOS; a chat in the form that CHAT_TEMPLATE gives it."""
    if not document.messages:
        return f"{BOS}{document.text}{EOS}"
    turns = (f"{HEADER}{m['role']}{HEADER_END}\n\n{m['content'].strip()}{TURN_END}" for m in document.messages)
    return BOS + "".join(turns)


def train_tokenizer(
    documents: Iterable[Document], size: int = VOCABULARY, control: Sequence[str] = CONTROL
) -> Tokenizer:
    """A tokenizer of ``size`` ids, the control tokens last; encoding adds BOS as Llama 3's tokenizer.json does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(control),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for document in documents:
            if document.text:
                yield document.text
            yield from (m["content"] for m in document.messages)

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
