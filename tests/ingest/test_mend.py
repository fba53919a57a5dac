"""What `shards verify` prints mends: a shell runs it, and the dataset is sound and the same as before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from shards import verify_dataset

OPTIONS = ("--in-process", "--no-stop", "--shard-size", "4", "--allow-address", "127.0.0.1", "--retries", "0")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(200) + data[300:])


DAMAGE: dict[str, Callable[[Path, str], None]] = {
    "no tar": lambda out, shard: (out / f"{shard}.tar").unlink(),
    "a cut tar": lambda out, shard: os.truncate(out / f"{shard}.tar", 700),
    "a flipped bit": lambda out, shard: flip(out / f"{shard}.tar"),
    "a damaged ledger": lambda out, shard: spoil(out / f"{shard}.parquet"),
}


class Run:
    """A dataset that was ingested, then again as its list had grown by another file, then retried."""

    def __init__(
        self, site: Any, picture: Callable[..., bytes], in_shell: Callable[[str, Path], str], folder: Path
    ) -> None:
        self.in_shell = in_shell
        self.folder, self.out = folder / """it's a "$HOME" of *""", folder / "my out"
        self.folder.mkdir()
        urls = [site.add(f"{folder.name}/{row}", picture()) for row in range(17)]
        urls.append(site.add_flaky(f"{folder.name}/late", picture()))
        folder = self.folder
        lines = [f"{url},caption {row}\n" for row, url in enumerate(urls)]
        (folder / "a.csv").write_text("url,caption\n" + "".join(lines[:12]))
        (folder / "b.csv").write_text("url,caption\n" + "".join(lines[12:]))
        for command in (["ingest", "a.csv"], ["ingest", "a.csv", "b.csv"]):
            self.clipstill([*command, "--name", "set", "--out", str(self.out)])
        self.clipstill(["ingest", "retry", str(self.out)])
        # Of the list all parts but for the newest are gone.
        assert sorted(path.name for path in (self.out / "_plan").iterdir()) == [
            "round-001-00000.arrow",
            "round-002-00000.arrow",
        ]
        assert verify_dataset(str(self.out)).problems == ()

    def clipstill(self, command: list[str]) -> None:
        names = [str(self.folder / word) if word.endswith(".csv") else word for word in command]
        options = OPTIONS if "retry" not in command else (OPTIONS[0], *OPTIONS[4:])
        assert main([*names, *options]) == 0

    def mend(self) -> None:
        """Do what `verify` says, to the letter."""
        self.in_shell(verify_dataset(str(self.out)).mend, self.folder.parent)


@pytest.fixture
def run(
    site: Any,
    picture: Callable[..., bytes],
    in_shell: Callable[[str, Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    monkeypatch.setattr("ingest.plan.planner.PART_ROWS", 8)
    monkeypatch.setattr("ingest.plan.planning.AHEAD", 1)
    return Run(site, picture, in_shell, tmp_path)


@pytest.mark.parametrize(
    ("damage", "shards"),
    [
        ("no tar", ["00003"]),
        ("a cut tar", ["00005"]),
        ("a flipped bit", ["00003"]),
        ("a damaged ledger", ["00000"]),
        ("a damaged ledger", ["00001", "00004", "00005"]),
    ],
)
def test_what_verify_names_mends(run: Run, damage: str, shards: list[str]) -> None:
    """0 to 2 are shards of the first list, whose plan is gone; 3 and 4 of the rows it has grown by; 5 of a retry."""
    before = {path.name: path.read_bytes() for path in run.out.glob("*.tar")}
    assert len(before) == 6
    for shard in shards:
        DAMAGE[damage](run.out, shard)
    assert verify_dataset(str(run.out)).problems
    run.mend()
    assert verify_dataset(str(run.out)).problems == ()
    assert {path.name: path.read_bytes() for path in run.out.glob("*.tar")} == before


@pytest.mark.parametrize("damage", ["cut", "a flipped bit"])
def test_a_damaged_part_of_the_plan_is_planned_again(run: Run, damage: str) -> None:
    part = run.out / "_plan" / "round-001-00000.arrow"
    whole = part.read_bytes()
    if damage == "cut":
        os.truncate(part, len(whole) - 64)
    else:
        flip(part)
    # Nobody needs it.
    again = ["ingest", "a.csv", "b.csv", "--name", "set", "--out", str(run.out)]
    run.clipstill(again)
    assert part.read_bytes() != whole
    for path in [*run.out.glob("_records/00003.*"), run.out / "00003.parquet"]:
        path.unlink()
    run.clipstill(again)
    assert part.read_bytes() == whole
    assert verify_dataset(str(run.out)).problems == ()
