"""POST /v1/completions: the four forms of a prompt, and scores as lm-eval counts them."""

from __future__ import annotations

from typing import Any

import pytest
import serving
import torch

from halter.generation.engine import generate

openai = pytest.importorskip("openai")
PATH = "/v1/completions"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


def test_the_four_forms_of_a_prompt(world: Any, served: Any) -> None:
    tokenizer = world.tokenizer
    texts = ["Once upon a time", "The dog"]
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    want = [one.text for one in generate(world.model, tokenizer, texts, world.loaded("ia3"), max_new_tokens=8)]
    client = served.client()
    for prompt, first in ((texts[0], 1), (texts, 2), (ids[0], 1), (ids, 2)):
        said = client.completions.create(model="ia3", prompt=prompt, **GREEDY)
        openai.types.Completion.model_validate(said.model_dump(), strict=True)
        assert [choice.text for choice in said.choices] == want[:first]
        assert [choice.index for choice in said.choices] == list(range(first))
        assert said.usage.prompt_tokens == sum(map(len, ids[:first]))
    assert len(client.completions.create(model="ia3", prompt=ids[0], temperature=0).model_extra) == 1  # halter alone
    long = client.completions.create(
        model="ia3", prompt="a", logit_bias=dict.fromkeys(map(str, tokenizer.stop_ids), -100)
    )
    assert long.usage.completion_tokens == 16


def test_several_answers_to_several_prompts_are_numbered_as_openais(served: Any) -> None:
    told = served.ask(PATH, {"model": "lora", "prompt": ["a", "b"], "n": 2, "seed": 1, "max_tokens": 6})[2]
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2, 3]
    again = served.ask(PATH, {"model": "lora", "prompt": "a", "n": 2, "seed": 1, "max_tokens": 6})[2]
    assert again["choices"] == told["choices"][:2]  # the same draws, whatever is asked beside them
    streamed = {"model": "lora", "prompt": ["a", "b"], "n": 2, "seed": 1, "max_tokens": 6, "stream": True}
    pieces = serving.events(served.raw(PATH, streamed))
    for one in pieces:  # the types know no choice that goes on; OpenAI's service sends null, and so do we
        (choice,) = one["choices"]
        openai.types.Completion.model_validate({**one, "choices": [choice | {"finish_reason": "stop"}]}, strict=True)
        assert choice["finish_reason"] in (None, "stop", "length")
    texts = ["".join(c["text"] for p in pieces for c in p["choices"] if c["index"] == index) for index in range(4)]
    assert texts == [choice["text"] for choice in told["choices"]]


def test_an_echo_is_scored_with_an_entry_for_each_token_and_one_more(world: Any, served: Any) -> None:
    tokenizer, ids = world.tokenizer, [528, 5, 300, 41, 41, 7]
    scored = {"model": "dora", "prompt": [ids, ids[:3]], "temperature": 0, "max_tokens": 1, "logprobs": 1}
    told = served.ask(PATH, {**scored, "seed": 1234, "echo": True})[2]
    want = generate(
        world.model,
        tokenizer,
        [ids, ids[:3]],
        world.loaded("dora"),
        max_new_tokens=1,
        logprobs=1,
        prompt_logprobs=1,
        ignore_stop_ids=True,
    )
    for choice, answer in zip(told["choices"], want, strict=True):
        entries, expected = choice["logprobs"], [*answer.prompt_logprobs, *answer.logprobs]
        assert {len(each) for each in entries.values()} == {len(answer.prompt_tokens) + 1}
        assert entries["token_logprobs"][0] is None and entries["top_logprobs"][0] is None
        assert entries["token_logprobs"][1:] == pytest.approx([one.logprob for one in expected[1:]], abs=1e-5)
        for own, top, one in zip(entries["token_logprobs"][1:], entries["top_logprobs"][1:], expected[1:], strict=True):
            greedy = one.token == one.top[0][0]
            assert (own == max(top.values())) == greedy  # float for float, as lm-eval asks
            assert len(top) == (1 if greedy else 2)
    only = served.ask(PATH, {**scored, "max_tokens": 0, "echo": True})[2]
    assert [len(c["logprobs"]["tokens"]) for c in only["choices"]] == [6, 3]
    assert only["usage"]["completion_tokens"] == 0 and only["choices"][0]["text"] == tokenizer.decode(ids)
    assert only["choices"][0]["logprobs"]["token_logprobs"] == told["choices"][0]["logprobs"]["token_logprobs"][:-1]


