"""Prompts as token ids: strings, conversations, ids; what ends an answer to them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import tiny_tokenizers
import torch
from own_data import Data, Own

import halter
from halter import telling
from halter.errors import Refusal
from halter.generation.options import GenerationKeywords, GenerationOptions
from halter.generation.prompts import AnswerKeywords, as_list, encode_prompt, turn_end
from halter.generation.streaming import GrowingAnswer
from halter.text.chat.conversations import ChatTemplate
from halter.text.tokenizer import Tokenizer

TURN = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("Hi", ["Hi"]),
        (["Hi", "Ho"], ["Hi", "Ho"]),
        ([TURN], [[TURN]]),
        ([[TURN], "Hi", [1, 2]], [[TURN], "Hi", [1, 2]]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        (torch.tensor([1, 2]), [[1, 2]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ([], []),
    ],
    ids=str,
)
def test_one_prompt_or_several(given: Any, prompts: list[Any]) -> None:
    assert as_list(given) == prompts


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A base model's tokenizer: it ends with the end of text and knows nothing of turns, but has their tokens."""
    folder = tiny_tokenizers.llama3(tmp_path_factory.mktemp("llama3"), None, eos_token="<|end_of_text|>")
    return Tokenizer.from_folder(folder)


def test_a_string_stands_after_one_bos(llama3: Tokenizer) -> None:
    prompt = encode_prompt(llama3, "There was a girl.")
    assert prompt.tokens == (llama3.bos_id, *llama3.encode("There was a girl.")) and prompt.continues
    spelt = encode_prompt(llama3, "<|begin_of_text|>There")
    assert spelt.tokens.count(llama3.bos_id) == 1  # what a user types is text
    assert encode_prompt(llama3, [5, 6]).tokens == (5, 6)  # ids are as given


def test_a_turn_ends_where_its_template_ends_it(llama3: Tokenizer) -> None:
    """A base model's tokenizer does not call <|eot_id|> a stop; an answer must end there all the same."""
    end = llama3.token_id("<|eot_id|>")
    assert end is not None and end not in llama3.stop_ids
    template = ChatTemplate.builtin("llama-3")
    assert turn_end(llama3, template) == (end,)
    prompt = encode_prompt(llama3, [TURN], template)
    answer = GrowingAnswer(llama3, prompt, GenerationOptions())
    answer.push(llama3.encode("Yes")[0])
    answer.push(end)
    assert answer.result is not None and answer.result.stop == end
    assert prompt.tokens == tuple(template.encode(llama3, [TURN], add_generation_prompt=True).tokens)


def test_a_string_with_a_template_is_a_users_turn(llama3: Tokenizer) -> None:
    assert encode_prompt(llama3, "Hi", "llama-3") == encode_prompt(llama3, [TURN], "llama-3")


def test_text_goes_on_with_the_prompt_but_a_reply_begins_anew(data: Data) -> None:
    tokenizer = Tokenizer.from_folder(data.base)
    token = tokenizer.encode("on")[0]  # its piece brings the space along
    goes_on = GrowingAnswer(tokenizer, encode_prompt(tokenizer, "named"), GenerationOptions())
    reply = GrowingAnswer(tokenizer, encode_prompt(tokenizer, "named", "alpaca"), GenerationOptions())
    assert (goes_on.push(token), reply.push(token)) == (" on", "on")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, llama3: Tokenizer) -> dict[str, Tokenizer]:
    """A tokenizer for each built-in template: SentencePiece's and Llama 3's."""
    old = Tokenizer.from_folder(
        tiny_tokenizers.write(tmp_path_factory.mktemp("old"), tiny_tokenizers.sentencepiece_like("first"))
    )
    return {"llama-2": old, "alpaca": old, "vicuna": old, "llama-3": llama3}


@pytest.mark.parametrize("name", ["llama-2", "llama-3", "alpaca", "vicuna"])
@pytest.mark.parametrize("begun", [0, 1, 2, 3])
def test_an_answer_that_is_begun_goes_on_as_a_training_row_does(
    name: str, begun: int, spoken: dict[str, Tokenizer]
) -> None:
    """Given in two ways, as the conversation's last words and as ``prefill``: the ids of the row up to there."""
    tokenizer, template = spoken[name], ChatTemplate.builtin(name)
    answer = ["There", "was", "a", "girl."]
    row = template.encode(tokenizer, [TURN, {"role": "assistant", "content": " ".join(answer)}]).tokens
    prompt = list(encode_prompt(tokenizer, [TURN], template).tokens)
    assert row[: len(prompt)] == prompt
    words = " ".join(answer[:begun])
    conversation = [TURN, {"role": "assistant", "content": words}] if words else [TURN]
    for given in (
        encode_prompt(tokenizer, conversation, template),
        encode_prompt(tokenizer, [TURN], template, prefill=words),
    ):
        assert list(given.tokens) == row[: len(given.tokens)]
        said = tokenizer.decode(given.tokens[len(prompt) :], skip_control=False)
        assert said.strip() == words and given.continues == bool(words)
    half = words[: len(words) // 2]
    both = [TURN, {"role": "assistant", "content": half}] if half else [TURN]
    assert encode_prompt(tokenizer, both, template, prefill=words[len(half) :]).tokens == given.tokens


def test_an_answer_that_is_begun_is_transformers_continued_message(llama3: Tokenizer) -> None:
    import transformers

    template, words = ChatTemplate.builtin("llama-3"), "There was a girl. \n\n"
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(llama3.files[0]))
    messages = [TURN, {"role": "assistant", "content": "There was a girl."}]
    text = theirs.apply_chat_template(
        messages,
        chat_template=template.source,
        tokenize=False,
        continue_final_message=True,
        bos_token="<|begin_of_text|>",
    )
    ours = encode_prompt(llama3, messages, template)
    assert llama3.decode(ours.tokens, skip_control=False) == text
    spaced = encode_prompt(llama3, [TURN], template, prefill=words)
    assert (
        llama3.decode(spaced.tokens, skip_control=False) == text + " \n\n"
    )  # what a template cuts is said all the same


def test_keywords_for_editors_are_the_options() -> None:
    assert GenerationKeywords.__annotations__.keys() == {field.name for field in fields(GenerationOptions)}
    assert GenerationKeywords.__annotations__.keys() < AnswerKeywords.__annotations__.keys()


def test_token_ids_have_no_text_before_them(llama3: Tokenizer) -> None:
    with pytest.raises(Refusal, match="prefill-tokens"):
        encode_prompt(llama3, [5, 6], prefill="There")
    assert encode_prompt(llama3, "There", prefill=" was").tokens == encode_prompt(llama3, "There was").tokens


def test_a_text_asked_without_the_template_of_training_is_told_once(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = halter.load(own.base, say=lambda _: None)
    adapter = halter.adapt(model, "lora", r=1)
    said: list[str] = []
    monkeypatch.setattr(telling, "tell", said.append)
    telling.tell_once.cache_clear()
    halter.generate(model, tokenizer, ["One day"], adapter, max_new_tokens=1)
    adapter.facts["template"] = {"name": "alpaca", "digest": "x"}
    halter.generate(model, tokenizer, ["One day"], adapter, template="alpaca", max_new_tokens=1)
    assert said == []
    for _ in range(2):
        halter.generate(model, tokenizer, ["One day"], adapter, max_new_tokens=1)
    assert said == ["note: this adapter was trained with alpaca; template='alpaca' asks it so"]
