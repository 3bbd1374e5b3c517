"""lm-eval asks the server as it asks any other (its ``local-completions``), and finds what it finds in process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from halter.evaluation.tasks import Judge, harness_model

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")

TEXTS = [
    ("Where is Zürich?", " In Switzerland"),
    ("Where is Zürich? ", "In Switzerland"),
    ("你好", " 你好 and more"),
    ("", "The dog ran."),
    ("word " * 60, "play"),
]


def over_http(served: Any, name: str, **tokenizer: Any) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model=name,
        base_url=f"http://127.0.0.1:{served.port}/v1/completions",
        max_length=256,
        max_retries=1,
        **tokenizer,
    )


def asked(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.mark.parametrize("name", ["tiny", "lora", "prompt_tuning", "excitor"])
def test_lm_eval_finds_over_http_what_it_finds_in_process(name: str, world: Any, served: Any) -> None:
    folder = world.folder.parent / "tokenizer"
    theirs = over_http(served, name, tokenizer_backend="huggingface", tokenizer=str(folder), add_bos_token=True)
    adapter = None if name == "tiny" else world.loaded(name)
    own = harness_model(Judge(world.model, world.tokenizer, adapter))

    requests = [asked("loglikelihood", *texts) for texts in TEXTS]
    for (got, greedy), (want, greedy_too) in zip(
        theirs.loglikelihood(requests, disable_tqdm=True), own.loglikelihood(requests), strict=True
    ):
        assert got == pytest.approx(want, rel=1e-5, abs=1e-5) and greedy == greedy_too

    rolling = [asked("loglikelihood_rolling", text) for text in ("A dog ran home. 你好", "word " * 50)]
    got_all = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    for got, want in zip(got_all, own.loglikelihood_rolling(rolling), strict=True):
        assert got == pytest.approx(want, rel=1e-5, abs=1e-5)

    until = [asked("generate_until", text, {"until": ["."], "max_gen_toks": 12}) for text, _ in TEXTS if text]
    said = theirs.generate_until(until, disable_tqdm=True)
    assert said == own.generate_until(until) and any(said)


def test_the_servers_own_tokenizer_is_asked_where_none_is_named(world: Any, served: Any) -> None:
    """lm-eval then begins no text with BOS: log-probabilities of the ids alone, of the model's own logits."""
    theirs = over_http(served, "tiny", tokenizer_backend="remote")
    texts = [pair for pair in TEXTS if pair[0]]
    found = theirs.loglikelihood([asked("loglikelihood", *pair) for pair in texts], disable_tqdm=True)
    for (context, continuation), (got, greedy) in zip(texts, found, strict=True):
        head = world.tokenizer.encode(context.rstrip())  # spaces go over to the continuation, as everywhere in lm-eval
        ids = world.tokenizer.encode(context + continuation)
        with torch.no_grad():
            says = world.model(torch.tensor([ids])).squeeze(0).double().log_softmax(-1)
        told = [says[at - 1, ids[at]].item() for at in range(len(head), len(ids))]
        assert got == pytest.approx(sum(told), rel=1e-5, abs=1e-5)
        assert greedy == all(says[at - 1].argmax() == ids[at] for at in range(len(head), len(ids)))
