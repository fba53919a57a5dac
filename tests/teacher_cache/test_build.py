"""What a cache holds is what the teacher says, however the build was cut up, extended or spread."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from shards import Dataset, IncompleteError, InProcess, UserError
from shards.ray_executor import RayExecutor
from teacher_cache import EncodedImage, TeacherCache, ViewPolicy
from teacher_cache.building import BuildReport, BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource
from teacher_cache.teachers import Forward
from teacher_cache.verify import verify_cache

POLICY = ViewPolicy(scale=(0.4, 1.0), flip=0.5)
COUNTS = (7, 0, 11)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def dataset(root: Path, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(root / "shards", COUNTS)


@pytest.fixture(scope="module")
def settings(root: Path, dataset: Dataset, save_teacher: Callable[..., str]) -> BuildSettings:
    teacher = save_teacher(root / "teacher")
    return BuildSettings(
        shards=str(dataset.folder),
        cache=str(root / "cache"),
        teachers=(TeacherSpec(teacher, "teach"),),
        views=2,
        policy=POLICY,
        batch_size=4,
    )


@pytest.fixture(scope="module")
def built(settings: BuildSettings) -> BuildReport:
    return build_cache(settings, InProcess())


def taught_by(settings: BuildSettings, spec: str | Path) -> BuildSettings:
    return replace(settings, teachers=(TeacherSpec(str(spec), "teach"),))


def elsewhere(settings: BuildSettings, name: str, **changes: Any) -> BuildSettings:
    return replace(settings, cache=str(Path(settings.cache).parent / name), **changes)


def stored(cache: str, layer: str, shard: int) -> pa.Table:
    with pa.memory_map(f"{cache}/teach/{layer}/{shard:05d}.arrow") as source:
        return pa.ipc.open_file(source).read_all()


def matrix(table: pa.Table, column: str) -> npt.NDArray[Any]:
    return np.array(table[column].to_pylist()).reshape(table.num_rows, -1)


def plain_embeddings(
    settings: BuildSettings, dataset: Dataset, view: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """One sample after the other through open_clip's own functions, in float64."""
    model = open_clip.create_model(f"local-dir:{settings.teachers[0].spec}").eval().double()
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=16)
    mean, std = np.array(open_clip.OPENAI_DATASET_MEAN), np.array(open_clip.OPENAI_DATASET_STD)
    images, texts = [], []
    with torch.no_grad():
        for shard in dataset.shards:
            for row, key in enumerate(shard.keys):
                image = EncodedImage(shard.image_bytes(row))
                seen = POLICY.render(image, POLICY.draw(key, view, image.width, image.height), 48)
                pixels = (seen / 255 - mean) / std
                images.append(model.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None], normalize=True)[0])
                texts.append(model.encode_text(tokenizer([shard.caption(row)]), normalize=True)[0])
    return torch.stack(images).numpy(), torch.stack(texts).numpy()


def test_the_cache_holds_what_the_teacher_says_of_each_view(
    settings: BuildSettings, dataset: Dataset, built: BuildReport
) -> None:
    assert built.samples == sum(COUNTS)
    assert built.views == 2
    for view in range(2):
        image, text = plain_embeddings(settings, dataset, view)
        tables = [stored(settings.cache, "views-000-001", shard) for shard in range(3)]
        got = np.concatenate([matrix(table, f"view_{view:03d}") for table in tables if table.num_rows])
        assert got.shape == image.shape == (18, 40)
        # Half a unit in float16's last place, and the float32 forward's own error.
        assert (np.abs(got - image) <= np.abs(image) * 2.0**-11 + 3e-6).all()
        captions = [stored(settings.cache, "captions-txt", shard) for shard in range(3)]
        said = np.concatenate([matrix(table, "caption_000") for table in captions if table.num_rows])
        assert (np.abs(said - text) <= np.abs(text) * 2.0**-11 + 3e-6).all()
    assert np.abs(image - plain_embeddings(settings, dataset, 0)[0]).max() > 0.01, "both views are the same"


