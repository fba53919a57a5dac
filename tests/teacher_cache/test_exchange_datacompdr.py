"""DataCompDR in and out, against tars written here with tarfile, numpy and torch, as Apple's programs write them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment, functional
from torchvision.transforms.autoaugment import _apply_op

from shards import Dataset, Folder, InProcess, Spec, UserError
from shards.publication import Publication
from shards.samples import write_shards
from teacher_cache.dtypes import store
from teacher_cache.exchange import export_datacompdr, import_datacompdr
from teacher_cache.exchange.datacompdr import augmentation_of, views_of
from teacher_cache.layout import LayerFacts, TeacherFacts, layer_table, publish_facts, write_layer_file
from teacher_cache.reader import TeacherCache
from teacher_cache.settings import Join
from teacher_cache.views import EncodedImage, Operation, View, ViewPolicy

WIDTHS = (6, 10)
TEACHERS = (("Small-L-14:openai", 6, 100.0), ("Small-L-14:datacomp_xl_s13b_b90k", 10, 70.0))
FOLDERS = ("small-l-14-openai", "small-l-14-datacomp_xl_s13b_b90k")
VIEWS, SYNTHETIC = 12, 3
APPLE = [
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
]
"""The operations, as Apple's transforms number them."""

Members = dict[str, bytes]


def jpeg(width: int, height: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(sink, "JPEG")
    return sink.getvalue()


def write_dataset(folder: Path, metas: list[dict[str, Any]], per_shard: int = 3) -> Dataset:
    """Samples `set-000000000`, ... of 40x20 pixels, with these fields in their JSON."""
    samples = [(f"set-{row:09d}", jpeg(40, 20), f"real {row}", meta) for row, meta in enumerate(metas)]
    # The last one is empty, as where no download came through.
    shards = [*(samples[at : at + per_shard] for at in range(0, len(samples), per_shard)), []]
    return write_shards(folder, shards, name="set")


def unit_parts(random: np.random.Generator, rows: int) -> np.ndarray:
    """(rows, 16) float32, each teacher's columns of unit norm by themselves."""
    parts = [random.normal(size=(rows, width)) for width in WIDTHS]
    return np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], axis=1).astype("f4")


class Published:
    """One sample as Apple published it, for a picture of 400x200 pixels."""

    def __init__(self, uid: str, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.uid = uid
        self.images, self.texts = unit_parts(random, VIEWS), unit_parts(random, 1 + SYNTHETIC)
        self.captions = [f"synthetic {seed} {number}" for number in range(SYNTHETIC)]
        self.augmentations = [
            [
                [int(random.integers(0, 100)), int(random.integers(0, 200)), 90 + view, 180 + view],
                [[3, -30.45317268371582], [11, 178.5]],
            ]
            for view in range(VIEWS)
        ]
        self.augmentations[0] = [[0, 0, 200, 400], [[0, 0.0], [6, 0.26999998092651367]]]
        self.meta: dict[str, Any] = {"uid": uid, "sha256": uid * 2}

    def members(self, form: str = "npz", text: bool = False) -> Members:
        arrays = {"image_emb": self.images, "text_emb": self.texts}
        sink = io.BytesIO()
        if form == "npz":
            np.savez_compressed(sink, **arrays)
            packed = sink.getvalue()
        else:
            torch.save({name: torch.tensor(rows, dtype=torch.bfloat16) for name, rows in arrays.items()}, sink)
            packed = gzip.compress(sink.getvalue())
        augmentations = json.dumps(self.augmentations) if text else self.augmentations
        return {
            "url.txt": b"http://127.0.0.1/picture.jpg",
            "syn.json": json.dumps({"syn_text": self.captions}).encode(),
            "paug.json": json.dumps({"param_aug": augmentations}).encode(),
            form: packed,
            "json": json.dumps(self.meta).encode(),
        }


def write_tar(path: Path, samples: list[tuple[str, Members]]) -> str:
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for name, data in members.items():
                entry = tarfile.TarInfo(f"./{key}.{name}")
                # As webdataset writes them: a time with a fraction makes a header of its own.
                entry.size, entry.mtime = len(data), 1700000000.25
                tar.addfile(entry, io.BytesIO(data))
    return str(path)


def uid(number: int) -> str:
    return f"{number:032x}"


def ours(number: int, **more: Any) -> dict[str, Any]:
    return {"uid": uid(number), "sha256": uid(number) * 2, "original_width": 400, "original_height": 200, **more}


def bring(tars: list[str], root: Path, **options: Any) -> Any:
    options = {"teachers": TEACHERS, **options}
    return import_datacompdr(tars, str(root / "set"), str(root / "cache"), Elsewhere(), **options)


class Elsewhere(InProcess):
    """The task goes through pickle, as on its way to another machine."""

    def start(self, task: Any) -> None:
        super().start(pickle.loads(pickle.dumps(task)))


def opened(root: Path, name: str, policy: str = "none", cache: str = "cache") -> TeacherCache:
    return TeacherCache.open(str(root / cache), Dataset.open(str(root / "set")), name, Join(policy=policy))  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "text", "tolerance"), [("npz", False, 1e-3), ("pth.gz", True, 6e-3)])
