"""Adapters of routed experts: against autograd through transformers' model, a dense formula and merged weights."""

from __future__ import annotations

import math

import pytest
import tiny
import tiny_llama4
import torch

from halter.adapters.adapter import adapt
from halter.adapters.loading import load_adapter
from halter.adapters.mixed import Mixed
from halter.contract.experts import Reach
from halter.contract.registry import find, names
from halter.data.pack import Batch
from halter.errors import Refusal
from halter.methods.full import Full
from halter.methods.lora import Lora
from halter.model.cache import Cache
from halter.model.decoder import Decoder
from halter.model.experts import EXPERTS
from halter.model.passes import Pass
from halter.model.reports import counting_rows
from halter.model.segments import Segments
from halter.parts.experts import Experts
from halter.training.schedule import make as make_schedule
from halter.training.step import take_step
from halter.training.trainee import Trainee

MOE = {"experts": 4, "layers": 3, "moe_layers": (1, 2), "rotated": (True, False, True), "chunked": (True, False, True)}
G = torch.Generator().manual_seed(0)
TOKENS = torch.randint(3, 96, (2, 17), generator=G)
KIN = [name for name in names() if hasattr(find(name), "experts")]
CHOICES = [
    {"experts": "all"},
    {"experts": "0,2", "rank_pattern": {"experts.gate_up_proj.2": 3, "experts.down_proj": 1}},
    {"experts": {"1": [3], "2": [0, 1]}, "rslora": True},
    {"experts": "all", "share_a": True, "target_parameters": ("experts.gate_up_proj",)},
]


def moe(dtype=torch.float64, seed=0, **changes):
    return tiny.decoder(tiny.config(**(MOE | changes)), dtype, seed)


def moved(model, name="lora", seed=1, **options):
    if name == "lora":
        options = {"r": 2, "alpha": 6.0, "target_modules": ()} | options
    adapter = adapt(model, name, seed=seed, **options)
    tiny.jitter(adapter, seed=seed)
    return adapter


def at_experts(adapter):
    return [slot for slot in adapter.slots if isinstance(slot.piece, Experts)]


@pytest.mark.parametrize("options", CHOICES, ids=str)
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_are_those_of_transformers_and_of_unused_experts_none(options, count):
    model = moe(experts_per_token=count)
    adapter = moved(model, **options)
    other = tiny.peer(model).requires_grad_(False)
    weights, theirs = dict(other.named_parameters()), {}
    for slot in at_experts(adapter):
        parts = []
        for expert in range(4):
            own = slot.piece.pieces.get(expert)
            if own is None:
                parts.append(weights[slot.path][expert])
                continue
            pair = [theirs.setdefault(id(p), p.detach().double().requires_grad_()) for p in (own.a, own.b)]
            r = len(own.a)
            scale = 6.0 / (r**0.5 if options.get("rslora") else r)
            parts.append(weights[slot.path][expert] + scale * (pair[1] @ pair[0]).t())
        weights[slot.path] = torch.stack(parts)
    want = torch.func.functional_call(other, weights, (TOKENS,)).logits
    weigh = torch.randn(want.shape, dtype=torch.float64, generator=G)
    (want * weigh).sum().backward()
    got = model(TOKENS, adapter=adapter)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    (got * weigh).sum().backward()
    assert len(theirs) == len(list(adapter.parameters()))
    for name, parameter in adapter.trainable().items():
        expected = theirs[id(parameter)].grad
        if parameter.grad is None:
            assert not expected.any(), name
        else:
            largest = float(expected.abs().max())
            assert largest > 0, name
            torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-4, atol=1e-4 * largest, msg=name)
    assert any(parameter.grad is not None for parameter in adapter.parameters())