@pytest.mark.usefixtures("built")
def test_parameters_and_keys_are_stored_for_replay(settings: BuildSettings, dataset: Dataset) -> None:
    cache = TeacherCache.open(settings.cache, dataset)
    flips = set()
    for place, shard in enumerate(dataset.shards):
        table = stored(settings.cache, "views-000-001", shard.id)
        assert table["key"].to_pylist() == shard.keys
        for row, key in enumerate(shard.keys):
            size = Image.open(io.BytesIO(shard.image_bytes(row))).size
            for view in range(2):
                drawn = POLICY.draw(key, view, *size)
                assert cache.view(place, row, view) == drawn
                packed = table[f"params_{view:03d}"][row].as_py()
                assert (*struct.unpack("<4f", packed[:16]), bool(packed[16])) == drawn[:5]
                assert len(packed) == 17
                flips.add(drawn.flip)
    assert flips == {True, False}


@pytest.mark.usefixtures("built")
def test_a_view_is_one_piece_of_an_uncompressed_file(settings: BuildSettings, dataset: Dataset) -> None:
    for layer in ("views-000-001", "captions-txt"):
        for shard in dataset.shards:
            path = Path(settings.cache, "teach", layer, f"{shard.id:05d}.arrow")
            before = pa.total_allocated_bytes()
            with pa.memory_map(str(path)) as source:
                whole = source.read_buffer(path.stat().st_size)
                reader = pa.ipc.open_file(source)
                assert reader.num_record_batches <= 1
                table = reader.read_all()
            assert table.num_rows == shard.count
            assert pa.total_allocated_bytes() == before, "reading copied something: it is compressed"
            if not shard.count:
                continue
            assert reader.num_record_batches == 1
            pieces = []
            for name in table.column_names:
                column = table[name].chunk(0)
                if name.startswith(("view_", "caption_")):
                    assert column.type == pa.list_(pa.float16(), 40)
                    (values,) = [buffer for buffer in column.buffers() if buffer is not None]
                    assert values.size >= shard.count * 80  # 40 float16 a row, then padding
                    pieces.append((values.address, values.address + shard.count * 80))
                    data = path.read_bytes()[values.address - whole.address :][: shard.count * 80]
                    assert np.array_equal(np.frombuffer(data, "<f2").reshape(-1, 40), matrix(table, name))
            pieces.sort()
            assert whole.address <= pieces[0][0]
            assert pieces[-1][1] <= whole.address + whole.size
            assert all(first[1] <= second[0] for first, second in pairwise(pieces))


@pytest.mark.usefixtures("built")
def test_embeddings_depend_on_the_batch_size_in_their_last_bit_only(settings: BuildSettings, dataset: Dataset) -> None:
    other = elsewhere(settings, "one-batch", batch_size=100)
    build_cache(other, InProcess())
    for shard in dataset.shards:
        if not shard.count:
            continue
        for layer, column in (("views-000-001", "view_001"), ("captions-txt", "caption_000")):
            here, there = (matrix(stored(at, layer, shard.id), column) for at in (settings.cache, other.cache))
            assert (np.abs(here - there) <= np.abs(here) * 2.0**-10 + 1e-6).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.usefixtures("built")
def test_lower_precisions_come_close_to_float32(settings: BuildSettings, dataset: Dataset, precision: Any) -> None:
    low = elsewhere(settings, precision, forward=Forward(precision=precision), views=1)
    build_cache(low, InProcess())
    exact, rough = TeacherCache.open(settings.cache, dataset), TeacherCache.open(low.cache, dataset)
    places, first = np.array([(2, row) for row in range(11)]), np.zeros(11, np.int64)
    here, there = (cache.image(places, first) for cache in (exact, rough))
    assert 0.995 < (here * there).sum(axis=1).min() < 1
    assert not np.array_equal(here, there)


