"""Answers that are held to a form: whatever the model, its temperature and its tokenizer, a finished one has it; rows
beside it never know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
import tiny
import tiny_tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halter.adapters.adapter import adapt
from halter.errors import Refusal
from halter.generation import choosing
from halter.generation.engine import Engine, generate
from halter.generation.grammars import grammar as grammars
from halter.generation.grammars.forms import AnswerForm, Function, Schema
from halter.generation.options import GenerationOptions
from halter.generation.prompts import EncodedPrompt
from halter.generation.requests import Request
from halter.generation.streaming import Generation
from halter.model.decoder import Decoder
from halter.playground import base_folder
from halter.pretrained.load import load
from halter.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")
Asked = tuple[Decoder, Tokenizer]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "日本"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def playground() -> Asked:
    model, tokenizer = load(base_folder())
    return model, tokenizer


@pytest.fixture(scope="module", params=["llama3", "llama2"])
def tiny_one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama3":
        tiny_tokenizers.llama3(folder)
    else:
        tiny_tokenizers.write(folder, tiny_tokenizers.sentencepiece_like("normalizer"), eos_token="</s>")
    tokenizer = Tokenizer.from_folder(folder)
    # More rows than the vocabulary has, as many a checkpoint.
    return tiny.decoder(tiny.config(vocab_size=tokenizer.vocab_size + 9, dim=64, head_dim=16)), tokenizer


def prompt(asked: Asked, text: str = "The dog", stops: Sequence[int] = ()) -> EncodedPrompt:
    tokenizer = asked[1]
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return EncodedPrompt((*opening, *tokenizer.encode(text)), False, tuple(stops))


def held(asked: Asked, form: AnswerForm | None, count: int = 200, draws: int = 0, **options: Any) -> Request:
    grammar = None if form is None else grammars.grammar_of(asked[1], form)
    chosen = GenerationOptions(max_new_tokens=count, **options)
    return Request(prompt(asked), chosen, None, draws, grammar)


def answered(asked: Asked, requests: Sequence[Request]) -> list[Generation]:
    engine = Engine(*asked)
    results = {piece.row: piece.result for piece in engine.run(requests) if piece.result is not None}
    return [results[row] for row in sorted(results)]


def scalars() -> st.SearchStrategy[dict[str, Any]]:
    low = st.integers(-30, 30)
    return st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.just({"type": "number"}),
        st.tuples(low, st.integers(0, 9)).map(lambda r: {"type": "integer", "minimum": r[0], "maximum": r[0] + r[1]}),
        st.integers(0, 6).map(lambda most: {"type": "string", "maxLength": most}),
        st.sampled_from([r"^[a-f]{2,4}$", r"^(x|yz)+$", r"^\d{3}-\d{2}$"]).map(
            lambda p: {"type": "string", "pattern": p, "maxLength": 12}
        ),
        st.sampled_from(["date", "time", "uuid", "ipv4"]).map(lambda f: {"type": "string", "format": f}),
        st.lists(
            st.one_of(st.integers(-5, 5), st.text(max_size=4), st.booleans(), st.none()), min_size=1, max_size=3
        ).map(lambda values: {"enum": values}),
        st.one_of(st.text(max_size=5), st.integers(-9, 9)).map(lambda value: {"const": value}),
    )


def wider(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
    objects = st.tuples(st.dictionaries(names, inner, max_size=3), st.randoms(use_true_random=False)).map(
        lambda made: {
            "type": "object",
            "properties": made[0],
            "required": [name for name in made[0] if made[1].random() < 0.6],
            "additionalProperties": False,
        }
    )
    arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda made: {"type": "array", "items": made[0], "minItems": made[1], "maxItems": made[1] + made[2]}
    )
    return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda many: {"anyOf": many}))


SCHEMAS = st.recursive(scalars(), wider, max_leaves=6)


def valid(text: str, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


OPTIONS: list[dict[str, Any]] = [{}, {"top_p": 0.9, "repetition_penalty": 1.3}, {"top_k": 3}, {"min_p": 0.2}]


def check_schema(asked: Asked, schema: Any, temperature: float, seed: int) -> None:
    form = AnswerForm(Schema(schema))
    kinds = enumerate(OPTIONS)
    requests = [held(asked, form, 60, at, temperature=temperature, seed=seed, **kind) for at, kind in kinds]
    for answer in answered(asked, requests):
        assert answer.finish_reason in ("stop", "length"), answer.error
        if answer.finish_reason == "stop":
            valid(answer.text, schema)


@settings(max_examples=15, deadline=None)
@given(schema=SCHEMAS, temperature=st.sampled_from([0.0, 0.7, 2.0]), seed=st.integers(0, 99))
def test_a_finished_answer_is_of_its_schema(playground: Asked, schema: Any, temperature: float, seed: int) -> None:
    check_schema(playground, schema, temperature, seed)


@pytest.mark.nightly
@settings(max_examples=400, deadline=None)
@given(schema=SCHEMAS, temperature=st.sampled_from([0.0, 0.7, 2.0]), seed=st.integers(0, 99))
def test_many_schemas(playground: Asked, schema: Any, temperature: float, seed: int) -> None:
    check_schema(playground, schema, temperature, seed)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_kind_of_tokenizer(tiny_one: Asked, temperature: float) -> None:
    form = AnswerForm(Schema(PERSON))
    asked = [held(tiny_one, form, 400, draws, temperature=temperature, seed=4) for draws in range(6)]
    told = answered(tiny_one, asked)
    assert all(one.finish_reason == "stop" for one in told)
    for one in told:
        valid(one.text, PERSON)
        assert not {control.id for control in tiny_one[1].controls} & set(one.tokens)


def test_generate_takes_a_schema(tiny_one: Asked) -> None:
    told = generate(*tiny_one, ["The dog", "Once"], json_schema=PERSON, max_new_tokens=400, temperature=1.0, n=2)
    for one in told:
        valid(one.text, PERSON)
    with pytest.raises(Refusal, match="no JSON"):
        generate(*tiny_one, ["The dog"], json_schema={"enum": {1}})
    with pytest.raises(Refusal, match="Unimplemented keys") as refused:
        generate(*tiny_one, ["The dog"], json_schema={"not": {}})
    assert refused.value.id == "schema-unusable" and refused.value.where == "json_schema"


def test_an_answer_of_any_length_ends_by_a_stop_id_where_it_may(tiny_one: Asked) -> None:
    """A whole number is never complete by itself: an end must come, and may come after a digit only."""
    tokenizer = tiny_one[1]
    (end, *_) = tokenizer.stop_ids
    form = AnswerForm(Schema({"type": "integer"}))
    likely = {"logit_bias": {end: 100.0}, "temperature": 0.0}
    (one,) = answered(tiny_one, [held(tiny_one, form, **likely)])
    assert one.stop == end and json.loads(one.text) in range(10) or int(one.text) is not None
    assert end not in one.tokens
    never = {**likely, "ignore_stop_ids": True, "logit_bias": {}}
    (cut,) = answered(tiny_one, [held(tiny_one, form, 30, **never)])
    assert cut.finish_reason == "length" and len(cut.tokens) == 30
    (closed,) = answered(tiny_one, [held(tiny_one, AnswerForm(Schema({"const": 12})), 30, **never)])
    assert (closed.text.strip(), closed.finish_reason, closed.stop) == ("12", "stop", None)


def test_a_control_token_spells_nothing(tiny_one: Asked) -> None:
    """Its name is text that a JSON string may hold, and the token is none of it."""
    tokenizer = tiny_one[1]
    control = max(tokenizer.controls, key=lambda one: len(one.text) if one.id not in tokenizer.stop_ids else 0)
    form = AnswerForm(Schema({"type": "string", "minLength": 40, "maxLength": 60}))
    (one,) = answered(tiny_one, [held(tiny_one, form, 200, logit_bias={control.id: 100.0})])
    assert one.finish_reason == "stop" and control.id not in one.tokens


def test_a_complete_form_at_the_last_token_is_no_cut(tiny_one: Asked) -> None:
    form = AnswerForm(Schema(PERSON))
    (whole,) = answered(tiny_one, [held(tiny_one, form, 400)])
    (same,) = answered(tiny_one, [held(tiny_one, form, len(whole.tokens))])
    assert same == whole and same.finish_reason == "stop"
    (cut,) = answered(tiny_one, [held(tiny_one, form, len(whole.tokens) - 1)])
    assert cut.finish_reason == "length" and whole.text.startswith(cut.text)


def test_rows_beside_a_form_keep_their_bits(playground: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batch with and without forms in it, beside free rows and another adapter's: what is drawn and told of
    the free rows is the same to the bit."""
    model, tokenizer = playground
    adapter = adapt(model, "lora", seed=3)
    tiny.jitter(adapter, 0.1, 4)
    nested = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}
    grammar = grammars.grammar_of(tokenizer, AnswerForm(Schema(nested)))
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"presence_penalty": 1.0},
    ]

    def run(with_forms: bool) -> tuple[list[Any], list[Generation]]:
        seen = []
        own = choosing.draw

        def drawn(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
            seen.append(logits.clone())
            return own(logits, *rest)

        monkeypatch.setattr(choosing, "draw", drawn)
        free = [
            Request(
                prompt(playground, text),
                GenerationOptions(max_new_tokens=12, ignore_stop_ids=True, logprobs=2, seed=1, **kind),
                who,
            )
            for text in ("The dog", "Good morning")
            for who, kind in zip((None, adapter, None, adapter), kinds, strict=True)
        ]
        # These are drawn the same token whatever they may not: the cache of the whole batch stays equal, too.
        forced = GenerationOptions(max_new_tokens=12, ignore_stop_ids=True, logit_bias={BRACKET: 100.0})
        also = [Request(prompt(playground), forced, who, 0, grammar if with_forms else None) for who in (None, adapter)]
        found = answered(playground, [free[0], also[0], *free[1:], also[1]])
        monkeypatch.setattr(choosing, "draw", own)
        return seen, [one for at, one in enumerate(found) if at not in (1, len(found) - 1)]

    (BRACKET,) = [id for id in range(tokenizer.vocab_size) if tokenizer.piece(id) == b"["]
    with_forms, told = run(True)
    without, plain = run(False)
    assert told == plain
    differing = 0
    for one, other in zip(with_forms, without, strict=True):
        same = [torch.equal(a, b) for a, b in zip(one, other, strict=True)]
        differing += same.count(False)
        assert same.count(False) <= 2
    assert differing  # the forms did bar something


def test_a_form_alone_and_in_company_answers_alike(playground: Asked) -> None:
    form = AnswerForm(Schema(PERSON))
    alone = [
        answered(playground, [held(playground, form, 60, draws=at, temperature=1.0, seed=2)])[0] for at in range(3)
    ]
    free = [held(playground, None, 30, draws=at, temperature=1.0, seed=8) for at in range(4)]
    mixed = [held(playground, form, 60, draws=at, temperature=1.0, seed=2) for at in range(3)]
    both = answered(playground, [free[0], mixed[0], free[1], mixed[1], free[2], mixed[2], free[3]])
    assert [both[1].tokens, both[3].tokens, both[5].tokens] == [one.tokens for one in alone]
    assert [both[0], both[2], both[4], both[6]] == answered(playground, free)


def test_a_fault_of_a_form_ends_its_row_alone(playground: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    form = AnswerForm(Schema({"type": "array", "items": {"type": "string"}, "minItems": 50}))
    free = [held(playground, None, 20, draws=at, temperature=1.0, seed=8) for at in range(2)]
    want = answered(playground, free)
    for name in ("allowed", "take"):
        own = getattr(grammars.Constraint, name)
        calls = []

        def fails(constraint: Any, value: int) -> Any:
            calls.append(1)  # noqa: B023
            if len(calls) == 5:  # noqa: B023
                raise grammars.FormFault("no more")
            return own(constraint, value)  # noqa: B023

        monkeypatch.setattr(grammars.Constraint, name, fails)
        engine = Engine(*playground)
        numbers = [engine.add(one) for one in (free[0], held(playground, form, 40), free[1])]
        ends = {}
        while engine.busy:
            ends |= {piece.row: piece.result for piece in engine.step() if piece.result is not None}
        monkeypatch.undo()
        assert [ends[numbers[0]], ends[numbers[2]]] == want
        broken = ends[numbers[1]]
        assert broken.finish_reason == "error" and broken.error == "no more" and len(broken.tokens) == 4


def test_a_form_that_no_token_goes_on_with(playground: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(*playground)
    request = held(playground, AnswerForm(Schema(PERSON)), 40)
    assert request.grammar is not None
    constraint = request.grammar.begin([])
    monkeypatch.setattr(constraint, "_vocab_size", 0)
    with pytest.raises(grammars.FormFault, match="no token"):
        constraint.allowed(engine.model.config.vocab_size)
    with pytest.raises(grammars.FormFault):
        request.grammar.begin([]).take(3)  # not allowed: the library's error stays with this answer
    assert request.grammar.begin([]).allowed(2048).any()


def test_a_stop_string_still_ends_an_answer(playground: Asked) -> None:
    form = AnswerForm(Schema(PERSON))
    (one,) = answered(playground, [held(playground, form, 60, stop=('"age"',))])
    assert one.finish_reason == "stop" and one.stop == '"age"' and "age" not in one.text


CLOSED = {"type": "object", "additionalProperties": False}
ADDS = {"properties": {"a": {"$ref": "#/$defs/N"}}, "required": ["a"], "$defs": {"N": {"enum": [1, 2, 3]}}}
FUNCTIONS = (
    Function("add", Schema({**CLOSED, **ADDS}, "add")),
    Function("now", Schema({**CLOSED, "properties": {}}, "now")),
)


def test_calls_and_answers_beside_them(playground: Asked) -> None:
    kinds = set()
    form = AnswerForm(Schema({"type": "boolean"}), FUNCTIONS, several=True)
    (more,) = [id for id in range(playground[1].vocab_size) if playground[1].piece(id) == b";"]
    biases = [{}, {more: 9.0}]
    asked = [held(playground, form, 99, at, temperature=2.0, logit_bias=biases[at % 2]) for at in range(20)]
    for one in answered(playground, asked):
        if one.finish_reason != "stop":
            continue
        if one.text in ("true", "false"):
            kinds.add("answer")
            continue
        calls = [json.loads(call) for call in one.text.split(";")]
        kinds.add(min(len(calls), 2))
        for call in calls:
            (function,) = [each for each in FUNCTIONS if each.name == call["name"]]
            assert list(call) == ["name", "parameters"]
            jsonschema.validate(call["parameters"], function.parameters.given)
    assert kinds == {"answer", 1, 2}


def chain(length: int) -> dict[str, Any]:
    """A schema that overflows the stack of whoever follows its references."""
    links = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}]} for at in range(length)}
    return {"$defs": {**links, f"d{length}": {"type": "object"}}, "$ref": "#/$defs/d0"}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objct"}, "Invalid type: objct"),
        ({"not": {}}, r'Unimplemented keys: \["not"\]'),
        ({"x-guidance": {"lenient": True}, "not": {}}, "Unimplemented keys"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"$ref": "#"}, "no answer satisfies it"),
        ({"$ref": "http://127.0.0.1/x"}, "does not fetch"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "greater than maximum"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(30)]}, "too large"),
        (chain(1200), "takes more than"),
        (nested(40), "more than 32 brackets"),
        ({"enum": ["x" * 70_000]}, "longer than 65536 bytes"),
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_what_is_refused_and_why(playground: Asked, schema: Any, why: str) -> None:
    for _ in range(2):  # once tried, once remembered
        with pytest.raises(Refusal, match=why) as refused:
            grammars.grammar_of(playground[1], AnswerForm(Schema(schema, "response_format")))
        assert refused.value.id == "schema-unusable" and refused.value.where == "response_format"
        assert len(refused.value.what) < 400
    assert grammars.grammar_of(playground[1], AnswerForm(Schema(PERSON)))  # the process that tries is there again


def test_grammars_are_kept_and_the_oldest_go(playground: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = playground[1]
    monkeypatch.setattr(grammars, "KEPT", 2)
    of = [grammars.grammar_of(tokenizer, AnswerForm(Schema({"const": at}))) for at in range(3)]
    assert grammars.grammar_of(tokenizer, AnswerForm(Schema({"const": 2}))) is of[2]
    assert grammars.grammar_of(tokenizer, AnswerForm(Schema({"const": 0}))) is not of[0]
    assert len({one.digest for one in of}) == 3


def test_words_of_a_schema_never_become_grammar(playground: Asked) -> None:
    odd = 'x"\nstart: /.*/\n'
    schema = {**CLOSED, "properties": {odd: {"const": odd}}, "required": [odd]}
    form = AnswerForm(None, (Function("f", Schema(schema)),))
    (one,) = answered(playground, [held(playground, form, 300)])
    assert json.loads(one.text) == {"name": "f", "parameters": {odd: odd}}
