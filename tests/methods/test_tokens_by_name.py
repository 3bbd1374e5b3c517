"""Token rows whose tokens are named by their text: the ids are those of the tokenizers library, or a refusal."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
import tiny_tokenizers
import tokenizers

import halter
from halter.adapters.adapter import adapt
from halter.errors import Refusal
from halter.methods.token_rows import TokenRowsMethod
from halter.run.preflight import examine
from halter.text.tokenizer import Tokenizer


def refused(texts, tokenizer):
    with pytest.raises(Refusal) as caught:
        TokenRowsMethod(tokens=tuple(texts)).named(tokenizer)
    assert caught.value.id == "token-unknown"
    return list(caught.value.found)


def test_texts_are_the_librarys_ids(tmp_path):
    folder = tiny_tokenizers.llama3(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = ["<|eot_id|>", " the", "the", "<think>", "!", " little"]
    one = [ids[0] for text in texts if len(ids := library.encode(text, add_special_tokens=False).ids) == 1]
    assert len(one) >= 5
    texts = [text for text in texts if len(library.encode(text, add_special_tokens=False).ids) == 1]
    named = TokenRowsMethod(tokens=(*texts, 3)).named(Tokenizer.from_folder(folder))
    assert list(named.tokens) == [*one, 3] and len({*one}) == len(one)


def test_what_is_not_one_token_is_refused_with_what_it_splits_into(tmp_path):
    folder = tiny_tokenizers.llama3(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    wrong = refused(["<|new|>", " the", "", "<|eot_id|>!"], Tokenizer.from_folder(folder))
    assert len(wrong) == 3
    split = library.encode("<|new|>", add_special_tokens=False)
    head = f"'<|new|>' is {len(split.ids)} tokens: " + " + ".join(
        f"{token!r} ({id})" for token, id in list(zip(split.tokens, split.ids, strict=True))[:8]
    )
    assert wrong[0].startswith(head)
    assert wrong[1] == "'' is no token" and wrong[2].startswith("'<|eot_id|>!' is 2 tokens: '<|eot_id|>' (")


def test_a_text_in_the_middle_of_a_text_with_sentencepiece(data):
    """There "halter" and " halter" differ, and the space that SentencePiece puts first is in neither."""
    tokenizer = Tokenizer.from_folder(data.pieces)
    named = TokenRowsMethod(tokens=(" on", "on", "</s>", "<unk>")).named(tokenizer)
    assert [tokenizer.token(id) for id in named.tokens] == ["▁on", "on", "</s>", "<unk>"]
    assert refused(["好好"], tokenizer)[0].startswith("'好好' is 2 tokens: ")


def test_what_the_vocabulary_lacks_is_not_trained_as_unknown(tmp_path):
    """Without byte fallback a strange character is <unk>, one token, and still not the one that was meant."""
    spec = json.loads(tiny_tokenizers.sentencepiece_like("never").to_str())
    spec["model"]["byte_fallback"] = False
    library = tokenizers.Tokenizer.from_str(json.dumps(spec))
    assert library.encode("ж").ids == [0]
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.write(tmp_path, library, unk_token="<unk>"))
    assert refused(["ж"], tokenizer) == ["'ж' is '<unk>' (0)"]


def test_without_a_tokenizer_texts_are_refused_not_left_out():
    with pytest.raises(Refusal, match="token-unknown") as caught:
        adapt(tiny.decoder(), "token_rows", tokens=[5, " the"])
    assert list(caught.value.found) == ["' the'"]


@pytest.fixture
def recipe(heavy_data, tmp_path):
    return {
        "model": {"path": str(heavy_data.base), "device": "cpu"},
        "method": [{"name": "lora", "r": 2}, {"name": "token_rows", "tokens": ["</s>", " the"]}],
        "data": {"train": f"{heavy_data.train}#8", "template": "alpaca", "max_length": 320, "on_long": "cut"},
        "train": {"max_steps": 1},
        "output_dir": str(tmp_path / "run"),
    }


def test_a_run_saves_the_ids_and_resumes_with_the_texts(recipe, heavy_data):
    library = tokenizers.Tokenizer.from_file(str(heavy_data.base / "tokenizer.json"))
    want = [library.token_to_id("</s>"), library.token_to_id("▁the")]
    run = halter.train(recipe, say=lambda _: None)
    facts = json.loads((run / "adapter" / "halter.json").read_text())
    assert facts["methods"][1]["tokens"] == want
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["trainable_token_indices"] == want
    shutil.rmtree(run / "adapter")  # as if it had been stopped before its end
    assert not [problem for problem in examine(recipe, resume=True).problems if problem.id == "run-differs"]
    other = {**recipe, "method": [recipe["method"][0], {"name": "token_rows", "tokens": ["</s>", " and"]}]}
    assert "run-differs" in [problem.id for problem in examine(other, resume=True).problems]


def test_every_mistake_of_a_recipe_is_told_once_before_the_base_is_loaded(recipe):
    recipe["method"][1]["tokens"] = ["</s>", "wonderfully odd", "<|new|>"]
    problems = [p for p in examine(recipe).problems if p.id == "token-unknown"]
    assert len(problems) == 1 and len(problems[0].found) == 2
