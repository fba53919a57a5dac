"""Suites: main metrics, means as DataComp's aggregate has them, files that others read, tables with gaps, the page."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipstill.main import main
from evaluation.report import FILES, files_of
from evaluation.sets import open_set
from evaluation.suites.files import json_lines, read_rows, table_csv
from evaluation.suites.metrics import rows_of
from evaluation.suites.page import suite_page
from evaluation.suites.rows import OURS, Row
from evaluation.suites.suites import SUITES
from evaluation.suites.table import markdown, our_row, refuse_larger, table
from evaluation.suites.tasks import GROUPS, TASKS, folders_of, task_name
from shards import UserError
from tests.evaluation.test_sets import NAMES, labelled, npy, png, wds

pytestmark = pytest.mark.usefixtures("one_thread")

MAIN = {
    "mean_per_class_recall": {"Caltech-101", "FGVC Aircraft", "Oxford Flowers-102", "Oxford-IIIT Pet"},
    "mean_recall@1": {"Flickr", "MSCOCO"},
    "jaccard_score_10-12": {"WinoGAViL"},
    "F1-macro_all": {"iWildCam"},
    "acc_worst_region": {"FMoW"},
    "acc_top5_wg": {"Dollar Street"},
    "acc_wg": {"GeoDE"},
}


def aggregate(lines: str) -> dict[str, float]:
    """DataComp's `aggregate_scores.py`, without pandas: rows with a main metric, 38 of them, and means of theirs."""
    rows = [json.loads(line) for line in lines.splitlines()]
    results = {
        row["dataset"]: row["metrics"]["main_metric"] for row in rows if row["metrics"]["main_metric"] is not None
    }
    assert len(results) == 38
    vtab = ("Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures", "EuroSAT")
    vtab += ("KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon", "RESISC45", "SVHN")
    return {
        "Mean of 38": float(np.mean(list(results.values()))),
        "VTAB": float(np.mean([results[name] for name in (*vtab, "SUN397")])),
        "Retrieval": float(np.mean([results[name] for name in ("Flickr", "MSCOCO", "WinoGAViL")])),
    }


def test_the_38_tasks_and_their_main_metrics() -> None:
    assert len(TASKS) == len(GROUPS["Mean of 38"]) == 38
    assert {name for name, task in TASKS.items() if task.metric != "acc1"} == set().union(*MAIN.values())
    for metric, names in MAIN.items():
        assert {TASKS[name].metric for name in names} == {metric}
    for name, task in TASKS.items():
        assert task_name(f"wds_{task.key.replace('/', '-')}_test") == task_name(task.key) == task_name(name) == name
    assert task_name("flickr30k") == "Flickr"
    assert task_name("pets-of-mine") == "pets-of-mine"
    assert folders_of("CIFAR-10")[0] == "wds_cifar10_test"
    assert "wds_geode_test" in folders_of("GeoDE")


def test_published_names_of_figures() -> None:
    classes = {"top1": 40.0, "top5": 90.0, "mean_per_class": 38.0, "f1_macro": 20.0, "worst_region": 12.0}
    (pets,) = rows_of("vtab-pets", {"samples": 3, "zero_shot": classes}).values()
    assert (pets["acc1"], pets["acc5"], pets["main_metric"]) == (0.4, 0.9, 0.38)
    assert rows_of("wilds-fmow", {"zero_shot": classes})["FMoW"]["main_metric"] == 0.12
    two = rows_of("vtab-pcam", {"zero_shot": {"top1": 50.0, "mean_per_class": 50.0}})["PatchCamelyon"]
    assert two["acc5"] is None
    ways = {
        "image_to_text": {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0},
        "text_to_image": {"R@1": 4.0, "R@5": 5.0, "R@10": 6.0},
    }
    flickr = rows_of("flickr30k", {"retrieval": {**ways, "mean_R@1": 7.0}})["Flickr"]
    # Their text retrieval is an image asking for its texts.
    assert (flickr["text_retrieval_recall@1"], flickr["image_retrieval_recall@5"]) == (0.1, 0.05)
    assert flickr["main_metric"] == 0.07
    crepe = rows_of("sugarcrepe", {"add_obj": {"text": 80.0, "instances": 5}})
    assert crepe["SugarCrepe Add-obj"] == {"image_acc": 1.0, "text_acc": 0.8, "acc": 0.8, "main_metric": 0.8}


def whole_row() -> Row:
    values = np.random.default_rng(0).random(38)
    tasks: dict[str, Any] = {
        name: {task.metric: float(value), "main_metric": float(value)}
        for (name, task), value in zip(TASKS.items(), values, strict=True)
    }
    return Row(name="ViT-T-16:mine", source=OURS, tasks=tasks, image=5.6, text=21.5, embedding=19.0, macs=2.0)