def test_published_samples_come_to_the_images_they_belong_to(
    tmp_path: Path, form: str, text: bool, tolerance: float
) -> None:
    """Tars in another order than the shards, cut elsewhere, with rows that are not ours and images in between."""
    write_dataset(tmp_path / "set", [ours(number) for number in range(7)])
    published = [Published(uid(number), number) for number in range(9)]
    samples = [(item.uid, {"jpg": jpeg(400, 200), **item.members(form, text)}) for item in published]
    tars = [
        write_tar(tmp_path / "00000000.tar", [samples[at] for at in (8, 3, 0, 5)]),
        write_tar(tmp_path / "00000001.tar", [samples[at] for at in (6, 7, 4, 2, 1)]),
    ]
    report = bring(tars, tmp_path)
    assert (report.samples, report.uneven, report.absent, report.left_out, report.unused) == (7, 0, 0, {}, 2)
    assert [Path(folder).name for folder in report.folders] == list(FOLDERS)
    start = 0
    for folder, width, scale in zip(FOLDERS, WIDTHS, (100, 70), strict=True):
        cache = opened(tmp_path, folder, "error")
        assert (cache.views, cache.captions, cache.teacher.logit_scale) == (VIEWS, {"txt": 1, "syn": SYNTHETIC}, scale)
        for number, item in enumerate(published[:7]):
            place, row = divmod(number, 3)
            one = np.array([[place, row]])
            for view in range(VIEWS):
                got = cache.image(one, np.array([view]))[0]
                np.testing.assert_allclose(got, item.images[view, start : start + width], atol=tolerance)
            np.testing.assert_allclose(cache.text(one)[0], item.texts[0, start : start + width], atol=tolerance)
            for at in range(SYNTHETIC):
                got = cache.text(one, at, "syn")[0]
                np.testing.assert_allclose(got, item.texts[1 + at, start : start + width], atol=tolerance)
                assert cache.caption(place, row, at, "syn") == item.captions[at]
            (top, left, height, columns), _ = item.augmentations[5]
            view = cache.view(place, row, 5)
            np.testing.assert_allclose(view[:4], [left / 400, top / 200, columns / 400, height / 200], rtol=1e-6)
            assert not view.flip
            assert [name for name, _ in view.operations] == ["TranslateX", "Solarize"]
            # A share of the side, whatever the student's is: 0.3 of torchvision's 150/331.
            np.testing.assert_allclose(view.operations[0].magnitude, -0.3 * 150 / 331, rtol=1e-3)
            assert view.operations[1].magnitude == 178.5
        start += width


