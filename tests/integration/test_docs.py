"""What the documents say is there: files, sections, commands that parse, and the tree of files."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def anchors(path: Path) -> set[str]:
    """The names by which a document's headings can be linked to."""
    titles = re.findall(r"(?m)^#+ (.+)$", path.read_text())
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, section = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if section:
            assert section in anchors(target), link


def commands() -> Iterator[tuple[str, str]]:
    """Every whole command in the documents' code blocks, with the document's name."""
    for path in DOCUMENTS:
        for block in re.findall(r"(?ms)^```\n(.+?)^```", path.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("clipstill "):
                    yield path.name, line


@pytest.mark.parametrize(("document", "line"), list(commands()))
def test_commands_parse(document: str, line: str, parse_line: Callable[[str], None]) -> None:
    assert document
    parse_line(line)


def test_the_tree_has_every_file_as_it_is() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "tree.py"))["tree"](ROOT)
    assert made == (ROOT / "docs" / "tree.md").read_text(), "run `make tree`"
    assert ": \n" not in made, "a module without a docstring"


def test_the_first_screen_stays_one() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