def test_more_views_touch_no_file_and_equal_a_fresh_build(
    settings: BuildSettings, dataset: Dataset, built: BuildReport, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    grown = elsewhere(settings, "grown")
    shutil.copytree(settings.cache, grown.cache)
    paths = {path: path.stat() for path in Path(grown.cache).rglob("*.arrow")}
    before = snapshot(Path(grown.cache))
    report = build_cache(replace(grown, views=4), InProcess())
    after = snapshot(Path(grown.cache))
    assert all(path.stat().st_mtime_ns == was.st_mtime_ns for path, was in paths.items())
    assert all(path.stat().st_ino == was.st_ino for path, was in paths.items())
    assert {name: after[name] for name in before} == before
    assert (report.views, report.summary.skipped, report.summary.finished) == (4, 6, 3)
    fresh = elsewhere(settings, "fresh", views=4)
    whole = build_cache(fresh, InProcess())
    assert whole.bytes < report.bytes < whole.bytes + 20_000  # the keys once more
    assert report.bytes > built.bytes
    for shard in dataset.shards:
        for view in range(4):
            layer = "views-000-001" if view < 2 else "views-002-003"
            one, other = stored(grown.cache, layer, shard.id), stored(fresh.cache, "views-000-003", shard.id)
            for column in (f"view_{view:03d}", f"params_{view:03d}"):
                assert one[column].to_pylist() == other[column].to_pylist()
    caches = [TeacherCache.open(at.cache, dataset) for at in (grown, fresh)]
    assert [cache.views for cache in caches] == [4, 4]
    places = np.array([(2, 3), (0, 1), (2, 10), (2, 3), (0, 0)])
    for view in range(4):
        one, other = (cache.image(places, np.full(5, view)) for cache in caches)
        assert np.array_equal(one, other)


def test_a_finished_build_does_nothing(
    settings: BuildSettings, built: BuildReport, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    before = snapshot(Path(settings.cache))
    for views in (2, 1):
        again = build_cache(replace(settings, views=views), InProcess())
        assert (again.summary.skipped, again.summary.finished) == (6, 0)
        assert (again.views, again.bytes) == (2, built.bytes)
    assert snapshot(Path(settings.cache)) == before


def test_ray_makes_the_same_bytes(
    settings: BuildSettings, built: BuildReport, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    spread = elsewhere(settings, "ray")
    report = build_cache(spread, RayExecutor(2))
    assert snapshot(Path(spread.cache)) == snapshot(Path(settings.cache))
    assert report.bytes == built.bytes


def test_a_changed_teacher_under_the_same_name_is_refused(
    settings: BuildSettings, built: BuildReport, root: Path, save_teacher: Callable[..., str]
) -> None:
    other = save_teacher(root / "other", seed=1)
    old = json.loads((Path(built.folders[0]) / "teacher.json").read_text())["identity"]["weights"]
    with pytest.raises(UserError, match=rf'another teacher: weights was "{old}", now "[0-9a-f]{{16}}"'):
        build_cache(taught_by(settings, other), InProcess())
    wider = save_teacher(root / "wider", width=64)
    with pytest.raises(UserError, match=r"model\.vision_cfg\.width was 32, now 64"):
        build_cache(taught_by(settings, wider), InProcess())
    moved = root / "moved"
    shutil.copytree(settings.teachers[0].spec, moved)
    assert build_cache(taught_by(settings, moved), InProcess()).summary.finished == 0


def test_the_same_weights_elsewhere_go_on_under_their_name(
    settings: BuildSettings, built: BuildReport, root: Path
) -> None:
    """Not embedded again; unless another name is given, which is a wish."""
    again = shutil.copytree(settings.teachers[0].spec, root / "somewhere")
    report = build_cache(replace(settings, teachers=(TeacherSpec(str(again)),)), InProcess())
    assert report.folders == built.folders
    assert report.summary.finished == 0
    named = elsewhere(settings, "two names", views=1)
    for name in ("first", "second"):
        report = build_cache(replace(named, teachers=(TeacherSpec(str(again), name),)), InProcess())
        assert Path(report.folders[0]).name == name
        assert report.summary.finished > 0


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/ViT-T.16/model", "vit-t-16"),
        ("runs/vit-t/best", "vit-t-best"),
        ("runs/vit-t", "vit-t"),
        ("ViT-B-32:runs/vit-t/model/open_clip_model.safetensors", "vit-b-32-vit-t"),
        ("ViT-B-32:weights/laion.pt", "vit-b-32-laion"),
    ],
)
def test_a_teacher_is_called_as_its_run_or_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    file = tmp_path / path.rpartition(":")[2]
    if file.suffix in {".safetensors", ".pt"}:
        file.parent.mkdir(parents=True)
        file.touch()
    else:
        file.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert TeacherSpec(path).name == name


@pytest.mark.usefixtures("built")
def test_preprocessing_is_part_of_who_the_teacher_is(settings: BuildSettings, root: Path) -> None:
    moved = root / "greyer"
    shutil.copytree(settings.teachers[0].spec, moved)
    path = moved / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"preprocess\.mean was \[0\.48\d+, .*\], now \[0\.5, 0\.5, 0\.5\]"):
        build_cache(taught_by(settings, moved), InProcess())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": ViewPolicy()}, r"policy\.flip was 0\.5, now 0\.0"),
        ({"policy": ViewPolicy(scale=(0.5, 1.0), flip=0.5)}, r"policy\.scale was \[0\.4, 1\.0\], now \[0\.5, 1\.0\]"),
        ({"policy": ViewPolicy(kind="centre"), "views": 1}, r"policy\.flip was 0\.5, now 0\.0"),
        ({"forward": Forward(precision="bf16")}, r'precision was "fp32", now "bf16"'),
    ],
)
@pytest.mark.usefixtures("built")
def test_another_way_of_building_is_refused(
    settings: BuildSettings,
    changes: dict[str, Any],
    message: str,
    snapshot: Callable[[Path], dict[str, bytes]],
) -> None:
    before = snapshot(Path(settings.cache))
    for views in {2, 4} if "views" not in changes else {1}:
        with pytest.raises(UserError, match=message):
            build_cache(replace(settings, **{"views": views, **changes}), InProcess())
    assert snapshot(Path(settings.cache)) == before