def test_the_token_after_a_scored_prompt_is_told_also_where_it_ends_the_text(world: Any, served: Any) -> None:
    """Clients slice by counting: a missing last entry would shift every score."""
    stop = world.tokenizer.stop_ids[0]
    sure = {"model": "tiny", "prompt": [5, 6, 7], "temperature": 0, "logit_bias": {str(stop): 100}, "logprobs": 0}
    (choice,) = served.ask(PATH, {**sure, "max_tokens": 1, "echo": True})[2]["choices"]
    assert len(choice["logprobs"]["tokens"]) == 4 and choice["finish_reason"] == "stop"
    assert choice["text"] == world.tokenizer.decode([5, 6, 7])
    (choice,) = served.ask(PATH, {**sure, "max_tokens": 4})[2]["choices"]
    assert choice["text"] == "" and choice["finish_reason"] == "stop"


def test_echo_and_logprobs_in_streams(world: Any, served: Any) -> None:
    asked = {"model": "tiny", "prompt": "The dog", **GREEDY, "echo": True}
    whole = served.ask(PATH, asked)[2]["choices"][0]["text"]
    pieces = serving.events(served.raw(PATH, {**asked, "stream": True}))
    assert "".join(one["choices"][0]["text"] for one in pieces) == whole and whole.startswith("The dog")
    scored = {**asked, "echo": False, "logprobs": 2}
    plain = served.ask(PATH, scored)[2]["choices"][0]["logprobs"]
    pieces = serving.events(served.raw(PATH, {**scored, "stream": True}))
    told = [one["choices"][0]["logprobs"] for one in pieces if one["choices"][0]["logprobs"]]
    for key in ("tokens", "text_offset"):
        assert [value for one in told for value in one[key]] == plain[key]
    status, _, body = served.ask(PATH, {**asked, "logprobs": 1, "stream": True})
    assert status == 400 and body["error"]["param"] == "stream"


def test_tokens_of_one_text_do_not_hide_each_other(world: Any) -> None:
    from halter.generation.streaming import TokenLogprob
    from halter.serve.wire.tokens import CompletionLogprobs, word_of

    tokenizer = world.tokenizer
    assert word_of(tokenizer, 639) == "token_id:639"  # the model has it, the tokenizer does not
    half = next(id for id in range(300) if len(tokenizer.piece(id)) == 1 and tokenizer.piece(id)[0] > 127)
    assert word_of(tokenizer, half) == f"bytes:\\x{tokenizer.piece(half)[0]:02x}"

    class Twins:
        def piece(self, id: int) -> bytes:
            return b"same"

    told = TokenLogprob(3, -2.0, ((1, -0.5), (2, -1.0)))
    (top,) = CompletionLogprobs(Twins()).of([3], [told])["top_logprobs"]  # type: ignore[arg-type]
    assert top == {"same": -0.5, "token_id:2": -1.0, "token_id:3": -2.0}


def test_lm_evals_own_client_reads_the_scores(world: Any, served: Any) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    rows, contexts = [[528, 5, 300, 41, 41, 7], [528, 90, 17], [528, 7]], [2, 2, 1]
    asked = {"prompt": rows, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    for name in ("tiny", "lora", "prompt_tuning"):
        adapter = None if name == "tiny" else world.loaded(name)
        told = served.ask(PATH, {**asked, "model": name})[2]
        found = LocalCompletionsAPI.parse_logprobs(told, tokens=rows, ctxlens=contexts)
        for (total, greedy), row, context in zip(found, rows, contexts, strict=True):
            (logits,) = (world.model(torch.tensor([row]), adapter=adapter).double().log_softmax(-1),)
            rest = torch.tensor(row[context:])
            before = logits.reshape(-1, logits.shape[-1])[context - 1 : len(row) - 1]
            assert total == pytest.approx(before.gather(1, rest[:, None]).sum().item(), abs=1e-5)
            assert greedy == bool((before.argmax(-1) == rest).all())