def test_only_experts_with_rows_compute_anything():
    """What an adapter of an expert without rows holds is never read."""
    model = moe()
    adapter = moved(model, experts="all")
    row, heard = TOKENS[:1, :2], []
    hooks = [
        model.layers[layer].experts_in.register_forward_pre_hook(lambda _, args: heard.append(args[0].counts))
        for layer in (1, 2)
    ]
    want = model(row, adapter=adapter)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for slot in at_experts(adapter):
            for expert, piece in slot.piece.pieces.items():
                if not heard[slot.layer - 1][expert]:
                    piece.a.fill_(float("nan"))
    assert torch.equal(model(row, adapter=adapter), want)


def batch_of(tokens):
    targets = torch.cat((tokens[1:], torch.tensor([-100])))
    return Batch(tokens=tokens, targets=targets, lengths=[len(tokens)], prompt_lengths=[1], rows=[0])


def trainee_of(adapter):
    optimizer = torch.optim.AdamW(adapter.groups(1e-2, 0.1), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Trainee(adapter, optimizer, make_schedule("constant", 10, 0), scaler, 0.0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_expert_without_rows_in_a_step_is_not_touched(checkpointing):
    """Neither by the momentum of earlier steps nor by weight decay; its optimizer counts no step."""
    model = moe()
    adapter = moved(model, experts="all")
    one = trainee_of(adapter)
    take_step(model, [one], [[batch_of(TOKENS.flatten())]], checkpointing)
    moments = {name: one.optimizer.state[p]["step"].item() for name, p in adapter.trainable().items()}
    before = {name: p.detach().clone() for name, p in adapter.trainable().items()}
    heard = {}
    hooks = [
        model.layers[layer].experts_in.register_forward_pre_hook(
            lambda _, args, layer=layer: heard.__setitem__(layer, args[0].counts)
        )
        for layer in (1, 2)
    ]
    assert take_step(model, [one], [[batch_of(TOKENS[0, :3])]], checkpointing)[0].applied
    for hook in hooks:
        hook.remove()
    still = set()
    for slot in at_experts(adapter):
        for expert, piece in slot.piece.pieces.items():
            for kind, parameter in (("a", piece.a), ("b", piece.b)):
                name = f"{slot.path}.{expert}.{piece.saved_names[kind]}"
                used = heard[slot.layer][expert] > 0
                assert torch.equal(parameter, before[name]) != used, name
                assert one.optimizer.state[parameter]["step"].item() == moments[name] + used
                still |= set() if used else {expert}
    assert still


def test_rows_are_counted_once_where_layers_are_computed_again():
    model = moe()
    one = trainee_of(moved(model, experts="all"))
    with counting_rows() as counts:
        take_step(model, [one], [[batch_of(TOKENS.flatten())]], True)
    assert {layer: sum(own) for layer, own in counts.items()} == {1: 34, 2: 34}


def test_each_expert_drops_what_its_own_key_says():
    model = moe()
    adapter = moved(model, experts="all", dropout=0.5)
    acts = adapter.bind(model, Segments.packed([17, 17]), key=3)
    parts = [
        part
        for layer in (1, 2)
        for place in ("experts_in", "experts_out")
        for part in getattr(acts.layers[layer], place).parts
    ]
    assert len({part.key for part in parts}) == len(parts) == 16 and all(part.rate == 0.5 for part in parts)
    again = adapter.bind(model, Segments.packed([17, 17]), key=3)
    assert [p.key for p in again.layers[1].experts_in.parts] == [p.key for p in parts[:4]]


def folded(model, adapter):
    """A model with the adapter in its weights."""
    after = Decoder(model.config, model.dtype)
    for place, module in model.places():
        weight, bias = adapter.fold(place.path, module.weight().double(), None)
        assert bias is None
        after.set_tensor(place.weight_name, weight.to(model.dtype))
    return after


@torch.no_grad()
@pytest.mark.parametrize("name", KIN)
def test_every_kin_is_its_merged_weights_and_obeys_the_laws_of_batches(name):
    """On all experts and on some: merged weights, mixed rows, decoding, and folders of one."""
    model = moe()
    one = moved(model, name, 1, experts="all", **({"r": 2} if name == "lora" else {}))
    other = moved(model, name, 2, experts=[0, 3])
    alone = [model(TOKENS, adapter=one), model(TOKENS, adapter=other), model(TOKENS)]
    assert all(float((alone[i] - alone[2]).abs().max()) > 1e-3 for i in (0, 1))
    if not any(
        piece.fold(torch.zeros(4, *slot.at.shape[1:], dtype=torch.float64), None)[1] is not None
        for adapter in (one,)
        for slot in at_experts(adapter)
        for piece in [slot.piece]
    ):
        for adapter, want in ((one, alone[0]), (other, alone[1])):
            torch.testing.assert_close(folded(model, adapter)(TOKENS), want, rtol=1e-5, atol=1e-5)
    rows = torch.cat((TOKENS, TOKENS))
    for owners in ([0, 1, -1, 0], [-1, 0, 1, 1]):
        got = model(rows, adapter=Mixed([one, other], owners))
        for i, owner in enumerate(owners):
            torch.testing.assert_close(got[i], alone[owner][i % 2], rtol=1e-6, atol=1e-6)
    cache, made = Cache(model.config, 2, 17, torch.float64), []
    for start, end in ((0, 9), (9, 10), (10, 17)):
        segments = cache.segments([end - start] * 2)
        acts = one.bind(model, segments)
        hidden = model.hidden(Pass(TOKENS[:, start:end].flatten(), segments, acts, cache=cache))
        made.append(model.head(hidden, acts).unflatten(0, (2, -1)))
    torch.testing.assert_close(torch.cat(made, 1), alone[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in KIN if name != "full"])  # whose streamed layers are refused
def test_streamed_and_computed_again_gradients_are_the_same(name):
    found = []
    for streamed in (False, True):
        model = moe()
        if streamed:
            model.stream_layers()
        adapter = moved(model, name, experts=[1, 2])
        segments = Segments.packed([17, 17])
        hidden = model.hidden(Pass(TOKENS.flatten(), segments, adapter.bind(model, segments), checkpointing=streamed))
        hidden.square().mean().backward()
        found.append([parameter.grad for parameter in adapter.parameters()])
    for plain, again in zip(*found, strict=True):
        assert (plain is None) == (again is None) and (plain is None or torch.equal(plain, again))


def test_two_methods_at_one_expert_are_merged_together():
    model = moe()
    adapter = adapt(model, [Lora(r=2, target_modules=(), experts="all"), find("ia3")(experts=[0, 1, 2])])
    tiny.jitter(adapter)
    with torch.no_grad():
        want = model(TOKENS, adapter=adapter)
        torch.testing.assert_close(folded(model, adapter)(TOKENS), want, rtol=1e-5, atol=1e-5)


def test_which_experts_are_chosen_does_not_change_how_they_begin():
    model = moe()
    some, every = (adapt(model, "lora", experts=which, seed=5) for which in ([2], "all"))
    for one, other in zip(at_experts(some), at_experts(every), strict=True):
        assert torch.equal(one.piece.pieces[2].a, other.piece.pieces[2].a)
        assert not torch.equal(other.piece.pieces[1].a, other.piece.pieces[2].a)


GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"


@pytest.mark.parametrize(
    ("options", "experts", "modules"),
    [
        ({}, [], 8),
        ({"experts": "all"}, [GATE_UP, DOWN], 8),
        ({"target_modules": [], "experts": [1]}, [GATE_UP, DOWN], 0),
        ({"target_modules": ["router"]}, [], 1),
        ({"target_modules": r".*shared_expert.*"}, [], 3),
        ({"target_modules": ["down_proj"]}, [], 1),  # a module's name means modules
        ({"target_modules": [DOWN, "q_proj"]}, [DOWN], 1),
        ({"target_modules": r".*\.experts\..*"}, [GATE_UP, DOWN], 0),
        ({"target_modules": ["q_proj"], "target_parameters": [GATE_UP]}, [GATE_UP], 1),
        ({"target_modules": ["q_proj"], "experts": "all", "exclude_modules": [DOWN]}, [GATE_UP], 1),
        ({"experts": "all", "exclude_modules": ["down_proj"]}, [GATE_UP, DOWN], 7),
        ({"experts": "all", "layers": [0]}, [], 7),
    ],
    ids=str,
)
def test_what_options_mean(options, experts, modules):
    shape = tiny.config(experts=4)
    layer = 0 if options.get("layers") else 1
    method = Lora(**options)
    method.check(shape)
    built = method.build(shape, layer)
    kinds = {name: shape.layout.at(layer, name) for name in built}
    assert [p.path.split("feed_forward.")[-1] for p in kinds.values() if p.kind == EXPERTS] == experts
    assert sum(place.kind != EXPERTS for place in kinds.values()) == modules


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"experts": [4]}, "expert 4"),
        ({"experts": "some"}, "experts 'some'"),
        ({"experts": "most-used 9"}, "experts 'most-used 9'"),
        ({"experts": {"0": [1]}}, "layer 0, which has none"),
        ({"experts": []}, "no expert at all"),
        ({"target_parameters": ["q_proj.weight"]}, "q_proj.weight"),
        ({"share_a": True}, "share_a: no routed expert is adapted"),
        ({"experts": "all", "lora_bias": True}, "lora_bias: an expert's matrix has no bias"),
        (
            {"experts": "all", "share_a": True, "rank_pattern": {f"{DOWN}.1": 3}},
            "share_a with several ranks at one place",
        ),
        ({"target_modules": ["experts.up_proj"]}, "experts.up_proj"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(options, found):
    with pytest.raises(Refusal) as caught:
        Lora(**options).check(tiny.config(experts=4))
    assert found in caught.value.found


def test_a_dense_model_has_no_experts():
    with pytest.raises(Refusal, match="this model has no routed experts"):
        adapt(tiny.decoder(), "lora", experts="all")
    for name in set(names()) - set(KIN):
        assert not {"experts", "target_parameters"} & set(find(name).__dataclass_fields__)


def test_the_most_used_are_as_many_before_it_is_known_which():
    shape = tiny.config(experts=4)
    place = shape.layout.of(EXPERTS)[0]
    assert Reach.of(Lora(experts="most-used 2")).numbers(place) == [0, 1]
    assert Reach.of(Lora(experts="3, 1")).numbers(place) == [1, 3]


def test_what_is_adapted_and_left_is_stated(monkeypatch):
    said = []
    monkeypatch.setattr("halter.adapters.adapter.tell_once", said.append)
    model = moe()
    adapt(model, "lora", experts=[0, 3], target_modules=())
    whole = model.config.num_parameters
    experts = 2 * 4 * 3 * 32 * 24
    assert said[0].startswith(
        f"Adapted: experts.gate_up_proj, experts.down_proj (experts 0, 3 of 4): {experts / 2 / whole:.0%} of the base's"
    )
    assert f"routed experts {experts / 2 / whole:.0%}." in said[0] and "method.experts: all" not in said[0]
    adapt(model, "full")
    assert "Left alone" not in said[1]


EVERY = (
    "embed_tokens, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, shared_expert.gate_proj, "
    "shared_expert.up_proj, shared_expert.down_proj, router"
)
STACKS, TOWER = "experts.gate_up_proj, experts.down_proj", "vision linear, q_proj, k_proj, v_proj, o_proj, fc1, fc2"
ROWS = "vision class_embedding, positional_embedding_vlm"


@pytest.mark.parametrize(
    ("methods", "adapted", "left"),
    [
        (
            [{"target_modules": ["vision"]}],
            TOWER,
            f"language {EVERY}, {STACKS}, lm_head; {ROWS}; projector linear_1",
        ),
        (
            [{"target_modules": ["language"], "experts": [0, 3]}],
            f"language {EVERY.removeprefix('embed_tokens, ')}; {STACKS} (experts 0, 3 of 4)",
            f"language embed_tokens; {STACKS} (the others); lm_head; "
            f"{TOWER.replace('linear', 'linear, class_embedding, positional_embedding_vlm')}; projector linear_1",
        ),
        (
            [{"target_modules": r".*(vision|layers.0).*\.q_proj"}, {"target_modules": (), "experts": {"3": [1]}}],
            f"language q_proj (in 1 of 4 layers); {STACKS} (experts 1 of 4, in 1 of 2 layers); vision q_proj",
            f"language {EVERY.split(', q_proj')[0]}{EVERY.split('q_proj')[1].split(', shared')[0]}; "
            f"q_proj (in 3 of 4 layers); shared{EVERY.partition('shared')[2]}; {STACKS} (the others); lm_head; "
            "vision linear, class_embedding, positional_embedding_vlm, k_proj, v_proj, o_proj, fc1, fc2; "
            "projector linear_1",
        ),
        (
            [{"target_modules": (), "experts": [0, 1]}, {"target_modules": (), "experts": [1, 2, 3]}],
            f"language {STACKS}",
            f"language {EVERY}, lm_head; {TOWER.replace('linear', 'linear, class_embedding, positional_embedding_vlm')}"
            "; projector linear_1",
        ),
        (
            [{"target_modules": (), "experts": {"1": [0], "3": [1, 2]}}],
            f"language {STACKS} (2 of 4 experts, others in other layers)",
            None,
        ),
    ],
    ids=str,
)
def test_a_name_is_told_with_its_part_of_the_model_and_how_much_of_it_is_meant(methods, adapted, left, monkeypatch):
    """In a model that sees, `q_proj` is the tower's too; and nothing stands in both lists without a word on how."""
    said = []
    monkeypatch.setattr("halter.adapters.adapter.tell_once", said.append)
    model = tiny_llama4.made(tiny_llama4.config())
    adapter = adapt(model, [Lora(r=2, **one) for one in methods])
    (line,) = said
    whole, sizes = model.config.num_parameters, {place.path: math.prod(place.shape) for place in model.layout}
    share = {}
    for slot in adapter.slots:
        numbers = slot.piece.pieces if isinstance(slot.piece, Experts) else [0]
        share.setdefault(slot.path, set()).update(numbers)
    some = {path: len(own) / (4 if "experts." in path else 1) * sizes[path] for path, own in share.items()}
    first, rest = line.split(" Left alone: ")
    assert first == f"Adapted: {adapted}: {sum(some.values()) / whole:.0%} of the base's numbers."
    assert left is None or rest.startswith(f"{left}: ")


@pytest.mark.parametrize("methods", [[Full()], [Full(("lm_head",))]], ids=str)
def test_a_table_that_is_the_head_too_counts_once(methods, monkeypatch):
    said = []
    monkeypatch.setattr("halter.adapters.adapter.tell_once", said.append)
    model = moe(tied=True)
    adapter = adapt(model, methods)
    share = adapter.num_trainable / model.config.num_parameters
    assert f": {share:.0%} of the base's numbers." in said[0]
    left = said[0].partition("Left alone: ")[2]
    assert "embed_tokens" not in left and "lm_head" not in left


def test_a_folder_of_some_experts_is_read_as_it_was(tmp_path):
    model = moe()
    for number, options in enumerate(CHOICES):
        adapter = moved(model, **options)
        adapter.save(tmp_path / str(number))
        again = load_adapter(tmp_path / str(number), model)
        assert again.methods == adapter.methods
        assert torch.equal(model(TOKENS, adapter=again), model(TOKENS, adapter=adapter))
