"""Greedy answers token for token against transformers; rows against themselves alone; adapters mixed in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bounds
import pytest
import tiny
import torch
from own_data import GOLDEN, Data, Own
from safetensors.torch import load_file
from transformers import RepetitionPenaltyLogitsProcessor

from halter.adapters.adapter import Adapter, adapt
from halter.errors import HalterError, Refusal
from halter.files.reading import read_json
from halter.generation import slots
from halter.generation.engine import Engine, Request, generate, stream
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.streaming import Generation
from halter.model.cache import Cache
from halter.model.config import ModelConfig
from halter.model.decoder import Decoder
from halter.text.tokenizer import Tokenizer

REFERENCE = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" "
    "Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but I can't find it.\""
)
"""llama2.c's own test expects these words of stories260K."""
ONCE = {"real": REFERENCE, "own": read_json(GOLDEN / "greedy.json")["text"]}
PROMPTS = [
    "Once upon a time",
    "Tom had a dog. The dog was",
    "The",
    "Lily and Ben like to play in the park. They see a big tree with many red apples. Ben says",
    "One day, a bird",
]


def opened(folder: Path) -> tuple[Decoder, Tokenizer]:
    model = Decoder(ModelConfig.from_hf(read_json(folder / "config.json")))
    for tensor, value in load_file(folder / "model.safetensors").items():
        if tensor in model.expected():
            model.set_tensor(tensor, value)
    return model, Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def stories(own: Own) -> tuple[Decoder, Tokenizer]:
    return opened(own.base)


@pytest.fixture(scope="module")
def each(data: Data) -> tuple[Decoder, Tokenizer]:
    """Our model that tells stories, and Karpathy's where the shared data is."""
    return opened(data.base)


def theirs(peer: Any, tokens: list[int], count: int) -> list[int]:
    """Greedy tokens of transformers.generate for one prompt, with the end token."""
    out = peer.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
    )
    return out[0, len(tokens) :].tolist()


def assert_greedy(peer: Any, answer: Generation, count: int, penalty: float = 1.0) -> None:
    """``answer`` is transformers' greedy one of up to ``count`` tokens, at least half of it before a near tie."""

    def scores(said: list[int]) -> torch.Tensor:
        seen = torch.tensor([[*answer.prompt_tokens, *said]])
        return RepetitionPenaltyLogitsProcessor(penalty)(seen, peer(seen).logits[:, -1])[0]

    wanted = theirs(peer, list(answer.prompt_tokens), count)
    assert bounds.assert_same_greedy(said_by(answer), wanted, scores) >= len(wanted) / 2


def said_by(answer: Generation) -> list[int]:
    """Its tokens, and the end token where that stopped it."""
    return [*answer.tokens, *([answer.stop] if isinstance(answer.stop, int) else [])]


def assert_alike(
    found: list[Generation], wanted: list[Generation], model: Decoder, adapters: Sequence[Adapter | None] = ()
) -> None:
    """Greedy answers of batches of other shapes are equal, but for what follows a near tie."""
    assert len(found) == len(wanted)
    for one, other, adapter in zip(found, wanted, adapters or [None] * len(found), strict=True):

        def scores(said: list[int], other: Generation = other, adapter: Adapter | None = adapter) -> torch.Tensor:
            with torch.no_grad():
                return model(torch.tensor([[*other.prompt_tokens, *said]]), adapter=adapter)[0, -1]

        if one != other:
            same = bounds.assert_same_greedy(said_by(one), said_by(other), scores)
            assert len(other.tokens) / 2 <= same < len(other.tokens)  # with the same tokens all else is the same