def test_tagged_captions_and_embeddings_are_sets_of_their_own(tmp_path: Path) -> None:
    """As MobileCLIP2's: captions of two captioners and one without embeddings, beside those without a tag, embedded by
    two ensembles; what the untagged ensemble said is another import."""
    write_dataset(tmp_path / "set", [ours(number) for number in range(4)])
    samples, random = [], np.random.default_rng(5)
    said: dict[int, dict[str, np.ndarray]] = {}
    for number in range(4):
        item = Published(uid(number), number)
        captions = {
            "syn_text_dfn_Coca": [f"coca {number} {at}" for at in range(2)],
            "syn_text": item.captions,
            "syn_text_b": [f"b {number}"],
            "syn_text_unheard": ["of nobody"],
        }
        arrays = said[number] = {"image_emb": item.images, "text_emb": item.texts}
        for tag in ("", "_dfn"):
            arrays |= {f"{key}_emb{tag}": unit_parts(random, len(captions[key])) for key in list(captions)[:3]}
        arrays |= {"image_emb_dfn": unit_parts(random, VIEWS), "text_emb_dfn": unit_parts(random, 1)}
        sink = io.BytesIO()
        np.savez(sink, **arrays)
        members = item.members() | {"npz": sink.getvalue(), "syn.json": json.dumps(captions).encode()}
        samples.append((uid(number), members))
    tars = [write_tar(tmp_path / "a.tar", samples)]
    with pytest.raises(UserError, match="image_emb_none and text_emb_none are needed"):
        bring(tars, tmp_path, tag="_none")
    assert bring(tars, tmp_path, tag="_dfn").uneven == 0
    for folder, part in zip(FOLDERS, (slice(0, 6), slice(6, 16)), strict=True):
        cache = opened(tmp_path, folder, "error")
        assert cache.captions == {"txt": 1, "syn": 3, "syn-b": 1, "syn-dfn_coca": 2}
        for number, arrays in said.items():
            place, row = divmod(number, 3)
            one = np.array([[place, row]])
            np.testing.assert_allclose(cache.image(one, np.array([7]))[0], arrays["image_emb_dfn"][7, part], atol=1e-3)
            np.testing.assert_allclose(cache.text(one)[0], arrays["text_emb_dfn"][0, part], atol=1e-3)
            for name, key, count in (
                ("syn", "syn_text", 3),
                ("syn-b", "syn_text_b", 1),
                ("syn-dfn_coca", "syn_text_dfn_Coca", 2),
            ):
                for at in range(count):
                    got = cache.text(one, at, name)[0]
                    np.testing.assert_allclose(got, arrays[f"{key}_emb_dfn"][at, part], atol=1e-3)
                    assert cache.caption(place, row, at, name) == json.loads(samples[number][1]["syn.json"])[key][at]


def test_what_was_embedded_from_something_else_is_left_out_and_counted(tmp_path: Path) -> None:
    turned = json.dumps({"Image Orientation": "Rotated 90 CW"})
    plain = json.dumps({"Image Orientation": "Horizontal (normal)"})
    metas = [
        ours(0, exif=plain),
        ours(1, sha256="another"),
        ours(2, exif=turned),
        ours(3, original_width=300),
        ours(4),
        ours(99),
    ]
    write_dataset(tmp_path / "set", metas)
    samples = [(uid(number), Published(uid(number), number).members()) for number in range(5)]
    samples[4][1]["txt"] = b"another caption"
    report = bring([write_tar(tmp_path / "a.tar", samples)], tmp_path)
    assert (report.samples, report.absent, report.unused) == (1, 1, 0)
    assert report.left_out == {"changed": 2, "turned": 1, "misfit": 1}
    cache = opened(tmp_path, FOLDERS[0])
    assert cache.present(np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])).tolist() == [True] + 5 * [False]


def test_operations_are_numbered_as_apple_numbers_them() -> None:
    for number, name in enumerate(APPLE):
        (view,) = views_of([[[0, 0, 10, 10], [[number, 0.5], [0, 0.0]]]], 20, 20) or []
        assert view.operations[0].name == name
    assert views_of([[[0, 0, 10, 10], None]], 20, 20) == [View(0, 0, 0.5, 0.5, False)]


