"""Every kind of evaluation set, as its publishers lay it out, and the wrong set-ups that are caught. No model here."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distill.settings import EvaluationSettings
from evaluation.report import below_root
from evaluation.sets import KINDS, SetSettings, kind_of, look, open_by_name, open_set, open_sets
from evaluation.sets.folders import imagenet_wnids
from evaluation.settings import EvaluateSettings
from evaluation.suites.table import refuse_same_task
from evaluation.tasks import Association, Classification, Matching, MultiLabel, Retrieval
from shards import UserError, write_dataset

TEMPLATES = "a photo of a {c}.\nthe {c}\n"


def png(seed: int, side: int = 8) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def npy(values: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array(values), allow_pickle=False)
    return sink.getvalue()


def wds(root: Path, samples: list[dict[str, bytes]], **files: str) -> Path:
    """Two tars, and the files beside them."""
    for number, part in enumerate((samples[:3], samples[3:])):
        rows = [(f"s{number}{at:04d}.{ending}", data) for at, one in enumerate(part) for ending, data in one.items()]
        tar(root / "test" / f"{number}.tar", rows)
    (root / "test" / "nshards.txt").write_text("2\n")
    for name, text in files.items():
        (root / f"{name}.txt").write_text(text)
    return root


def labelled(labels: list[int]) -> list[dict[str, bytes]]:
    return [{"webp" if at % 2 else "png": png(at), "cls": str(label).encode()} for at, label in enumerate(labels)]


NAMES = {"classnames": "cat\nsmall dog\nfox\n", "zeroshot_classification_templates": TEMPLATES}


def test_a_wds_folder_of_classes(tmp_path: Path) -> None:
    root = wds(tmp_path / "wds_vtab-pets_test", labelled([2, 0, 1, 1, 0]), **NAMES)
    found = open_set(str(root))
    task = found.tasks["zero_shot"]
    assert isinstance(task, Classification)
    assert (found.name, len(found)) == ("vtab-pets", 5)
    assert task.labels.tolist() == [2, 0, 1, 1, 0]
    assert task.prompts.texts()[1] == ["a photo of a small dog.", "the small dog"]
    for at in range(5):
        assert found.images.open(at).tobytes() == Image.open(io.BytesIO(png(at))).tobytes()
    # Also by its split's folder, by another root, and by a name of the user's.
    (tmp_path / "elsewhere").symlink_to(root)
    assert open_set(str(root / "test")).name == "vtab-pets"
    assert open_set(f"file://{root}").tasks["zero_shot"].prompts == task.prompts  # type: ignore[union-attr]
    assert open_set(f"pets={root}").name == "pets"


def test_a_wds_folder_on_a_store(tmp_path: Path) -> None:
    import fsspec  # noqa: PLC0415

    root = wds(tmp_path / "wds_x", labelled([2, 0, 1, 1, 0]), **NAMES)
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/sets/wds_x", recursive=True)
    found = open_set("memory://sets/wds_x")
    assert found.tasks["zero_shot"].labels.tolist() == [2, 0, 1, 1, 0]  # type: ignore[union-attr]
    assert found.images.read(3) == png(3)


def test_wds_folders_of_several_labels_and_of_captions(tmp_path: Path) -> None:
    rows = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]
    samples = [{"jpg": png(at), "npy": npy(row)} for at, row in enumerate(rows)]
    several = open_set(str(wds(tmp_path / "wds_voc", samples, dataset_type="multilabel", **NAMES)))
    task = several.tasks["zero_shot"]
    assert isinstance(task, MultiLabel)
    assert task.labels.tolist() == np.array(rows, bool).tolist()

    texts = ["one\ntwo", "three", "four\nfive\nsix", "one"]
    samples = [{"jpg": png(at), "txt": text.encode()} for at, text in enumerate(texts)]
    root = wds(tmp_path / "wds_coco", samples, dataset_type="retrieval\n")
    task = open_set(str(root)).tasks["retrieval"]
    assert isinstance(task, Retrieval)
    assert task.captions == ("one", "two", "three", "four", "five", "six", "one")
    assert task.image_of.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert not task.equal_is_right
    first = open_set(str(root), SetSettings(protocol="clip-kd")).tasks["retrieval"]
    assert isinstance(first, Retrieval)
    assert (first.captions, first.image_of.tolist()) == (("one", "three", "four", "one"), [0, 1, 2, 3])


def test_what_datacomp_groups_by_comes_with_the_labels(tmp_path: Path) -> None:
    samples = [one | {"npy": npy([at % 2, 7])} for at, one in enumerate(labelled([2, 0, 1, 1, 0]))]
    task = open_set(str(wds(tmp_path / "wds_geode_test", samples, **NAMES))).tasks["zero_shot"]
    assert isinstance(task, Classification)
    assert {name: values.tolist() for name, values in task.groups.items()} == {
        "region": [0, 1, 0, 1, 0],
        "country": [7] * 5,
    }


def test_tars_that_nothing_counts(tmp_path: Path) -> None:
    root = wds(tmp_path / "wds_x", labelled([0, 1]), **NAMES)
    (root / "test" / "nshards.txt").unlink()
    with pytest.raises(UserError, match=r"wds_x/test: nshards.txt is missing beside \d tars"):
        open_set(str(root))


def change(root: Path, what: str) -> None:
    """Make a sound set unsound."""
    if what == "names":
        (root / "classnames.txt").write_text("cat\ndog\n")
    elif what == "no names":
        (root / "classnames.txt").unlink()
    elif what == "template":
        (root / "zeroshot_classification_templates.txt").write_text("a photo\n")
    elif what == "no templates":
        (root / "zeroshot_classification_templates.txt").unlink()
    elif what == "train":
        (root / "test").rename(root / "train")
    elif what == "tar":
        (root / "test" / "1.tar").unlink()
    elif what == "cut":
        whole = (root / "test" / "1.tar").read_bytes()
        (root / "test" / "1.tar").write_bytes(whole[:700])
    elif what == "type":
        (root / "dataset_type.txt").write_text("segmentation")
    elif what == "retrieval":
        (root / "dataset_type.txt").write_text("retrieval")
    elif what == "nothing":
        (root / "test" / "nshards.txt").write_text("none")
    elif what == "one":
        wds(root, labelled([1, 1, 1, 1]))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("names", r"a label is 2, and there are 2 class names.*line n of them names class n"),
        ("no names", r"there are no class names.*https://huggingface.co/datasets/djghosh/wds_vtab-pets_test"),
        ("template", r"'a photo' has no \{\}"),
        ("no templates", r"there are no templates.*huggingface"),
        ("train", "only the training split is here"),
        ("tar", "1.tar of 2 is missing"),
        ("cut", "1.tar: truncated"),
        ("type", "its type is 'segmentation'"),
        ("retrieval", "there is no .txt, only cls, png"),
        ("nothing", "it says 'none' shards"),
        ("one", "all 4 images are of one class, 'small dog', of 3"),
    ],
)
def test_an_unsound_wds_folder_is_named(tmp_path: Path, what: str, says: str) -> None:
    root = wds(tmp_path / "wds_vtab-pets_test", labelled([2, 0, 1, 1, 0]), **NAMES)
    change(root, what)
    with pytest.raises(UserError, match=says):
        open_set(str(root))


def folders(root: Path, names: list[str], each: int = 2) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for at in range(each):
            (root / name / f"{at}.png").write_bytes(png(100 * number + at))
    return root


def classes(path: Path, **content: Any) -> SetSettings:
    path.write_text(json.dumps(content))
    return SetSettings(classes=str(path))


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    root = folders(tmp_path / "pets", ["small_dog", "cat", "fox"])
    (root / "meta").mkdir()
    with pytest.raises(UserError, match=r"no templates.*zeroshot_classification_templates.txt"):
        open_set(str(root))
    task = open_set(str(root), classes(tmp_path / "t.json", templates=["a {}"])).tasks["zero_shot"]
    assert isinstance(task, Classification)
    assert (task.prompts.names, task.labels.tolist()) == (("cat", "fox", "small dog"), [0, 0, 1, 1, 2, 2])
    (note,) = open_set(str(root), classes(tmp_path / "t.json", templates=["a {}"])).notes
    assert "no image and are no classes here: meta" in note
    # Names in another order: folders go by their names.
    named = classes(tmp_path / "c.json", classes=["fox", "small dog", "bear", "cat"], templates=["a {}"])
    task = open_set(str(root), named).tasks["zero_shot"]
    assert isinstance(task, Classification)
    assert task.labels.tolist() == [3, 3, 0, 0, 1, 1]
    with pytest.raises(UserError, match="'fox' is none of the 2 classes"):
        open_set(str(root), classes(tmp_path / "d.json", classes=["cat", "small dog"], templates=["a {}"]))
    (root / "zeroshot_classification_templates.txt").write_text(TEMPLATES)
    (root / "classnames.txt").write_text("cat\nfox\n")
    with pytest.raises(UserError, match=r"'small_dog'|2 lines, and there are 3 folders"):
        open_set(str(root))


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    for content in ({"classes": ["cat", " "], "templates": ["a {}"]}, {"prompts": {"cat": ["a cat"], "fox": [""]}}):
        with pytest.raises(UserError, match="none of them blank"):
            classes(tmp_path / "x.json", **content).class_file()


def test_class_names_sorted_as_text_are_named_wherever_they_stand(tmp_path: Path) -> None:
    """Folders, tars and a dataset whose classes are numbers: line 2 would name class 2 as 10."""
    numbers = [str(number) for number in range(12)]
    sort, listed = ("".join(f"{number}\n" for number in order) for order in (sorted(numbers), numbers))
    templates = {"zeroshot_classification_templates": TEMPLATES}
    where = tmp_path / "digits"
    folders(where, numbers, each=1)
    (where / "zeroshot_classification_templates.txt").write_text(TEMPLATES)
    tars = wds(tmp_path / "wds_digits", labelled([*range(12)]), classnames=sort, **templates)
    dataset = write_dataset(tmp_path / "data", [(f"k{at}", png(at), "", {"label": at}) for at in range(12)], name="d")
    (where / "classnames.txt").write_text(sort)
    asked = classes(tmp_path / "c.json", classes=sorted(numbers), templates=["a {}"])
    for place, given in ((where, None), (tars, None), (where, asked)):
        with pytest.raises(UserError, match=r"the classes are numbers sorted as text \(0, 1, 10, 11, ...\)"):
            open_set(str(place), given)
    # By name it does not matter where a class stands.
    by_name = replace(asked, label="label")
    task = open_set(str(dataset.folder), by_name).tasks["zero_shot"]
    assert [task.prompts.names[at] for at in task.labels] == numbers  # type: ignore[union-attr]
    (where / "classnames.txt").write_text(listed)
    (tars / "classnames.txt").write_text(listed)
    assert len(open_set(str(where))) == len(open_set(str(tars))) == 12


def test_folders_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    root = folders(tmp_path / "v2", [str(number) for number in range(12)], each=1)
    with pytest.raises(UserError, match="Numbers say no names"):
        open_set(str(root))
    (root / "classnames.txt").write_text("".join(f"class {number}\n" for number in range(12)))
    (root / "zeroshot_classification_templates.txt").write_text(TEMPLATES)
    found = open_set(str(root))
    assert found.tasks["zero_shot"].labels.tolist() == list(range(12))  # type: ignore[union-attr]
    assert [found.images.name(at).split("/")[-2] for at in (2, 10)] == ["2", "10"]
    (root / "classnames.txt").write_text("".join(f"class {number}\n" for number in range(11)))
    with pytest.raises(UserError, match="there is a folder 11, and 11 class names"):
        open_set(str(root))


def test_imagenets_folders(tmp_path: Path) -> None:
    """The 1000 wnids are ImageNet-1k's, any of them are chosen among; V2's numbers are the 1000 classes."""
    wnids = imagenet_wnids()
    assert (len(wnids), wnids[0], wnids[-1]) == (1000, "n01440764", "n15075141")
    some = folders(tmp_path / "imagenette", [wnids[0], wnids[217], wnids[491]], each=1)
    found = open_set(str(some))
    task = found.tasks["zero_shot"]
    assert isinstance(task, Classification)
    assert task.prompts.names == ("tench", "English Springer Spaniel", "chainsaw")
    assert len(task.prompts.templates) == 80
    assert task.prompts.texts()[0][0] == "a bad photo of a tench."
    assert "3 classes" in found.notes[0]
    every = folders(tmp_path / "val", [str(number) for number in range(1000)], each=1)
    found = open_set(str(every))
    task = found.tasks["zero_shot"]
    assert isinstance(task, Classification)
    assert found.name == "imagenetv2"
    assert (task.prompts.names[1], task.labels[10], found.images.name(10).split("/")[-2]) == ("goldfish", 10, "10")


def test_other_splits_of_folders_are_named(tmp_path: Path) -> None:
    templates = classes(tmp_path / "t.json", templates=["a {}"])
    for split in ("train", "val"):
        folders(tmp_path / "pets" / split, ["cat", "dog"])
    assert "val" in open_set(str(tmp_path / "pets"), templates).images.name(0)
    with pytest.raises(UserError, match="this is the training split, and val lies beside it"):
        open_set(str(tmp_path / "pets" / "train"), templates)
    folders(tmp_path / "half" / "train", ["cat", "dog"])
    with pytest.raises(UserError, match="only the training split"):
        open_set(str(tmp_path / "half"), templates)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "ILSVRC2012_val_00000001.JPEG").write_bytes(png(1))
    with pytest.raises(UserError, match="without the folders of their classes"):
        open_set(str(tmp_path / "flat"))
    folders(tmp_path / "one", ["cat"])
    with pytest.raises(UserError, match="one class only"):
        open_set(str(tmp_path / "one"), templates)


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def test_cifar_binary_and_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (5, 3, 32, 32)).astype(np.uint8)
    labels = np.array([3, 0, 9, 1, 3])
    names = [f"name{number}" for number in range(10)]
    binary = tmp_path / "cifar-10-batches-bin"
    binary.mkdir()
    rows = b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True))
    (binary / "test_batch.bin").write_bytes(rows)
    (binary / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    python = tmp_path / "cifar-10-batches-py"
    python.mkdir()
    held = {b"labels": labels.tolist(), b"data": pixels.reshape(5, -1)}
    (python / "test_batch").write_bytes(pickle.dumps(held, protocol=2))
    (python / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name.encode() for name in names]}, protocol=2))
    for root in (binary, python):
        found = open_set(str(root))
        task = found.tasks["zero_shot"]
        assert isinstance(task, Classification)
        assert (found.name, task.labels.tolist()) == ("cifar10", labels.tolist())
        assert list(task.prompts.names) == names
        assert len(task.prompts.templates) == 18
        assert (np.asarray(found.images.open(2)) == pixels[2].transpose(1, 2, 0)).all()
    (python / "test_batch").write_bytes(pickle.dumps({b"labels": Harmful()}))
    with pytest.raises(UserError, match=r"not read as a pickle of CIFAR.*posix.mkdir"):
        open_set(str(python))
    assert not Path("harm").exists()
    hundred = tmp_path / "cifar-100-binary"
    hundred.mkdir()
    rows = b"".join(bytes([1, label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True))
    (hundred / "test.bin").write_bytes(rows)
    (hundred / "fine_label_names.txt").write_text("\n".join(f"n{number}" for number in range(100)))
    assert open_set(str(hundred)).tasks["zero_shot"].labels.tolist() == labels.tolist()  # type: ignore[union-attr]
    (hundred / "test.bin").write_bytes(rows[:-1])
    with pytest.raises(UserError, match="no whole number of images"):
        open_set(str(hundred))
    (hundred / "test.bin").rename(hundred / "train.bin")
    with pytest.raises(UserError, match="only training images"):
        open_set(str(hundred))


def test_objectnet(tmp_path: Path) -> None:
    root = tmp_path / "objectnet-1.0"
    folders(root / "images", ["air_freshener", "alarm_clock", "band_aid"], each=1)
    (root / "mappings").mkdir()
    labels = {"air_freshener": "Air freshener", "alarm_clock": "Alarm clock", "band_aid": "Band Aid"}
    (root / "mappings" / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    imagenet = {"Alarm clock": "analog clock", "Band Aid": "Band Aid"}
    (root / "mappings" / "objectnet_to_imagenet_1k.json").write_text(json.dumps(imagenet))
    found = open_set(str(tmp_path))
    task = found.tasks["zero_shot"]
    assert isinstance(task, Classification)
    assert (task.prompts.names, task.labels.tolist()) == (("alarm clock", "band aid"), [0, 1])
    assert found.images.open(0).size == (4, 4)  # without the frame
    (root / "images" / "band_aid").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="1 of 2 classes are missing, 'Band Aid'"):
        open_set(str(root))


def test_parquet_of_captions(tmp_path: Path) -> None:
    rows = [["one", "two"], ["three"], ["four", "five"]]
    image = [{"bytes": png(at), "path": f"{at}.png"} for at in range(3)]
    (tmp_path / "data").mkdir()
    table = pa.table({"image": image, "caption": rows})
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet", row_group_size=2)
    pq.write_table(table.slice(0, 1), tmp_path / "data" / "train-00000-of-00001.parquet")
    found = open_set(str(tmp_path))
    task = found.tasks["retrieval"]
    assert isinstance(task, Retrieval)
    assert (task.captions, task.image_of.tolist()) == (("one", "two", "three", "four", "five"), [0, 0, 1, 2, 2])
    assert [found.images.read(at) for at in (2, 0, 1)] == [png(2), png(0), png(1)]
    pq.write_table(pa.table({"image": [png(0)], "words": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"no column of captions.*it has image, words"):
        open_set(str(tmp_path / "other.parquet"))
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match="only the training split"):
        open_set(str(tmp_path / "data"))


@pytest.mark.parametrize(
    "captions",
    [
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)),
        pa.array([["a"], ["b"]], pa.large_list(pa.large_string())),
    ],
)
def test_captions_of_every_type_of_text(tmp_path: Path, captions: pa.Array) -> None:
    pq.write_table(pa.table({"image": [png(0), png(1)], "caption": captions}), tmp_path / "x.parquet")
    assert open_set(str(tmp_path / "x.parquet")).tasks["retrieval"].captions == ("a", "b")  # type: ignore[union-attr]


def test_what_the_datasets_library_keeps(tmp_path: Path) -> None:
    """DataComp's download leaves Flickr, COCO and WinoGAViL as Arrow in `hf_cache`, images as paths."""
    unpacked = tmp_path / "hf_cache" / "downloads"
    unpacked.mkdir(parents=True)
    place = tmp_path / "hf_cache" / "nlphuji___mscoco_2014_5k_test_image_text_retrieval" / "TEST" / "1.1.0" / "0f"
    place.mkdir(parents=True)
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for part, split in enumerate(("test-00000-of-00002", "test-00001-of-00002", "train")):
        rows = range(3 * part, 3 * part + 3)
        for at in rows:
            (unpacked / f"{at}.png").write_bytes(png(at))
        images = pa.array([{"bytes": None, "path": str(unpacked / f"{at}.png")} for at in rows], cell)
        table = pa.table({"image": images, "caption": [[f"{at}", f"no {at}"] for at in rows]})
        with (
            pa.OSFile(str(place / f"mscoco_5k-{split}.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as w,
        ):
            w.write_table(table, max_chunksize=2)
    (place / "dataset_info.json").write_text("{}")
    (found,) = below_root("mobileclip", str(tmp_path), [])
    assert found == f"MSCOCO={place}"
    opened = open_set(found)
    assert opened.name == "MSCOCO"
    assert opened.tasks["retrieval"].captions[10:] == ("5", "no 5")  # type: ignore[union-attr]
    assert [opened.images.read(at) for at in range(6)] == [png(at) for at in range(6)]
    (unpacked / "4.png").unlink()
    with pytest.raises(UserError, match=r"mscoco_5k-test-00001-of-00002.arrow, row 1, column image: .*4.png cannot be"):
        opened.images.read(4)
    # Arrow that is nobody's cache of a set is none.
    (place / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="this is no evaluation set"):
        open_set(str(place))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"image": [png(0), png(1)], "caption": ["a", " "]}, "x.parquet, row 1: the image has no caption"),
        ({"image": [png(0), png(1)], "caption": [["a"], ["", "\n"]]}, "x.parquet, row 1: the image has no caption"),
        (
            {"image_0": [png(0)], "image_1": [png(1)], "caption_0": ["a"], "caption_1": pa.array([None], pa.string())},
            "x.parquet, row 0: its caption_1 is None",
        ),
        (
            {
                "cue": ["a"],
                "candidates": pa.array([None], pa.list_(pa.string())),
                "associations": [["b"]],
                "candidate_images": [[png(0)]],
            },
            "x.parquet, row 0: its candidates is None",
        ),
    ],
)
def test_a_cell_that_says_nothing_is_named(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=says):
        open_set(str(tmp_path / "x.parquet"))