@pytest.mark.parametrize("name", ["base", "letters"])
def test_greedy_is_that_of_transformers_on_models_that_learned(data: Data, name: str) -> None:
    import transformers

    folder = getattr(data, name)
    model, tokenizer = opened(folder)
    peer = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=96)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = their_tokenizer(prompt)["input_ids"]
        assert list(answer.prompt_tokens) == tokens
        assert_greedy(peer, answer, 96)
        assert prompt + answer.text == their_tokenizer.decode([*tokens, *answer.tokens], skip_special_tokens=True)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_greedy_is_that_of_transformers_on_random_models(kv_heads: int, stories: tuple[Decoder, Tokenizer]) -> None:
    model = tiny.decoder(tiny.config(kv_heads=kv_heads, tied=kv_heads == 2), seed=kv_heads)
    peer = tiny.peer(model)
    prompts = [[1, 5, 9], [1], [1, *range(10, 60)], [1, 4, 4, 4, 4, 7, 8]]
    answers = generate(model, stories[1], prompts, max_new_tokens=64)  # its end token is 2, as the model's
    assert [list(answer.prompt_tokens) for answer in answers] == prompts
    for answer in answers:
        assert_greedy(peer, answer, 64)


def test_reference_text(data: Data, each: tuple[Decoder, Tokenizer]) -> None:
    answer = generate(*each, "Once upon a time", max_new_tokens=500)[0]
    once = ONCE[data.name]
    assert ("Once upon a time" + answer.text)[: len(once)] == once


SAMPLING: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1, "seed": 7}


@pytest.mark.parametrize("options", [{}, SAMPLING], ids=["greedy", "sampled"])
def test_any_batching_gives_the_same_answers(each: tuple[Decoder, Tokenizer], options: dict[str, Any]) -> None:
    together = generate(*each, PROMPTS, max_new_tokens=40, **options)
    model, tokenizer = each
    others = [generate(*each, PROMPTS, max_new_tokens=40, max_rows=max_rows, **options) for max_rows in (1, 2)]
    encoded = [EncodedPrompt(a.prompt_tokens, True) for a in together]
    chosen = GenerationOptions(max_new_tokens=40, **options)
    alone = [Request(prompt, chosen, draws=row) for row, prompt in enumerate(encoded)]  # each under its own number
    others.append([list(Engine(model, tokenizer).run([one]))[-1].result for one in alone])
    for found in others:
        if options:
            assert found == together
        else:
            assert_alike(found, together, model)