def test_translations_move_by_the_very_pixels_that_apples_moved_by() -> None:
    """torchvision's `_apply_op` takes int(magnitude), towards zero, on a crop of 224 pixels."""
    exact = [float(torch.linspace(0, 150 / 331 * 224, 31)[step]) for step in range(31)]
    magnitudes = [*map(float, range(-223, 224)), *exact, *(-magnitude for magnitude in exact), 2.999999, -250.0]
    policy = ViewPolicy(kind="given")
    for magnitude in magnitudes:
        (view,) = views_of([[[0, 0, 10, 10], [[3, magnitude], [4, magnitude]]]], 20, 20) or []
        replayed = policy.unpack(policy.pack([view])[0])
        assert [int(moved.magnitude * 224) for moved in replayed.operations] == 2 * [int(magnitude)]
        np.testing.assert_allclose(replayed.operations[0].magnitude, magnitude / 224, atol=1e-3)
        # And once more, out and in.
        (again,) = views_of([augmentation_of(replayed, 20, 20)], 20, 20) or []
        assert again.operations == replayed.operations


def test_whole_pixel_translations_are_replayed_to_the_pixel() -> None:
    row = np.arange(224, dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(np.broadcast_to(row[None, :, None], (224, 224, 3)).copy()).save(sink, "PNG")
    image, policy = EncodedImage(sink.getvalue()), ViewPolicy(kind="given")
    for pixels in (1, 3, 30, -45, 101):
        (view,) = views_of([[[0, 0, 224, 224], [[3, float(pixels)], [0, 0.0]]]], 224, 224) or []
        moved = policy.render(image, view, 224)[0, :, 0]
        kept = slice(pixels, None) if pixels > 0 else slice(None, pixels)
        np.testing.assert_array_equal(moved[kept], row[: 224 - abs(pixels)] if pixels > 0 else row[-pixels:])


def test_an_augmentation_survives_in_whole_pixels() -> None:
    (view,) = views_of([[[7, 31, 100, 211], [[4, 30.45317268371582], [10, 7.0]]]], 333, 207) or []
    crop, operations = augmentation_of(view, 333, 207)
    assert crop == [7, 31, 100, 211]
    assert [number for number, _ in operations] == [4, 10]
    np.testing.assert_allclose([magnitude for _, magnitude in operations], [30.45317, 7], rtol=5e-4)
    thin = View(0.999, 0.0, 0.001, 1.0, False, None, (Operation("Rotate", 9.0),))
    assert augmentation_of(thin, 40, 20) == [[0, 39, 20, 1], [[5, 9.0], [0, 0.0]]]


def test_a_replayed_view_is_what_apples_transforms_make() -> None:
    """RandomResizedCrop's box, bicubic to 224, then torchvision's own operations, beside the view out of the cache."""
    waves = np.sin(np.mgrid[0:200, 0:400] / 17.0)
    pixels = np.stack([waves[0], waves[1], waves[0] * waves[1]], axis=2) * 120 + 127
    picture = Image.fromarray(pixels.astype(np.uint8))
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    magnitudes = RandAugment()._augmentation_space(31, (224, 224))
    for number, name in enumerate(APPLE):
        steps, signed = magnitudes[name]
        magnitude = (-1 if signed else 1) * (float(steps[9]) if steps.ndim else 0.0)
        augmentation = [[20, 130, 150, 200], [[number, magnitude], [0, 0.0]]]
        cropped = functional.resized_crop(picture, *augmentation[0], [224, 224], InterpolationMode.BICUBIC)
        theirs = np.asarray(_apply_op(cropped, name, magnitude, InterpolationMode.NEAREST, None), np.float64)
        (view,) = views_of([augmentation], 400, 200) or []
        policy = ViewPolicy(kind="given")
        replayed = policy.unpack(policy.pack([view])[0])
        got = policy.render(EncodedImage(sink.getvalue()), replayed, 224).astype(np.float64)
        # Nearest pixels and thresholds fall differently on a few.
        assert np.median(np.abs(got - theirs)) <= 2, name
        assert 10 * np.log10(255**2 / max(np.mean((got - theirs) ** 2), 1e-9)) > 24, name


@pytest.mark.parametrize(
    "wrong",
    [
        [[0, 0, 10], None],
        [[0, 0, 10, 10], [[14, 0.0]]],
        [[0, 0, 5, 5], [[1, float("nan")]]],
        [[0, 0, 5, 5], [[3, -(10**400)]]],
        3,
    ],
)
def test_what_is_no_augmentation_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is no"):
        views_of([wrong], 20, 20)


def damaged(change: Callable[[Members], None]) -> Members:
    members = Published(uid(1), 1).members()
    change(members)
    return members


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members.pop("npz"), "neither .npz nor .pth.gz"),
        (lambda members: members.pop("paug.json"), "nobody knows which views"),
        (lambda members: members.update({"npz": members["npz"][:-40]}), "damaged"),
        (lambda members: members.update({"syn.json": b'{"syn_text": ["a"]'}), "syn.json is damaged"),
        (lambda members: members.update({"paug.json": b'{"param_aug": []}'}), "do not go with"),
        (lambda members: members.update({"paug.json": b'{"param_aug": "%s"}' % (9**6 * b"[")}), "param_aug is damaged"),
        (lambda members: members.update({"syn.json": json.dumps({"syn_text": ["a"] * 9}).encode()}), "text embeddings"),
    ],
)
def test_a_damaged_sample_is_named(tmp_path: Path, change: Callable[[Members], None], message: str) -> None:
    write_dataset(tmp_path / "set", [ours(0), ours(1)])
    tar = write_tar(tmp_path / "a.tar", [(uid(0), Published(uid(0), 0).members()), (uid(1), damaged(change))])
    with pytest.raises(UserError, match=rf"a\.tar: the sample at byte \d+ cannot be used: .*{message}"):
        bring([tar], tmp_path)