@pytest.mark.usefixtures("built")
def test_another_dataset_is_refused(
    settings: BuildSettings,
    root: Path,
    make_dataset: Callable[..., Dataset],
    snapshot: Callable[[Path], dict[str, bytes]],
) -> None:
    make_dataset(root / "others", COUNTS, name="others")
    before = snapshot(Path(settings.cache))
    with pytest.raises(UserError, match=r"built from dataset 'tiny', .*/others is 'others'"):
        build_cache(replace(settings, shards=str(root / "others")), InProcess())
    assert snapshot(Path(settings.cache)) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": 0}, "views is 0, it must be a whole number, at least 1"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"views": 2, "policy": ViewPolicy(kind="centre")}, "2 were asked for"),
    ],
)
def test_impossible_settings_are_refused(settings: BuildSettings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(settings, **changes)


def test_a_shard_made_again_is_embedded_again_and_only_that(
    settings: BuildSettings, root: Path, make_dataset: Callable[..., Dataset]
) -> None:
    changed = elsewhere(settings, "changed", shards=str(root / "changing"))
    make_dataset(root / "changing", (5, 4))
    build_cache(changed, InProcess())
    first = Path(changed.cache, "teach", "views-000-001", "00000.arrow")
    before = first.stat().st_mtime_ns
    kept = make_dataset(root / "sources", (5, 4))
    shutil.rmtree(root / "changing")
    again = make_dataset(root / "changing", (5, 6))
    assert again.shards[0].content == kept.shards[0].content
    report = build_cache(changed, InProcess())
    assert (report.summary.skipped, report.summary.finished) == (2, 2)
    assert first.stat().st_mtime_ns == before
    cache = TeacherCache.open(changed.cache, again)
    places = np.array([(1, row) for row in range(6)])
    assert cache.image(places, np.ones(6, np.int64)).shape == (6, 40)


def test_a_damaged_image_is_named_and_holds_up_its_own_shard_only(
    settings: BuildSettings, root: Path, make_dataset: Callable[..., Dataset], damage_image: Callable[..., None]
) -> None:
    damage_image(make_dataset(root / "damaged", (2, 3)), 1, 1)
    build = elsewhere(settings, "of damaged", shards=str(root / "damaged"))
    with pytest.raises(IncompleteError, match="the image of tiny-000000003 does not decode"):
        build_cache(build, InProcess())
    opened = Dataset.open(build.shards)
    assert stored(build.cache, "views-000-001", 0).num_rows == 2
    with pytest.raises(UserError, match=r"1 of 2 shards are not in the cache \(first: 00001\)"):
        TeacherCache.open(build.cache, opened)


def test_a_teacher_that_says_nan_is_refused(
    settings: BuildSettings, root: Path, save_teacher: Callable[..., str]
) -> None:
    from clip_models import load_model, save_model  # noqa: PLC0415

    loaded = load_model(save_teacher(root / "broken"))
    with torch.no_grad():
        loaded.model.token_embedding.weight[320] = torch.nan  # some words only
        loaded.model.visual.proj[:] = 3e38
    save_model(loaded.model, loaded.config, str(root / "broken"))
    with pytest.raises(IncompleteError, match="the teacher's embedding of tiny-000000000 is zero or not finite"):
        build_cache(elsewhere(taught_by(settings, str(root / "broken")), "broken cache"), InProcess())


def test_oblong_teachers_are_refused(settings: BuildSettings, root: Path, save_teacher: Callable[..., str]) -> None:
    oblong = save_teacher(root / "oblong")
    for name in ("open_clip_config.json",):
        path = Path(oblong, name)
        config = json.loads(path.read_text())
        config["model_cfg"]["vision_cfg"]["image_size"] = [48, 48]
        path.write_text(json.dumps(config))
    assert build_cache(elsewhere(taught_by(settings, oblong), "square"), InProcess()).views == 2
    config["model_cfg"]["vision_cfg"]["image_size"] = [24, 96]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"sees \[24, 96\] pixels"):
        build_cache(elsewhere(taught_by(settings, oblong), "oblong cache"), InProcess())


