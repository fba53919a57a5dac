"""`clipstill compare`: one page of several runs, one line and status 2 for what is none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from clipstill.main import main


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, loss in (("slow", 2.5), ("fast", 1.25)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps({"settings": {"batch_size": 8, "student": name}}))
        lines = [{"step": step, "loss": loss / step} for step in (1, 2, 5)]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_page_has_a_curve_of_every_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/slow", "runs/fast", "--out", "out/compare.html"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "compared 2 runs: out/compare.html\n"
    assert shown.err == ""
    page = (runs / "out" / "compare.html").read_text()
    assert re.findall(r'data-run="(\d)" data-steps="1 2 5" data-values="([^"]+)"', page) == [
        ("0", "2.5 1.25 0.5"),
        ("1", "1.25 0.625 0.25"),
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["runs/slow", "nowhere"], ["nowhere", "no run in this folder", "clipstill distill"]),
        (["runs/slow", "runs"], ["runs: no run in this folder"]),
        (["runs/slow"], ["1 run was given", "2 to 18", "report.html"]),
        (["runs/slow", "runs/../runs/slow"], ["runs/slow", "twice"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_compared_is_one_line_and_status_2(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: list[str]
) -> None:
    assert main(["compare", *arguments, "--out", "compare.html"]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("clipstill: error: ")
    for words in told:
        assert words in line
    assert shown.out == ""
    assert not (runs / "compare.html").exists()


def test_help_ends_with_an_example_that_would_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--help"])
    assert ended.value.code == 0
    described, _, example = capsys.readouterr().out.partition("example:\n")
    assert "clipstill compare" in example
    assert "--out" in described