def test_our_files_are_those_that_others_read(tmp_path: Path) -> None:
    row = whole_row()
    lines = json_lines(row)
    first = json.loads(lines.splitlines()[0])
    assert first.keys() == {"key", "dataset", "metrics"}
    assert (first["key"], first["dataset"]) == ("vtab/caltech101", "Caltech-101")
    for group, mean in aggregate(lines).items():
        assert row.metric(group, "main_metric") == pytest.approx(mean, abs=1e-12)
    told = table(SUITES["datacomp-38"], [row])
    assert told["rows"][0]["scores"]["Mean of 38"] == pytest.approx(100 * aggregate(lines)["Mean of 38"])

    (cells,) = csv.DictReader(io.StringIO(table_csv([row])))
    assert list(cells)[:6] == [
        "name",
        "pretrained",
        "params (M)",
        "FLOPs (B)",
        "Average perf. on 38 datasets",
        "ImageNet 1k",
    ]
    assert (cells["name"], cells["pretrained"], cells["params (M)"], cells["FLOPs (B)"]) == (
        "ViT-T-16",
        "mine",
        "46.10",
        "4.00",
    )
    (tmp_path / "mine.jsonl").write_text(lines + "\n")
    (tmp_path / "all.csv").write_text(table_csv([row]))
    (back,) = read_rows(str(tmp_path / "mine.jsonl"))
    assert (back.name, back.tasks) == ("mine", row.tasks)
    (back,) = read_rows(str(tmp_path / "all.csv"))
    assert back.name == row.name
    assert back.metric("GeoDE", "main_metric") == pytest.approx(row.tasks["GeoDE"]["main_metric"], abs=5e-5)
    assert back.macs == 2.0


@pytest.mark.parametrize(
    ("text", "says"),
    [("{nothing", "line 1 is no result"), ("name,x\na,b\n", "no columns"), ('{"key": 1}\n', "line 1 is no result")],
)
def test_other_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match=says):
        read_rows(str(tmp_path / "file"))


def test_what_is_absent_is_a_gap() -> None:
    row = whole_row()
    less = Row(name="less", source=OURS, tasks={name: told for name, told in row.tasks.items() if name != "GeoDE"})
    told = table(SUITES["datacomp-38"], [less])
    assert told["rows"][0]["scores"]["GeoDE"] is None
    assert told["rows"][0]["scores"]["Mean of 38"] is None
    assert told["rows"][0]["scores"]["VTAB"] is not None
    assert markdown(told).splitlines()[2].count(" – ") == 2
    with pytest.raises(UserError, match=r"10,001 samples, and the test split of CIFAR-10 has 10,000"):
        refuse_larger("cifar10", 10_001, "there")


