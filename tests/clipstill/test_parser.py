"""What the command line refuses: shortened options, options given twice, words that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipstill.main import build_parser, main


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["distil"], "'distil' is not known; did you mean distill?"),
        (["cache", "biuld"], "'biuld' is not known; did you mean build?"),
        (["ingst", "list.txt"], "'ingst' is not known; did you mean ingest?"),
        (["xyz"], "'xyz' is not known; there are ingest, "),
        (["distill", "d", "--epoch", "3"], "there is no option --epoch; did you mean --epochs?"),
        (["distill", "d", "--epoch=3"], "there is no option --epoch; did you mean --epochs? See `clipstill distill "),
        (["distill", "d", "--bogus"], "there is no option --bogus. See `clipstill distill --help`"),
        (["ingest", "l", "--engine", "files"], "'files' is not known; there are clipstill, img2dataset. See"),
        (
            ["cache", "build", "d", "--teachr", "x", "--out", "o"],
            "there is no option --teachr; did you mean --teacher?",
        ),
        (["distill", "d", "--epochs", "3", "--epochs", "4"], "--epochs is given twice"),
        (["distill", "d", "--epochs", "3", "--epochs=4"], "--epochs is given twice"),
        (["distill", "d", "--compile", "--no-compile"], "--compile and --no-compile are both given"),
        (["distill", "d", "--smoke", "--smoke"], "--smoke is given twice"),
        (["ingest", "l", "--ignore-opt-outs", "--opt-out", "noai"], "--ignore-opt-outs and --opt-out are both given"),
        (["distill", "d", "--precision", "fp23"], "'fp23' is not known; did you mean fp32?"),
        (["ingest", "rtry", "data"], "there is no command ingest rtry; did you mean ingest retry?"),
        (["models", "bnech"], "there is no command models bnech; did you mean models bench?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_half_understood_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_what_can_be_repeated_adds_up() -> None:
    words = ["distill", "d", "--loss", "fd=2", "--loss", "crd", "--captions", "txt", "--captions", "json-x"]
    args = build_parser().parse_args(words)
    assert vars(args)["losses"] == ["fd=2", "crd"]
    assert args.captions == ["txt", "json-x"]


def test_words_after_two_dashes_are_no_options() -> None:
    args = build_parser().parse_args(["distill", "--epochs", "3", "--", "--epochs"])
    assert (args.epochs, args.shards) == (3.0, ["--epochs"])


def test_a_file_that_is_called_nearly_as_a_command_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("retri").write_text("http://a.example/1.jpg\n")
    assert main(["ingest", "retri", "--name", "a", "--out", "out"]) == 2
    assert "cannot tell the format" in capsys.readouterr().err
