"""Features of pictures: the same from the encoder, from memory and from disk, in bounds, never of another picture."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import seeing
import torch
from test_encoder import clip, kept, siglip

from halter.encoders.features import FeatureKind, FeatureStore
from halter.encoders.load import load_encoder
from halter.errors import Refusal
from halter.pictures.sources import PictureBytes


@dataclass(frozen=True)
class Seen:
    digest: str
    place: PictureBytes


def seen(seed):
    place = PictureBytes(seeing.saved(seeing.pixels(seed, 20, 24)))
    return Seen(place.decode().digest, place)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(kept(clip(), tmp_path_factory.mktemp("encoder") / "clip"))


def plain(encoder, kind, picture):
    pixels = encoder.prepare(picture.place.decode().pixels)[None]
    return kind.of(encoder, pixels)[0]


KINDS = [
    FeatureKind((-2,)),
    FeatureKind((1, 2, 3), "class"),
    FeatureKind((-1,), "all", "projected"),
    FeatureKind((-1,), "whole"),
]
SHAPES = [(16, 24), (1, 72), (17, 12), (1, 12)]


@pytest.mark.parametrize("kind, shape", [*zip(KINDS, SHAPES, strict=True)])
@pytest.mark.parametrize("bits", [None, 8])
def test_they_are_the_same_wherever_they_come_from(encoder, kind, shape, bits, tmp_path) -> None:
    pictures = [seen(0), seen(1), seen(0), seen(2)]
    store = FeatureStore(encoder, kind, bits=bits, folder=tmp_path)
    fresh = store.of(pictures)
    assert store.computed == 3 and all(one.shape == shape for one in fresh)
    again = store.of(pictures[::-1])[::-1]
    other = FeatureStore(encoder, kind, bits=bits, folder=tmp_path)
    alone = [other.of([one])[0] for one in pictures]
    assert store.computed == 3 and other.computed == 0
    for one, two, three, picture in zip(fresh, again, alone, pictures, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
        wanted = plain(encoder, kind, picture)
        bound = 0.0 if bits is None else float(wanted.abs().amax()) / 127 / 2 * (1 + 1e-5)
        assert float((one - wanted).abs().max()) <= bound


def test_what_the_kind_says_is_what_comes(encoder) -> None:
    one = seen(5)
    pixels = encoder.prepare(one.place.decode().pixels)[None]
    states = encoder.states(pixels, (0, 1, 2, 3))
    assert torch.equal(plain(encoder, KINDS[0], one), states[2][0, 1:])
    assert torch.equal(plain(encoder, KINDS[1], one), torch.cat([h[0, :1] for h in states[1:]], -1))
    assert torch.equal(plain(encoder, KINDS[2], one), encoder.projected(encoder.finished(states[3]))[0])
    assert torch.equal(plain(encoder, KINDS[3], one)[0], encoder.whole(states[3])[0])


def test_another_encoder_kind_or_width_shares_nothing(encoder, tmp_path) -> None:
    changed = load_encoder(kept(clip(hidden_act="gelu"), tmp_path / "other"))
    stores = [
        FeatureStore(encoder, KINDS[0], folder=tmp_path / "kept"),
        FeatureStore(encoder, KINDS[1], folder=tmp_path / "kept"),
        FeatureStore(encoder, KINDS[0], bits=8, folder=tmp_path / "kept"),
        FeatureStore(changed, KINDS[0], folder=tmp_path / "kept"),
    ]
    assert len({store.folder for store in stores}) == 4
    for store in stores:
        store.of([seen(0)])
        assert store.computed == 1


def test_memory_and_disk_have_bounds(encoder, tmp_path) -> None:
    each = 16 * 24 * 4
    store = FeatureStore(encoder, KINDS[0], folder=tmp_path, memory_bytes=3 * each, disk_bytes=10_000)
    pictures = [seen(number) for number in range(8)]
    for one in pictures:
        store.of([one])
        assert store._held.bytes <= 3 * each
        assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) <= 10_000
    store.of([pictures[-1], pictures[-2]])
    assert store.computed == 8
    store.of([pictures[0]])  # the one that was used longest ago
    assert store.computed == 9


def test_nothing_is_written_where_nothing_may_be(encoder, tmp_path) -> None:
    store = FeatureStore(encoder, KINDS[0], folder=tmp_path / "none", disk_bytes=0)
    store.of([seen(0)])
    assert not (tmp_path / "none").exists()


def test_a_damaged_file_is_made_anew(encoder, tmp_path) -> None:
    one = seen(0)
    (fresh,) = FeatureStore(encoder, KINDS[0], folder=tmp_path).of([one])
    (file,) = tmp_path.rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    for spoilt in (data[:-1] + bytes([data[-1] ^ 1]), data[:40], b""):
        file.write_bytes(spoilt)
        store = FeatureStore(encoder, KINDS[0], folder=tmp_path)
        assert torch.equal(store.of([one])[0], fresh) and store.computed == 1
    assert FeatureStore(encoder, KINDS[0], folder=tmp_path)._read(one.digest) is not None


def test_a_picture_that_is_another_one_is_refused(encoder, tmp_path) -> None:
    with pytest.raises(Refusal, match="picture-changed"):
        FeatureStore(encoder, KINDS[0], folder=tmp_path).of([Seen(seen(0).digest, seen(1).place)])


def test_an_encoder_without_a_class_token_says_so(tmp_path) -> None:
    ours = load_encoder(kept(siglip(), tmp_path / "siglip"))
    with pytest.raises(Refusal, match="encoder-tokens"):
        FeatureStore(ours, FeatureKind(tokens="class"), folder=tmp_path).of([seen(0)])
    (found,) = FeatureStore(ours, FeatureKind(), folder=tmp_path).of([seen(0)])
    assert found.shape == (16, 24)