def test_a_set_that_no_column_is_about_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is loaded; a task is known by however its name is usually written."""
    for name in ("ImageNet-1k", "imagenet_1k", "ImageNet 1k", "wds_imagenet1k_test"):
        assert task_name(name) == "ImageNet 1k"
    assert task_name("imagenet-sketch") == "ImageNet Sketch"
    assert task_name("natural-images") == "Natural Images"
    assert task_name("voc2007_multilabel") == "voc2007_multilabel"
    root = str(wds(tmp_path / "wds_mine", labelled([2, 0]), **NAMES))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "open_clip_config.json").write_text("no model")
    assert main(["evaluate", str(tmp_path / "m"), "--suite", "tinyclip", "--on", root]) == 2
    assert f"--on: the suite tinyclip has no column for {root}. Give it as NAME=SET" in capsys.readouterr().err


def test_a_task_without_the_metric_that_counts_is_a_stated_gap(tmp_path: Path) -> None:
    """FMoW without regions has a top-1, which is not its figure. With them it has, whatever its folder is called."""
    plain = {"zero_shot": {"top1": 40.0, "top5": 60.0, "mean_per_class": 30.0}}
    row = our_row("m", {"fmow": plain, "cifar10": plain}, {})
    told = table(SUITES["datacomp-38"], [row, *SUITES["datacomp-38"].published()])
    assert told["rows"][0]["scores"]["FMoW"] is None
    assert told["rows"][0]["scores"]["CIFAR-10"] == pytest.approx(40.0)
    assert told["gaps"] == ["FMoW has no acc_worst_region"]
    assert markdown(told).endswith("Measured, but not by what counts: FMoW has no acc_worst_region.\n")
    page = suite_page("datacomp-38", SUITES["datacomp-38"], told, {"models": {}}).decode()
    assert "FMoW has no acc_worst_region" in page
    samples = [one | {"npy": npy([at % 2, 7, 0])} for at, one in enumerate(labelled([2, 0, 1, 1, 0]))]
    opened = open_set(str(wds(tmp_path / "fmow", samples, **NAMES)))
    assert opened.tasks["zero_shot"].groups["region"].tolist() == [0, 1, 0, 1, 0]  # type: ignore[union-attr]


def test_each_model_has_a_file_of_its_own_however_it_is_called() -> None:
    names = ["runs/a b", "runs/a-b", "/".join(["ü" * 60] * 4), "/".join(["ü" * 60] * 5)]
    files = files_of({}, [our_row(name, {}, {}) for name in names], None, [], [])
    assert len([name for name in files if name.endswith(".jsonl")]) == len(names)
    assert max(len(name.encode()) for name in files) <= 255


def test_published_rows_are_as_printed() -> None:
    def row_of(suite: str, name: str) -> dict[str, Any]:
        told = table(SUITES[suite], SUITES[suite].published())
        return next(row for row in told["rows"] if row["name"] == name)

    assert row_of("tinyclip", "TinyCLIP-ViT-8M-16-Text-3M")["scores"]["IN-1k"] == pytest.approx(41.1)
    assert row_of("tinyclip", "TinyCLIP-ViT-8M-16-Text-3M")["parameters (M)"] == pytest.approx(10.8)
    assert row_of("clip-kd", "ViT-T-16")["scores"]["IN-1k"] == pytest.approx(34.9)
    mixer = row_of("teensy", "clip-mixer-5M")["scores"]
    assert (mixer["Natural Images top-1"], mixer["Natural Images top-5"]) == pytest.approx((24.48, 79.66))
    assert (mixer["CIFAR-10 top-1"], mixer["Caltech-256 top-5"]) == pytest.approx((19.83, 3.37))
    small = row_of("mobileclip", "MobileCLIP2-S0")
    assert small["scores"]["IN-1k"] == pytest.approx(71.534)
    assert round(small["scores"]["Mean of 38"], 1) == 59.7
    assert small["latency (ms)"] == pytest.approx(3.1)


class Cells(HTMLParser):
    """The text of every row of the table `suite`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.circles = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = dict(attrs).get("id") == "suite" if tag == "table" else self.inside
        self.circles += tag == "circle"
        if self.inside and tag == "tr":
            self.rows.append([])
        if self.inside and tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_a_suite_by_one_command(save_teacher: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two models on three of the 38 sets, in all forms; what is not there is a gap, and nothing half-written."""
    root, out = tmp_path / "sets", tmp_path / "out"
    wds(root / "wds_cifar10_test", labelled([2, 0, 1, 1, 0]), **NAMES)
    grouped = [one | {"npy": npy([at % 2, 0])} for at, one in enumerate(labelled([2, 0, 1, 1, 0]))]
    wds(root / "wds_geode_test", grouped, **NAMES)
    (root / "flickr_1k_test_image_text_retrieval").mkdir()
    pairs = pa.table({"image": [png(at, 20) for at in range(4)], "caption": [[f"{at}", f"no {at}"] for at in range(4)]})
    pq.write_table(pairs, root / "flickr_1k_test_image_text_retrieval" / "test.parquet")
    models = [save_teacher(tmp_path / name, seed=seed) for name, seed in (("one", 1), ("two", 2))]
    command = ["evaluate", *models, "--suite", "datacomp-38", "--root", str(root), "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    table_of = {line.split(" | ")[0].strip("|* "): line.split(" | ") for line in printed.splitlines() if "|" in line}
    results = json.loads((out / "results.json").read_text())
    named = f"CIFAR-10={root}/wds_cifar10_test"
    top1 = results["models"][models[0]][named]["zero_shot"]["top1"]
    assert table_of[models[0]][table_of["model"].index("CIFAR-10")] == f"{top1:.2f}"
    assert table_of[models[0]][table_of["model"].index("Mean of 38")] == "–"
    assert {"mean", "sd", "low", "high"} == results["spread"][named]["zero_shot/top1"].keys()
    assert results["differences"][named].keys() == {models[1]}
    held = {path.name for path in out.iterdir()}
    lines = sorted(held - set(FILES))
    assert len(lines) == 2
    assert held - set(lines) == set(FILES) - {"results.jsonl"}
    rows = [json.loads(line) for line in (out / lines[0]).read_text().splitlines()]
    assert {row["dataset"] for row in rows} == {"CIFAR-10", "GeoDE", "Flickr"}
    assert all(row["metrics"]["main_metric"] is not None for row in rows)
    page = Cells((out / "index.html").read_text())
    assert page.rows[1][0] == models[0]
    assert page.rows[1][page.rows[0].index("CIFAR-10")] == f"{top1:.2f}"
    assert page.rows[3][page.rows[0].index("Mean of 38")] == "59.67"
    # Beside it, as a third party's file, and drawn over the published points.
    again = [*command[:2], "--suite", "mobileclip", "--on", f"ImageNet 1k={root}/wds_cifar10_test"]
    assert main([*again, "--beside", str(out / lines[1]), "--out", str(tmp_path / "next")]) == 0
    page = Cells((tmp_path / "next" / "index.html").read_text())
    assert page.circles == 1 + len(SUITES["mobileclip"].published())
    assert {row[1] for row in page.rows[1:]} == {OURS, "MobileCLIP", lines[1]}