def test_rows_join_as_others_leave(stories: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = stories
    lengths = [3, 30, 1, 17, 2, 9, 5]
    prompts = [EncodedPrompt((1, 10 + i), True) for i in range(len(lengths))]
    requests = [
        Request(p, GenerationOptions(max_new_tokens=n), draws=i) for i, (p, n) in enumerate(zip(prompts, lengths))
    ]
    working = Engine(model, tokenizer, rows=3)
    ids = [working.add(request) for request in requests]
    steps, results = 0, {}
    while working.busy:
        results |= {p.row: p.result for p in working.step() if p.result is not None}
        steps += 1
    assert ids == list(range(len(lengths)))
    assert [len(results[i].tokens) for i in range(len(lengths))] == lengths
    assert steps == 30  # the 67 tokens fit beside the longest row: 3 + 1 + ... are done in its shadow


def test_the_cache_grows_with_the_answers(stories: tuple[Decoder, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate(*stories, PROMPTS, max_new_tokens=60, max_rows=3)
    monkeypatch.setattr(slots, "ROOM_TOKENS", 3)
    assert generate(*stories, PROMPTS, max_new_tokens=60, max_rows=3) == whole
    capacities: list[int] = []
    grow = Cache.grow
    monkeypatch.setattr(Cache, "grow", lambda cache, n: (capacities.append(n), grow(cache, n))[1])
    generate(*stories, [1, 20], max_new_tokens=60, ignore_stop_ids=True)
    assert capacities == [10, 20, 40, 61]  # from 2 + 3 tokens by doubling to 2 + 60 - 1, which is all that is needed


def test_a_seed_gives_one_answer_and_another_seed_another(stories: tuple[Decoder, Tokenizer]) -> None:
    def tokens(**options: Any) -> list[tuple[int, ...]]:
        return [a.tokens for a in generate(*stories, ["Once", "Once"], max_new_tokens=20, temperature=1.0, **options)]

    first = tokens(seed=1)
    assert tokens(seed=1) == first and tokens(seed=2) != first
    assert first[0] != first[1]  # equal prompts, but the rows draw apart


def test_repetition_penalty_as_transformers_has_it(data: Data, each: tuple[Decoder, Tokenizer]) -> None:
    import transformers

    peer = transformers.LlamaForCausalLM.from_pretrained(data.base).eval()
    peer.generation_config.repetition_penalty = 1.3
    for prompt in ("Once upon a time", "Lily and Tom and Lily and Tom and Lily and"):  # the second repeats itself
        answer = generate(*each, prompt, max_new_tokens=40, repetition_penalty=1.3)[0]
        assert_greedy(peer, answer, 40, penalty=1.3)


def three_adapters(model: Decoder) -> list[Adapter]:
    made = [
        adapt(model, "lora", r=4, alpha=32.0, target_modules="all-linear"),
        adapt(model, "lora", r=2, alpha=32.0, target_modules=["lm_head"]),
    ]
    made.append(adapt(model, "full"))
    for seed, adapter in enumerate(made):
        tiny.jitter(adapter, 0.5 if seed == 1 else 0.1, seed)
    return made


def test_one_adapter_per_prompt_equals_each_alone(stories: tuple[Decoder, Tokenizer]) -> None:
    model = tiny.decoder()
    a, b, c = three_adapters(model)
    prompts = [[1, 5, 9], [1, 5, 9], [1, 8, 8, 8, 3], [1, 5, 9], [1, 5, 9], [1, 20]]
    adapters = [a, None, b, c, a, None]
    mixed = generate(model, stories[1], prompts, adapters, max_new_tokens=30, max_rows=4)
    alone = [generate(model, stories[1], p, x, max_new_tokens=30)[0] for p, x in zip(prompts, adapters, strict=True)]
    assert_alike(mixed, alone, model, adapters)
    assert len({mixed[0].tokens, mixed[1].tokens, mixed[3].tokens}) == 3  # they do differ
    base = generate(model, stories[1], prompts[2], max_new_tokens=1)[0]
    assert mixed[2].tokens[:1] != base.tokens  # from the first token on, where the head sees but some of the tokens


def test_an_adapter_speaks_as_the_decoder_with_it_does(stories: tuple[Decoder, Tokenizer]) -> None:
    """The cached path against the whole pass: every token is the full forward's most likely one."""
    model = tiny.decoder(seed=3)
    for adapter in three_adapters(model):
        answer = generate(model, stories[1], [1, 6, 11], adapter, max_new_tokens=24, ignore_stop_ids=True)[0]
        tokens = torch.tensor([[1, 6, 11, *answer.tokens]])
        with torch.no_grad():
            logits = model(tokens, adapter=adapter)[0, 2:]
        # Its tokens are fed to the whole pass, so that each stands for itself.
        ties = sum(
            bounds.assert_same_greedy([token], [int(scores.argmax())], lambda _, scores=scores: scores) == 0
            for token, scores in zip(answer.tokens, logits)
        )
        assert len(answer.tokens) == 24 and ties < 3


def test_stop_strings_end_text_wherever_tokens_end(data: Data, each: tuple[Decoder, Tokenizer]) -> None:
    whole = generate(*each, "Once upon a time", max_new_tokens=60)[0].text
    parts = {"real": ("ily. She lo", "park", "named L"), "own": ("lvel. She li", "market", "named N")}[data.name]
    assert all(part in whole for part in parts)
    for stop in (*parts, ".", "\n"):
        answer = generate(*each, "Once upon a time", max_new_tokens=200, stop=["never so", stop])[0]
        assert answer.finish_reason == "stop" and answer.stop == stop
        assert stop not in answer.text
        if stop in whole:
            assert answer.text == whole[: whole.index(stop)]


def test_stop_ids(stories: tuple[Decoder, Tokenizer]) -> None:
    free = generate(*stories, "Once upon a time", max_new_tokens=30)[0]
    assert free.finish_reason == "length" and free.stop is None and len(free.tokens) == 30
    stop = free.tokens[12]
    answer = generate(*stories, "Once upon a time", max_new_tokens=30, stop_ids=[511, stop])[0]
    assert answer.tokens == free.tokens[: free.tokens.index(stop)]
    assert (answer.finish_reason, answer.stop) == ("stop", stop)


def test_the_tokenizers_end_token_stops_unless_ignored() -> None:
    class Says(Decoder):
        def head(self, hidden: torch.Tensor, acts: Any = None, index: Any = None) -> torch.Tensor:
            logits = torch.zeros(len(hidden), self.config.vocab_size)
            logits[:, 2] = 1
            return logits

    model = Says(tiny.config(layers=0, tied=True), device="cpu")
    for tensor in model.buffers():
        tensor.zero_()
    tokenizer = ToyTokenizer()
    answer = generate(model, tokenizer, [1, 5], max_new_tokens=4)[0]  # type: ignore[arg-type]
    assert (answer.tokens, answer.finish_reason, answer.stop, answer.text) == ((), "stop", 2, "")
    answer = generate(model, tokenizer, [1, 5], max_new_tokens=4, ignore_stop_ids=True)[0]  # type: ignore[arg-type]
    assert (answer.tokens, answer.finish_reason) == ((2, 2, 2, 2), "length")


class ToyTokenizer(Tokenizer):
    """Just what the engine asks of a tokenizer."""

    def __init__(self) -> None: ...

    bos_id, stop_ids, vocab_size = 1, (2,), 2**20

    def stream(self, *, previous: Any = ()) -> Any:
        class Stream:
            def push(self, id: int) -> str:
                return f"[{id}]"

            def flush(self) -> str:
                return ""

        return Stream()


def test_the_context_ends_an_answer(stories: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = stories
    prompt = [1] + [20] * 499
    answer = generate(model, tokenizer, prompt, max_new_tokens=100, ignore_stop_ids=True)[0]
    assert len(answer.tokens) == 12 and answer.finish_reason == "context"
    with pytest.raises(Refusal) as refusal:
        generate(model, tokenizer, [[1] * 512, [1, 5], [1] * 600], max_new_tokens=1)
    assert refusal.value.id == "prompt-too-long"
    assert refusal.value.found == ("prompt 0: 512 tokens", "prompt 2: 600 tokens")
    assert len(generate(model, tokenizer, [1] * 511, max_new_tokens=5, ignore_stop_ids=True)[0].tokens) == 1


def test_streamed_pieces_are_the_answer(stories: tuple[Decoder, Tokenizer]) -> None:
    whole = generate(*stories, PROMPTS, max_new_tokens=30, stop=["and", " the"])
    said = [""] * len(PROMPTS)
    early = 0
    for piece in stream(*stories, PROMPTS, max_new_tokens=30, stop=["and", " the"], max_rows=2):
        said[piece.row] += piece.text
        early += piece.result is None
        if piece.result is not None:
            assert piece.result == whole[piece.row]
    assert said == [a.text for a in whole] and early > len(PROMPTS)


def test_streaming_does_not_leave_inference_mode_on(stories: tuple[Decoder, Tokenizer]) -> None:
    for _ in stream(*stories, "Once", max_new_tokens=3):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "id"),
    [
        ({"max_new_tokens": 0}, "generation-options"),
        ({"temperature": -1.0}, "generation-options"),
        ({"temperature": float("nan")}, "generation-options"),
        ({"top_p": 1.5, "min_p": -1.0}, "generation-options"),
        ({"stop": [""]}, "generation-options"),
        ({"max_tokens": 5}, "unknown-option"),
        ({"adapter": [None, None]}, "adapter-count"),
        ({"template": "no such template"}, "template-unknown"),
    ],
    ids=lambda v: str(v),
)
def test_refusals(stories: tuple[Decoder, Tokenizer], options: dict[str, Any], id: str) -> None:
    with pytest.raises(Refusal) as refusal:
        generate(*stories, "Once", **options)
    assert refusal.value.id == id


def test_refusals_of_prompts(stories: tuple[Decoder, Tokenizer]) -> None:
    asked: list[Any] = [[[1, 512, -1]], [[]], [{"role": "user", "content": "Hi"}]]
    for prompts, id in zip(asked, ("prompt-tokens", "prompt-empty", "no-chat-template"), strict=True):
        with pytest.raises(Refusal) as refusal:
            generate(*stories, prompts)
        assert refusal.value.id == id
    assert generate(*stories, []) == []


def test_the_template_that_is_offered_can_be_written(stories: tuple[Decoder, Tokenizer]) -> None:
    """ "llama-3" was, whose tokens this tokenizer has not."""
    talk: Any = [{"role": "user", "content": "Hi"}]
    with pytest.raises(Refusal) as refusal:
        generate(*stories, talk)
    offered = refusal.value.fix.split("--template ")[1].split(",")[0]
    assert f'template="{offered}"' in refusal.value.fix
    assert generate(*stories, talk, template=offered, max_new_tokens=1)


def test_broken_weights_are_named_as_such(stories: tuple[Decoder, Tokenizer]) -> None:
    model = tiny.decoder()
    model.norm.scale.fill_(float("nan"))
    with pytest.raises(HalterError, match="not finite"):
        generate(model, stories[1], [[1, 5]], max_new_tokens=2)


def test_conversations_and_templates(stories: tuple[Decoder, Tokenizer]) -> None:
    model, tokenizer = stories
    by_name = generate(model, tokenizer, "Hello", template="alpaca", max_new_tokens=8)[0]
    by_message = generate(model, tokenizer, [{"role": "user", "content": "Hello"}], template="alpaca", max_new_tokens=8)
    assert [by_name] == by_message
    assert by_name.prompt_tokens.count(1) == 1 and by_name.prompt_tokens[0] == 1
    assert "### Response:" in tokenizer.decode(by_name.prompt_tokens)
    # A reply begins a text of its own: no stray space, whatever the tokenizer's dummy space.
    assert by_name.text == tokenizer.decode(by_name.tokens)


def test_several_answers_to_a_prompt(stories: tuple[Decoder, Tokenizer]) -> None:
    """In the order of the prompts; the first is the one that is given alone, the others differ, and all come again."""
    prompts, how = ["Once upon a time", "The dog"], {"temperature": 1.0, "seed": 3, "max_new_tokens": 12}
    alone = generate(*stories, prompts, **how)
    several = generate(*stories, prompts, n=3, max_rows=2, **how)
    assert len(several) == 6 and [several[0].tokens, several[3].tokens] == [a.tokens for a in alone]
    assert all(g.prompt_tokens == alone[i // 3].prompt_tokens for i, g in enumerate(several))
    assert len({g.tokens for g in several[:3]}) == 3
    assert [g.tokens for g in generate(*stories, prompts, n=3, **how)] == [g.tokens for g in several]
    for bad in ({"n": 0}, {"n": 2, "temperature": 0.0}):
        with pytest.raises(Refusal, match="generation-options"):
            generate(*stories, prompts, **(how | bad))


def test_an_answer_may_be_begun(stories: tuple[Decoder, Tokenizer]) -> None:
    whole = generate(*stories, ["Once upon a time"], max_new_tokens=12)[0]
    begun = generate(*stories, ["Once upon"], prefill=" a time", max_new_tokens=12)[0]
    assert begun.tokens == whole.tokens and begun.text == whole.text
