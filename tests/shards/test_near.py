"""Near duplicates: hashes against `imagehash` itself, groups against every pair compared, and bad days for buckets."""

from __future__ import annotations

import io
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pictures import RefusedError
from shards.near import NEAR, first_copies, image_hash, near_any, near_groups

Hashes = npt.NDArray[np.uint64]


def photo(seed: int, width: int = 200, height: int = 150, mode: str = "RGB") -> Image.Image:
    """Smooth noise, whose spectrum falls as a photo's does."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for side in (3, 5, 9, 17, 33):
        for colour in range(3):
            layer = Image.fromarray(random.normal(size=(side, side)).astype(np.float32) / side)
            pixels[:, :, colour] += np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
    pixels = 255 * (pixels - pixels.min()) / np.ptp(pixels)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def theirs(image: Image.Image) -> int:
    return int(str(imagehash.phash(image)), 16)


def apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_hash_is_imagehashs(format: str, mode: str) -> None:
    for seed in range(4):
        data = encoded(photo(seed, mode=mode), format)
        assert image_hash(data) == theirs(Image.open(io.BytesIO(data)))


def test_what_is_transparent_is_seen_on_white() -> None:
    seen = photo(1, mode="RGBA")
    seen.putalpha(photo(2, mode="L"))
    white = Image.new("RGBA", seen.size, "white")
    white.alpha_composite(seen)
    assert apart(image_hash(encoded(seen, "PNG")), theirs(white.convert("RGB"))) <= 2
    assert apart(image_hash(encoded(seen, "PNG")), theirs(seen.convert("RGB"))) > 8


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_hashed_as_it_is_shown(turn: int) -> None:
    upright = photo(3)
    exif = Image.Exif()
    exif[0x0112] = turn
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)
    turned = {
        1: lambda i: i,
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.rotate(-90, expand=True),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.rotate(90, expand=True),
    }[back](upright)
    assert image_hash(encoded(turned, "PNG", exif=exif)) == theirs(upright)


def test_copies_are_near_and_others_are_not() -> None:
    originals = [photo(seed, 900, 640) for seed in range(8)]
    hashes = [image_hash(encoded(image, quality=92)) for image in originals]
    for image, own in zip(originals, hashes, strict=True):
        # 640 pixels are decoded at 1/4, which leaves 160.
        assert apart(own, theirs(image)) <= 2
        assert apart(own, image_hash(encoded(image.resize((256, 182)), quality=60))) <= NEAR
        assert apart(own, image_hash(encoded(image.crop((4, 3, 896, 637)), quality=80))) <= NEAR
    strangers = [apart(one, other) for at, one in enumerate(hashes) for other in hashes[:at]]
    assert min(strangers) > 12


def test_pictures_of_one_colour_are_two_hashes() -> None:
    """Their frequencies are exactly zero: rounding must not make noise of them."""
    grey = {image_hash(encoded(Image.new("L", (300, 200), value), "PNG")) for value in range(0, 256, 5)}
    assert grey == {0, 1 << 63}
    assert image_hash(encoded(Image.new("L", (300, 200), 0))) == 0


def test_what_is_no_whole_image_is_refused() -> None:
    cut, gif = encoded(photo(0), quality=95)[:-3000], encoded(photo(0), "GIF")
    for data, cause in ((cut, "truncated"), (b"", "not_an_image"), (gif, "not_an_image")):
        with pytest.raises(RefusedError) as refused:
            image_hash(data)
        assert refused.value.cause == cause


def flipped(hashes: Hashes, bits: int, random: np.random.Generator) -> Hashes:
    """Each with so many different bits the other way."""
    which = np.argsort(random.random((len(hashes), 64)), axis=1)[:, :bits].astype(np.uint64)
    return hashes ^ np.bitwise_or.reduce(np.uint64(1) << which, axis=1)


def by_every_pair(hashes: Hashes, distance: int) -> list[int]:
    """Groups by comparing all with all, from the first hash on, each group grown until nothing more is near."""
    group = np.full(len(hashes), -1)
    for first in range(len(hashes)):
        front = np.array([first]) if group[first] < 0 else np.array([], np.int64)
        while len(front):
            group[front] = first
            near = (np.bitwise_count(hashes[front, None] ^ hashes) <= distance).any(axis=0)
            front = np.flatnonzero(near & (group < 0))
    return group.tolist()


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 6, 9, 17])
def test_every_pair_is_found(distance: int) -> None:
    random = np.random.default_rng(distance)
    hashes = random.integers(0, 2**64, 3000, np.uint64)
    for bits in range(1, min(distance + 2, 20)):
        at = 100 * bits
        hashes[at : at + 50] = flipped(hashes[at + 50 : at + 100], bits, random)
    hashes = hashes[random.permutation(len(hashes))]
    found = near_groups(hashes, distance)
    assert found.dtype == np.int64
    assert found.tolist() == by_every_pair(hashes, distance)
    assert len(set(found.tolist())) < 3000 or distance == 0


def test_pairs_are_found_wherever_their_bits_differ() -> None:
    """Each pair of bits, alone: groups are the pairs, not one more."""
    random = np.random.default_rng(5)
    ones = random.integers(0, 2**64, 64 * 63 // 2, np.uint64)
    differ = [(np.uint64(1) << np.uint64(a)) | (np.uint64(1) << np.uint64(b)) for a in range(64) for b in range(a)]
    hashes = np.concatenate([ones, ones ^ np.array(differ)])
    assert near_groups(hashes, 2).tolist() == 2 * list(range(len(ones)))
    assert near_groups(hashes, 1).tolist() == list(range(2 * len(ones)))


def test_a_group_is_named_by_its_first_and_reaches_over_others() -> None:
    chain = np.array([0xFF00, 7, 0b1111111, 0, 1 << 40, 0b111111, 7], np.uint64)
    assert near_groups(chain, 3).tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert near_groups(chain, 2).tolist() == [0, 1, 2, 3, 3, 2, 1]


@pytest.mark.parametrize(("hashes", "groups"), [([], []), ([9], [0]), ([9, 9], [0, 0]), ([0, 2**64 - 1], [0, 1])])
def test_hardly_any_hashes(hashes: list[int], groups: list[int]) -> None:
    assert near_groups(np.array(hashes, np.uint64)).tolist() == groups


def test_thousands_that_agree_in_most_bits_are_searched_like_any_others() -> None:
    """Blank pages, equal or with a little noise, and hashes of which 20 bits vary: compared pair by pair, billions."""
    random = np.random.default_rng(8)
    blank = np.zeros(50_000, np.uint64)
    for _ in range(3):
        blank[20_000:] ^= np.uint64(1) << random.integers(0, 64, 30_000).astype(np.uint64)
    assert (near_groups(blank) == 0).all()
    narrow = random.integers(0, 2**18, 10_000, np.uint64) << np.uint64(40)
    assert (near_groups(narrow) == 0).all()
    spread = narrow * np.uint64(0x101)
    few = near_groups(spread[:3000], 1)
    assert few.tolist() == by_every_pair(spread[:3000], 1)


def test_what_cannot_be_searched_for() -> None:
    with pytest.raises(ValueError, match="-1 bits"):
        near_groups(np.zeros(2, np.uint64), -1)


def kept_one_by_one(hashes: Hashes, distance: int) -> list[int]:
    """Each is kept unless it is near one that is kept."""
    kept: list[int] = []
    found = []
    for place, value in enumerate(hashes.tolist()):
        near = next((one for one in kept if apart(int(hashes[one]), value) <= distance), None)
        kept += [place] if near is None else []
        found.append(place if near is None else near)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_near_nothing_else_that_is(seed: int) -> None:
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, 40, np.uint64)
    for bits in (2, 3, 4, 3):  # chains, whose ends are far apart
        hashes = np.concatenate([hashes, flipped(hashes, bits, random)])
    hashes = hashes[random.permutation(len(hashes))]
    assert first_copies(hashes).tolist() == kept_one_by_one(hashes, NEAR)
    assert len(set(near_groups(hashes).tolist())) < len(set(first_copies(hashes).tolist())) < len(hashes)


def test_a_chain_loses_only_what_is_near_what_is_kept() -> None:
    chain = np.array([0, 0b111, 0b111111, 0b111111111], np.uint64)
    assert near_groups(chain, 3).tolist() == [0, 0, 0, 0]
    assert first_copies(chain, 3).tolist() == [0, 0, 2, 2]
    assert first_copies(chain[::-1], 3).tolist() == [0, 0, 2, 2]
    assert first_copies(np.zeros(0, np.uint64)).tolist() == []


@pytest.mark.parametrize(("own", "theirs"), [(60, 5), (5, 60), (50, 50), (3, 0)])
def test_near_any_of_others_and_not_over_copies_of_ones_own(own: int, theirs: int) -> None:
    random = np.random.default_rng(own)
    others = random.integers(0, 2**64, theirs, np.uint64)
    hashes = random.integers(0, 2**64, own, np.uint64)
    if theirs:
        hashes = np.concatenate(
            [hashes, others, flipped(others, 4, random), flipped(flipped(others, 4, random), 3, random)]
        )
    told = [any(apart(one, other) <= NEAR for other in others.tolist()) for one in hashes.tolist()]
    assert near_any(hashes, others).tolist() == told