def test_no_dataset_and_no_teacher_are_said_so(settings: BuildSettings, root: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset here"):
        build_cache(replace(settings, shards=str(root / "nothing")), InProcess())
    with pytest.raises(UserError, match=r"there is no such folder"):
        build_cache(taught_by(settings, str(root / "nothing")), InProcess())


class Swapping(InProcess):
    """The teacher's folder gets other weights between the driver's look at it and the worker's."""

    def __init__(self, folder: str, other: str) -> None:
        super().__init__()
        self._folder, self._other = folder, other

    def start(self, task: Any) -> None:
        shutil.rmtree(self._folder)
        shutil.copytree(self._other, self._folder)
        super().start(task)


def test_a_worker_with_other_weights_makes_nothing(
    settings: BuildSettings, root: Path, save_teacher: Callable[..., str]
) -> None:
    moving, other = save_teacher(root / "moving"), save_teacher(root / "replaced", seed=4)
    build = elsewhere(taught_by(settings, moving), "of two")
    with pytest.raises(UserError, match=r"loaded here is [0-9a-f]{16} \(weights .*the cache is of [0-9a-f]{16}"):
        build_cache(build, Swapping(moving, other))
    assert not list(Path(build.cache).rglob("*.arrow"))


@pytest.mark.usefixtures("built")
def test_a_layer_that_was_given_up_harms_nobody(
    settings: BuildSettings, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    more = elsewhere(settings, "given up", views=4)
    shutil.copytree(settings.cache, more.cache)
    build_cache(more, InProcess())
    layer = Path(more.cache, "teach", "views-002-003")
    (record,) = layer.glob("_records/00002.*")
    record.unlink()
    opened = TeacherCache.open(more.cache, dataset)
    assert (opened.views, list(opened.incomplete)) == (2, ["views-002-003"])
    assert "views-002-003 is left out: 1 shards are missing" in caplog.text
    assert verify_cache(more.shards, more.cache, rows=2).problems == ("views-002-003: 1 of 3 shards lack it",)
    for record in layer.glob("_records/0*"):
        record.unlink()
    assert build_cache(replace(more, views=3), InProcess()).views == 3
    assert TeacherCache.open(more.cache, dataset).views == 3


@pytest.mark.usefixtures("built")
def test_captions_that_are_not_there_leave_no_layer(settings: BuildSettings, dataset: Dataset) -> None:
    wrong = replace(settings, captions=(CaptionSource.parse("txt"), CaptionSource.parse("json:typo")))
    with pytest.raises(UserError, match="tiny-000000000 has no caption in 'typo'"):
        build_cache(wrong, InProcess())
    assert TeacherCache.open(settings.cache, dataset).captions == {"txt": 1}


def test_paths_hold_in_other_directories(settings: BuildSettings, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert TeacherSpec("teacher") == TeacherSpec(str(root / "teacher"), "teacher")
    assert TeacherSpec("ViT-B-32:teacher/x.pt").spec == "ViT-B-32:teacher/x.pt"
    assert TeacherSpec("transformers:teacher").spec == f"transformers:{root}/teacher"
    assert replace(settings, shards="shards").shards == str(root / "shards")