def test_sugarcrepe_and_winoground(tmp_path: Path) -> None:
    crepe = tmp_path / "sugar_crepe"
    crepe.mkdir()
    row = {"filename": "000001.jpg", "caption": "a dog", "negative_caption": "a cat"}
    rows = {"0": row, "7": {**row, "caption": "one dog"}, "9": {**row, "filename": "000002.jpg"}}
    for part in ("add_att", "swap_obj"):
        (crepe / f"{part}.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"no image 000001.jpg.*val2017.zip"):
        open_set(str(crepe))
    (tmp_path / "val2017").mkdir()
    for at in (1, 2):
        (tmp_path / "val2017" / f"00000{at}.jpg").write_bytes(png(at))
    found = open_set(str(crepe))
    assert list(found.tasks) == ["add_att", "swap_obj"]
    task = found.tasks["add_att"]
    assert isinstance(task, Matching)
    assert (task.images.tolist(), task.captions[1]) == ([[0], [0], [1]], ("one dog", "a cat"))
    assert list(open_set(str(crepe / "swap_obj.json")).tasks) == ["swap_obj"]

    wino = tmp_path / "wino"
    (wino / "images").mkdir(parents=True)
    lines = []
    for at in range(2):
        for image in range(2):
            (wino / "images" / f"ex_{at}_img_{image}.png").write_bytes(png(10 * at + image))
        lines.append(
            {f"image_{image}": f"ex_{at}_img_{image}" for image in range(2)} | {"caption_0": "a", "caption_1": "b"}
        )
    (wino / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = pa.table(
        {f"image_{image}": [{"bytes": png(10 * at + image), "path": None} for at in range(2)] for image in range(2)}
        | {"caption_0": ["a", "a"], "caption_1": ["b", "b"]}
    )
    pq.write_table(table, tmp_path / "wino.parquet")
    for place in (wino, tmp_path / "wino.parquet"):
        found = open_set(str(place))
        task = found.tasks["winoground"]
        assert isinstance(task, Matching)
        assert (task.images.tolist(), task.captions) == ([[0, 1], [2, 3]], (("a", "b"), ("a", "b")))
        assert [found.images.read(at) for at in range(4)] == [png(0), png(1), png(10), png(11)]


def test_winogavil(tmp_path: Path) -> None:
    table = pa.table(
        {
            "cue": ["jazz", "orange"],
            "candidates": [["a", "b", "c"], ["d", "e"]],
            "associations": [["c", "a"], ["e"]],
            "candidate_images": [[{"bytes": png(at)} for at in range(3)], [{"bytes": png(at)} for at in (3, 4)]],
        }
    )
    pq.write_table(table, tmp_path / "w.parquet", row_group_size=1)
    found = open_set(str(tmp_path / "w.parquet"))
    task = found.tasks["winogavil"]
    assert isinstance(task, Association)
    assert [places.tolist() for places in task.candidates] == [[0, 1, 2], [3, 4]]
    assert [right.tolist() for right in task.right] == [[True, False, True], [False, True]]
    assert [found.images.read(at) for at in range(5)] == [png(at) for at in range(5)]


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    root = str(wds(tmp_path / "wds_x", labelled([2, 0, 1]), **NAMES))
    samples = [{"jpg": png(at), "txt": b"a"} for at in range(3)]
    pairs = str(wds(tmp_path / "wds_y", samples, dataset_type="retrieval"))
    given = classes(tmp_path / "c.json", classes=["a", "b", "c"], templates=["{}"])
    with pytest.raises(UserError, match="--label would be ignored"):
        open_sets([root], SetSettings(classes=given.classes, label="kind"))
    with pytest.raises(UserError, match="--protocol clip-kd would be ignored"):
        open_sets([root], SetSettings(protocol="clip-kd"))
    with pytest.raises(UserError, match="captions alone"):
        open_sets([root, pairs], SetSettings(retrieval=False))
    with pytest.raises(UserError, match="--protocol would be ignored, as retrieval"):
        open_sets([root, pairs], SetSettings(retrieval=False, protocol="clip-kd"))
    assert list(open_by_name([root, pairs], given)) == ["x", "y"]
    twins = [str(wds(tmp_path / part / "wds_x", labelled([2, 0, 1]), **NAMES)) for part in ("one", "two")]
    assert list(open_by_name(twins, SetSettings())) == ["one.wds_x", "two.wds_x"]


def test_a_set_given_twice_is_refused_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    for other in (f"{tmp_path}/a/", f"{tmp_path}/./a", f"{tmp_path}/b"):
        with pytest.raises(UserError, match="is given twice"):
            EvaluateSettings(models=("m",), on=(f"{tmp_path}/a", other))
        with pytest.raises(UserError, match="is given twice"):
            EvaluationSettings(on=(f"{tmp_path}/a", other))
    with pytest.raises(UserError, match="p=x and q=y are both CIFAR-10"):
        refuse_same_task({"p=x": "wds_cifar10_test", "q=y": "CIFAR-10"})
    refuse_same_task({"x": "cifar10", "y": "cifar100"})


def test_what_is_no_set_is_told_what_a_set_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"no evaluation set: .*notes.txt.*wds_\* folder"):
        kind_of(look(str(tmp_path)))
    with pytest.raises(UserError, match=r"no such file or folder.*hf://datasets/clip-benchmark/wds_cifar10"):
        look("clip-benchmark/wds_cifar10")
    assert len(KINDS) == 8
