"""`clipstill models`: what it lists agrees with what was published."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_models import student_names
from clipstill.main import main

# As printed in the papers: parameters in millions of image and text tower (without its token embedding), 10^9
# multiply-accumulates. "-": nobody printed it.
PRINTED = {
    "TinyCLIP-ViT-39M-16-Text-19M": "38.59 19.22 9.5",
    "TinyCLIP-ViT-8M-16-Text-3M": "8.28 2.52 2.0",
    "TinyCLIP-ResNet-30M-Text-29M": "29.58 28.94 6.9",
    "TinyCLIP-ResNet-19M-Text-19M": "18.60 19.48 4.4",
    "TinyCLIP-ViT-61M-32-Text-29M": "61.41 28.67 5.3",
    "TinyCLIP-ViT-40M-32-Text-19M": "39.69 19.22 3.5",
    "ViT-T-16": "5.62 21.52 -",
    "mobilevit_s": "5.27 21.52 -",
    "swin_tiny_patch4_window7_224": "27.91 21.52 -",
    "mobilenetv3_small_100": "2.04 21.52 -",
    "efficientnet_b0": "4.66 21.52 -",
    "resnet18": "11.44 21.52 -",
    "RN50": "38.32 - -",
    "RN101": "56.26 - -",
    "clip-mixer-4M": "4 - -",
    "clip-mixer-5M": "5 - -",
}


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, str]]:
    """Name → column → cell; a column's place is its heading's right end."""
    assert main(["models", *arguments]) == 0
    table, _, _ = capsys.readouterr().out.partition("\n\n")
    head, *lines = table.splitlines()
    ends = [found.end() for found in re.finditer(r"\S+(?: \S+)*", head)][:8]
    names = ["image", "text", "all", "macs", "published image", "published text", "published macs", "in1k"]
    rows = {}
    for line in lines:
        name = re.match(r"\S+", line)
        assert name
        rows[name[0]] = {
            column: re.split(r" {2,}", line[:end])[-1].strip() if line[end - 1 : end].strip() else ""
            for column, end in zip(names, ends, strict=True)
        }
    return rows


def test_sizes_agree_with_the_published_ones(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys)
    for name, printed in PRINTED.items():
        for column, number in zip(("image", "text", "macs"), printed.split(), strict=True):
            if number == "-":
                assert rows[name][f"published {column}"] == ""
                continue
            assert rows[name][f"published {column}"] == number
            decimals = len(number.partition(".")[2])
            assert f"{float(rows[name][column]):.{decimals}f}" == number, (name, column)
    assert rows["TinyCLIP-ViT-8M-16-Text-3M"]["in1k"] == "41.1"
    assert set(student_names()) <= set(rows)
    # Architectures that pruning finds: there is only what was published.
    found = [row for name, row in rows.items() if "-auto-" in name]
    assert [(row["image"], row["all"], row["published macs"]) for row in found] == [
        ("made by pruning", "", "1.9"),
        ("made by pruning", "", "3.7"),
        ("made by pruning", "", "5.6"),
    ]


def test_what_else_was_published_stands_below(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["TinyCLIP-auto-ViT-63M-32-Text-31M", "clip-mixer-4M", "resnet18"]
    assert main(["models", *names]) == 0
    _, _, below = capsys.readouterr().out.partition("\n\nalso published")
    assert [line.split(maxsplit=1) for line in below.splitlines()[1:]] == [
        [names[0], "IN-1k 64.5 after LAION-400M and YFCC-15M"],
        [
            names[1],
            "CIFAR-10 20.02/73.11, ImageNette 16.88/59.35, Natural Images 22.58/81.19, CIFAR-100 1.85/7.86, "
            "Caltech-256 0.47/3.39",
        ],
    ]


def test_a_name_with_a_slash_is_the_same_model(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys, "ViT-T-16")
    assert listed(capsys, "ViT-T/16") == rows
    assert rows["ViT-T-16"]["in1k"] == "34.90"


def test_a_folder_called_like_a_published_model_is_not_that(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save_teacher: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_teacher(tmp_path / "RN50")
    row = listed(capsys, "RN50")["RN50"]
    assert (row["image"], row["published image"]) == ("0.03", "")


def test_any_model_can_be_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, save_teacher: Callable[..., str]
) -> None:
    """Of 40 numbers at 48 pixels in 16 patches of 12, one layer 32 wide; a text tower of one layer 16 wide."""
    folder = save_teacher(tmp_path / "teacher")
    rows = listed(capsys, folder, f"{folder}.json")
    image = 3 * 12 * 12 * 32 + 32 + 17 * 32 + 4 * 32 + 32 * 40 + 12 * 32**2 + 13 * 32
    text = 16 * 16 + 2 * 16 + 16 * 40 + 12 * 16**2 + 13 * 16
    expected = {"image": image, "text": text, "all": image + text + 49408 * 16 + 1}
    for row in rows.values():
        assert {column: row[column] for column in expected} == {
            column: f"{count / 1e6:.2f}" for column, count in expected.items()
        }
    assert len(rows) == 2


def test_bench_measures_by_the_published_protocol(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, save_student: Callable[..., str]
) -> None:
    name = save_student(tmp_path / "student.json", image=16, width=16)
    assert main(["models", "bench", name]) == 0
    where, heads, line = capsys.readouterr().out.splitlines()
    assert where.startswith("on ")
    assert heads.split() == ["images/s", "texts/s", "pairs/s", "published,", "on", "a", "GPU"]
    given, *rates = line.split()
    images, texts, pairs = (float(rate.replace(",", "")) for rate in rates)
    assert given == name
    assert pairs == pytest.approx(1 / (1 / images + 1 / texts), rel=0.02)


@pytest.mark.parametrize("command", [["models"], ["models", "bench"]], ids=" ".join)
def test_a_model_that_is_not_there_is_one_line_before_any_other(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is the last of several: nothing has been measured by then."""
    assert main([*command, "ViT-L-14", "TinyCLIP-ViT-8M-Text-3M"]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "TinyCLIP-ViT-8M-16-Text-3M" in line
    assert said.out == ""


@pytest.mark.parametrize("command", [["models"], ["models", "bench"]], ids=" ".join)
def test_a_model_that_cannot_be_run_is_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An image smaller than its one patch: a module can be built of it, and fails at the first image."""
    vision = {"image_size": 4, "patch_size": 8, "layers": 1, "width": 64}
    text = {"vocab_size": 9, "width": 64, "heads": 1, "layers": 1}
    path = tmp_path / "small.json"
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    assert main([*command, str(path)]) == 2
    said = capsys.readouterr()
    assert re.fullmatch(rf"clipstill: error: {path}: it cannot be run: .*Kernel size.*\n", said.err)
    assert said.out == ""


@pytest.mark.parametrize("command", [["models"], ["models", "bench"]], ids=" ".join)
def test_help_ends_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert f"clipstill {' '.join(command)}" in capsys.readouterr().out.partition("example:\n")[2]
