"""Pictures decoded: what comes out against Pillow and transformers, and that no file ends more than itself."""

from __future__ import annotations

import io
import os
import signal
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import seeing
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb

from halter.pictures import decoding
from halter.pictures.process import PictureFault, PictureProcess, process


def rows(decoded):
    return decoded.pixels.permute(1, 2, 0).numpy()


def made(mode):
    image = Image.fromarray(seeing.pixels(3, 6, 5)).convert("RGBA")
    image.putalpha(Image.fromarray(seeing.pixels(4, 6, 5)[..., 0]))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "WEBP") for mode in ("RGB", "RGBA")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
        *((mode, "BMP") for mode in ("L", "RGB")),
        ("P", "GIF"),
    ],
)
def test_pixels_are_those_of_transformers(mode, kind):
    data = seeing.saved(made(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    wanted = convert_to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), return_numpy=True)
    assert (rows(process.decode(data)) == wanted).all()


def test_a_palette_with_a_transparent_colour_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    data = seeing.saved(image, "PNG", transparency=0)
    assert rows(process.decode(data)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bits_become_their_high_byte():
    grey = np.array([[0, 255, 256, 513, 65535]], np.uint16)
    assert rows(process.decode(seeing.saved(grey)))[0, :, 1].tolist() == [0, 0, 1, 2, 255]


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_heeded(turn):
    image = Image.fromarray(seeing.pixels(5, 4, 6))
    exif = image.getexif()
    exif[0x112] = turn
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(seeing.saved(image, exif=exif)))))
    found = rows(process.decode(seeing.saved(image, exif=exif)))
    assert found.shape == wanted.shape == ((6, 4, 3) if turn > 4 else (4, 6, 3)) and (found == wanted).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_picture_that_moves_the_first_frame_is_taken_and_told(kind):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue", "lime")]
    found = process.decode(seeing.saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert found.frames == 3 and found.pixels[:, 0, 0].tolist()[0] > 250 > 5 > found.pixels[2, 0, 0]
    assert process.decode(seeing.saved(frames[0], kind)).frames == 1


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=20)
def test_a_digest_is_of_size_and_pixels(height, width, seed):
    drawn = seeing.pixels(seed, height, width)
    wanted = sha256(f"{width} {height} ".encode() + drawn.tobytes()).hexdigest()
    assert process.decode(seeing.saved(drawn)).digest == wanted == process.decode(seeing.saved(drawn, "BMP")).digest
    other = drawn.copy()
    other[-1, -1, 2] ^= 1
    assert process.decode(seeing.saved(other)).digest != wanted
    if height != width:
        assert process.decode(seeing.saved(drawn.reshape(width, height, 3))).digest != wanted


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "PCX"])
def test_other_formats_are_refused(kind):
    with pytest.raises(PictureFault, match="no picture of a kind that is read"):
        process.decode(seeing.saved(seeing.pixels(0, 16, 16), kind))


def test_a_bomb_is_refused_before_it_is_decoded():
    process.decode(seeing.saved(seeing.pixels()))
    before = process.process.pid
    bomb = seeing.saved(Image.new("1", (9_000, 9_000)))
    assert len(bomb) < 1 << 18
    with pytest.raises(PictureFault, match="9000 x 9000 pixels, more than"):
        process.decode(bomb)
    assert process.process.pid == before


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_damage_ends_the_process_or_comes_out_as_anything_but_a_picture_or_a_fault(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
    whole = bytearray(seeing.saved(seeing.pixels(1, 12, 9), kind))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        found = process.decode(bytes(whole))
    except PictureFault as fault:
        assert str(fault)
    else:
        assert found.pixels.shape[0] == 3 and found.pixels.numel()
    assert rows(process.decode(seeing.saved(seeing.pixels(2)))).tolist() == seeing.pixels(2).tolist()


def changed(monkeypatch, tmp_path, *changes):
    """A process whose code is the true one but for these."""
    text = Path(decoding.__file__).read_text("utf-8")
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    file = tmp_path / "other_decoding.py"
    file.write_text(text, "utf-8")
    monkeypatch.setattr(decoding, "__file__", str(file))
    return PictureProcess()


def test_what_takes_too_long_ends_alone_and_the_next_has_a_new_process(monkeypatch, tmp_path):
    slow = ("    formats = readers()\n", "    formats = readers()\n    while data == b'slow':\n        pass\n")
    one = changed(monkeypatch, tmp_path, slow, ("SECONDS = 20.0", "SECONDS = 0.2"))
    good = seeing.saved(seeing.pixels())
    one.decode(good)
    first = one.process.pid
    one.decode(good)
    assert one.process.pid == first
    with pytest.raises(PictureFault, match="took more than"):
        one.decode(b"slow")
    assert (rows(one.decode(good)) == seeing.pixels()).all() and one.process.pid != first
    one.close()


def test_what_needs_too_much_memory_is_a_fault(monkeypatch, tmp_path):
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is read from /proc")
    one = changed(monkeypatch, tmp_path, ("MEMORY_BYTES = 3 << 29", "MEMORY_BYTES = 32 << 20"))
    with pytest.raises(PictureFault, match="needs more than 32 MiB|it is damaged|failed altogether"):
        one.decode(seeing.saved(Image.new("RGBA", (4000, 4000))))
    assert (rows(one.decode(seeing.saved(seeing.pixels()))) == seeing.pixels()).all()
    one.close()


def test_a_process_that_was_killed_is_started_again():
    good = seeing.saved(seeing.pixels())
    process.decode(good)
    os.kill(process.process.pid, signal.SIGKILL)
    process.process.wait()
    assert (rows(process.decode(good)) == seeing.pixels()).all()


def test_the_process_can_write_no_file(monkeypatch, tmp_path):
    if not Path("/proc/self/statm").exists():
        pytest.skip("forks")
    target = tmp_path / "written"
    writes = (
        "    formats = readers()\n",
        f"    formats = readers()\n    open({str(target)!r}, 'wb', 0).write(b'x' * 99)\n",
    )
    one = changed(monkeypatch, tmp_path, writes)
    with pytest.raises(PictureFault):
        one.decode(seeing.saved(seeing.pixels()))
    assert not target.exists() or not target.stat().st_size
    one.close()


def test_a_file_of_nothing_and_one_too_large_are_refused(monkeypatch):
    with pytest.raises(PictureFault, match="empty"):
        process.decode(b"")
    monkeypatch.setattr("halter.pictures.process.BYTES", 10)
    with pytest.raises(PictureFault, match="11 bytes, more than 10"):
        process.decode(b"x" * 11)