def test_user_errors(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [ours(0)])
    whole = write_tar(tmp_path / "a.tar", [(uid(0), Published(uid(0), 0).members())])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path(whole).read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cut\.tar: not a whole tar"):
        bring([str(cut)], tmp_path)
    with pytest.raises(UserError, match=r"none\.tar: cannot be read"):
        bring([str(tmp_path / "none.tar")], tmp_path)
    with pytest.raises(UserError, match="no sample has 'id'"):
        bring([whole], tmp_path, key_column="id")
    with pytest.raises(UserError, match="none of 1 samples has a row"):
        bring([whole], tmp_path, key_column=None)
    with pytest.raises(UserError, match="embeddings of 16 columns"):
        bring([whole], tmp_path, teachers=(("a", 768, 100.0),))


def test_a_killed_import_goes_on_and_makes_the_same_bytes(
    tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    """Records of some layers and shards are gone, as after a kill between two of them: only those are made again."""
    write_dataset(tmp_path / "set", [ours(number) for number in range(5)])
    samples = [(uid(number), Published(uid(number), number).members()) for number in range(5)]
    tars = [write_tar(tmp_path / "a.tar", samples)]
    bring(tars, tmp_path)
    before = snapshot(tmp_path / "cache")
    for layer, shard in (("views-000-009", "00000"), ("captions-syn", "00001"), ("views-010-011", "00001")):
        (record,) = (tmp_path / "cache" / FOLDERS[1] / layer / "_records").glob(f"{shard}.*")
        record.unlink()
        (tmp_path / "cache" / FOLDERS[1] / layer / f"{shard}.arrow").write_bytes(b"half")
    kept = tmp_path / "cache" / FOLDERS[0] / "views-000-009" / "00000.arrow"
    untouched = kept.stat().st_mtime_ns
    bring(tars, tmp_path)
    assert snapshot(tmp_path / "cache") == before
    assert kept.stat().st_mtime_ns == untouched


def test_other_tars_do_not_go_into_the_same_cache(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [ours(0), ours(1)])
    samples = [(uid(number), Published(uid(number), number).members()) for number in range(2)]
    bring([write_tar(tmp_path / "a.tar", samples)], tmp_path)
    with pytest.raises(UserError, match=r"embeddings of other files: .*Import into a new .* from all files at once"):
        bring([str(tmp_path / "a.tar"), write_tar(tmp_path / "b.tar", samples[:1])], tmp_path)
    with pytest.raises(UserError, match=r"holds other embeddings: logit_scale was 100\.0, now 7\.0"):
        bring([str(tmp_path / "a.tar")], tmp_path, teachers=(("Small-L-14:openai", 6, 7.0), TEACHERS[1]))


@pytest.mark.parametrize(("form", "exact"), [("npz", True), ("pth.gz", False)])
def test_exports_are_read_as_their_users_read_them_and_come_back(tmp_path: Path, form: str, exact: bool) -> None:
    metas = [ours(number) for number in range(5)]
    metas[3] = ours(77)
    write_dataset(tmp_path / "set", metas)
    published = {number: Published(uid(number), number) for number in range(5)}
    tar = write_tar(tmp_path / "a.tar", [(item.uid, item.members()) for item in published.values()])
    bring([tar], tmp_path, dtype="float32")
    report = export_datacompdr(
        *(str(tmp_path / name) for name in ("cache", "set", "out")),
        Elsewhere(),
        format=form,  # type: ignore[arg-type]
    )
    assert (report.samples, report.missing) == (4, 1)
    tars = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    members: dict[str, bytes] = {}
    for tar in tars:
        with tarfile.open(tar) as held:
            members |= {entry.name: held.extractfile(entry).read() for entry in held}  # type: ignore[union-attr]
    key, item = "set-000000001", published[1]
    assert sorted(name.split(".", 1)[1] for name in members if name.startswith(key)) == sorted(
        ["syn.json", "paug.json", form, "json"]
    )
    packed = members[f"{key}.{form}"]
    if form == "npz":
        arrays = dict(np.load(io.BytesIO(packed)))
    else:
        held_ = torch.load(gzip.GzipFile(fileobj=io.BytesIO(packed)), weights_only=True)
        assert {rows.dtype for rows in held_.values()} == {torch.bfloat16}
        arrays = {name: rows.float().numpy() for name, rows in held_.items()}
    np.testing.assert_allclose(arrays["image_emb"], item.images, atol=5e-3)
    np.testing.assert_allclose(arrays["text_emb"], item.texts, atol=5e-3)
    assert json.loads(members[f"{key}.syn.json"]) == {"syn_text": item.captions}
    # Of our 40x20 pixels, where Apple's were 400x200.
    for (crop, operations), (theirs, _) in zip(
        json.loads(members[f"{key}.paug.json"])["param_aug"], item.augmentations, strict=True
    ):
        np.testing.assert_allclose(crop, np.array(theirs) / 10, atol=1)
        assert len(operations) == 2
    # Back again, by our keys.
    again = import_datacompdr(
        *(tars, str(tmp_path / "set"), str(tmp_path / "again"), Elsewhere()),
        teachers=TEACHERS,
        key_column=None,
        dtype="float32",
    )
    assert (again.samples, again.absent, again.unused) == (4, 1, 0)
    for folder in FOLDERS:
        first, second = opened(tmp_path, folder), opened(tmp_path, folder, cache="again")
        places = np.array([[0, 0], [0, 1], [0, 2], [1, 1]])
        for view in range(VIEWS):
            views = np.full(4, view)
            np.testing.assert_allclose(
                first.image(places, views), second.image(places, views), atol=2e-7 if exact else 5e-3
            )
            one, two = first.view(0, 1, view), second.view(0, 1, view)
            np.testing.assert_allclose(one[:4], two[:4], atol=0.05)
            assert [name for name, _ in one.operations] == [name for name, _ in two.operations]
            np.testing.assert_allclose(
                [operation.magnitude for operation in one.operations],
                [operation.magnitude for operation in two.operations],
                rtol=1e-3,
            )
        assert first.caption(0, 2, 1, "syn") == second.caption(0, 2, 1, "syn") == "synthetic 2 1"


def resized(number: int, views: int, captions: int) -> Published:
    """With so many views and synthetic captions."""
    item = Published(uid(number), number)
    random = np.random.default_rng(100 + number)
    item.images, item.texts = unit_parts(random, views), unit_parts(random, 1 + captions)
    item.augmentations = [[[view, view, 90, 180], [[0, 0.0], [0, 0.0]]] for view in range(views)]
    item.captions = [f"synthetic {number} {at}" for at in range(captions)]
    return item


@pytest.mark.parametrize("odd", [0, 3])
def test_views_and_captions_are_as_many_as_most_samples_have(tmp_path: Path, odd: int) -> None:
    """Wherever the odd ones stand; those with more are cut, fewer repeated, both are counted. A damaged sample that is
    not ours has no say.
    """
    write_dataset(tmp_path / "set", [ours(number) for number in range(5)])
    sizes = dict.fromkeys(range(5), (4, 3)) | {odd: (2, 2), odd + 1: (9, 4)}
    published = {number: resized(number, *size) for number, size in sizes.items()}
    samples = [(item.uid, item.members()) for item in published.values()]
    tar = write_tar(tmp_path / "a.tar", [("not-ours", {"npz": b"damaged"}), *samples])
    report = bring([tar], tmp_path)
    assert (report.samples, report.uneven, report.left_out, report.unused) == (5, 2, {}, 1)
    cache = opened(tmp_path, FOLDERS[0], "error")
    assert (cache.views, cache.captions) == (4, {"txt": 1, "syn": 3})
    for number, item in published.items():
        place, row = divmod(number, 3)
        for view in range(4):
            got = cache.image(np.array([[place, row]]), np.array([view]))[0]
            np.testing.assert_allclose(got, item.images[view % sizes[number][0], :6], atol=1e-3)
            assert cache.view(place, row, view).left == np.float32((view % sizes[number][0]) / 400)
        for at in range(3):
            got = cache.text(np.array([[place, row]]), at, "syn")[0]
            np.testing.assert_allclose(got, item.texts[1 + at % sizes[number][1], :6], atol=1e-3)
            assert cache.caption(place, row, at, "syn") == f"synthetic {number} {at % sizes[number][1]}"


def test_samples_that_cannot_be_told_apart_are_left_out(tmp_path: Path) -> None:
    """Of one name in two folders, side by side or apart; the very same sample twice is one."""
    write_dataset(tmp_path / "set", [ours(number) for number in range(4)])
    items = [Published(uid(number), number).members() for number in range(4)]
    other = Published(uid(0), 50).members()
    first = [(f"a/{uid(0)}", items[0]), (f"b/{uid(0)}", other), (uid(1), items[1]), (uid(2), items[2])]
    second = [(uid(1), other), (uid(2), items[2]), (uid(3), items[3])]
    report = bring([write_tar(tmp_path / f"{name}.tar", tar) for name, tar in (("a", first), ("b", second))], tmp_path)
    assert (report.samples, report.left_out, report.absent, report.unused) == (2, {"ambiguous": 2}, 0, 0)
    present = opened(tmp_path, FOLDERS[0]).present(np.array([[0, 0], [0, 1], [0, 2], [1, 0]]))
    assert present.tolist() == [False, False, True, True]


def test_raygens_layout_is_read_too(tmp_path: Path) -> None:
    """Its synthetic embeddings lie apart, and its members of one sample may not lie together."""
    write_dataset(tmp_path / "set", [{"width": 400, "height": 200}])
    item = Published("set-000000000", 5)
    members = item.members()
    sink = io.BytesIO()
    # Not of unit norm: each teacher's part is made so by itself.
    np.savez(sink, image_emb=3 * item.images, text_emb=item.texts[:1], syn_text_emb=item.texts[1:])
    first = {"npz": sink.getvalue(), "jpg": jpeg(400, 200), "txt": b"real 0"}
    second = {name: members[name] for name in ("syn.json", "paug.json")}
    rest = {"json": json.dumps({"width": 400, "height": 200}).encode()}
    tar = write_tar(tmp_path / "a.tar", [(item.uid, first | second), ("other", item.members()), (item.uid, rest)])
    bring([tar], tmp_path, key_column=None)
    cache = opened(tmp_path, FOLDERS[1], "error")
    np.testing.assert_allclose(cache.text(np.array([[0, 0]]), 1, "syn")[0], item.texts[2, 6:], atol=1e-3)
    stored = cache.image_stored(np.array([[0, 0]]), np.array([3]))[0].astype(np.float32)
    np.testing.assert_allclose(stored, item.images[3, 6:], atol=1e-3)
    (top, left, height, width), _ = item.augmentations[3]
    np.testing.assert_allclose(cache.view(0, 0, 3)[:4], [left / 400, top / 200, width / 400, height / 200], rtol=1e-6)


def test_exports_refuse_what_the_format_has_no_place_for(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [ours(0)])
    bring([write_tar(tmp_path / "a.tar", [(uid(0), Published(uid(0), 0).members())])], tmp_path)
    places = [str(tmp_path / name) for name in ("cache", "set", "out")]
    with pytest.raises(UserError, match="no format 'zip'"):
        export_datacompdr(*places, InProcess(), format="zip")  # type: ignore[arg-type]
    write_cache(tmp_path, "mirrored", ViewPolicy(flip=0.5))
    with pytest.raises(UserError, match="no place for mirrored"):
        export_datacompdr(*places, InProcess(), teachers=("mirrored",))
    with pytest.raises(UserError, match="views are not those of"):
        export_datacompdr(*places, InProcess(), teachers=(FOLDERS[0], "mirrored"))


def test_caches_of_our_own_go_out_too(tmp_path: Path) -> None:
    """Seeded crops, no synthetic captions: what raygen's users would train from."""
    write_dataset(tmp_path / "set", [ours(0), ours(1)])
    write_cache(tmp_path, "own", ViewPolicy(scale=(0.3, 0.5)))
    report = export_datacompdr(*(str(tmp_path / name) for name in ("cache", "set", "out")), InProcess())
    assert report.samples == 2
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        assert [entry.name.split(".", 1)[1] for entry in tar] == 2 * ["paug.json", "npz", "json"]
        (crop, operations), *_ = json.load(tar.extractfile("set-000000001.paug.json"))["param_aug"]  # type: ignore[arg-type]
    drawn = ViewPolicy(scale=(0.3, 0.5)).draw("set-000000001", 0, 40, 20)
    box = np.array([drawn.top * 20, drawn.left * 40, drawn.height * 20, drawn.width * 40])
    np.testing.assert_allclose(crop, box, atol=1)
    assert operations == [[0, 0.0], [0, 0.0]]


def write_cache(root: Path, name: str, policy: ViewPolicy) -> None:
    """A teacher's folder with two views and the captions of the dataset's only shard."""
    dataset, folder = Dataset.open(str(root / "set")), Folder(root / "cache").child(name)
    facts = {"embed_dim": 4, "logit_scale": 1.0, "logit_bias": None, "image_size": 8, "has_text": True}
    teacher = TeacherFacts(name=name, spec=name, identity={"name": name}, versions={}, **facts)  # type: ignore[arg-type]
    publish_facts(folder, "teacher.json", teacher)
    shard, _ = dataset.shards
    rows = store(np.eye(4, dtype=np.float32)[: shard.count], "float16")
    settings: dict[str, Any] = {"dtype": "float16", "precision": "fp32"}
    for kind, columns, more in (
        ("views", (0, 1), {"policy": policy.identity()}),
        ("captions", (0,), {"source": {"kind": "txt", "count": 1}}),
    ):
        layer = LayerFacts(
            kind=kind,  # type: ignore[arg-type]
            name="views-000-001" if kind == "views" else "captions-txt",
            columns=columns,
            teacher=teacher.fingerprint,
            settings=settings | more,
            dataset="set",
            batch_size=1,
        )
        place = folder.child(layer.name)
        publish_facts(place, "layer.json", layer)
        drawn = [policy.pack([policy.draw(key, index, 40, 20) for key in shard.keys]) for index in columns]
        table = layer_table(layer, shard.keys, [rows for _ in columns], params=drawn if kind == "views" else ())
        publication = Publication(Spec(0, place, layer.shard_fingerprint(shard.content)), shard.content)
        with publication.file(".arrow") as path:
            write_layer_file(str(path), table)
        publication.finish(shard.count, {})
