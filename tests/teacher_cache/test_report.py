"""The report's figures against numpy's on a real cache, and what hostile captions can do on the page: nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import Dataset, InProcess, UserError
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource
from teacher_cache.report import ReportFacts, report_cache
from tests.conftest import small_samples

HOSTILE = "<script>alert(1)</script><img src=http://a.example/x onerror=alert(2)>"
COUNTS = (9, 0, 12, 8, 10, 11)
TWICE = [(3, 25), (3, 40), (7, 48)]
"""Samples by number, of which the second holds the first one's very bytes."""


def samples() -> list[list[Any]]:
    shards = [small_samples(count, number) for number, count in enumerate(COUNTS)]
    flat = [sample for shard in shards for sample in shard]
    for first, second in TWICE:
        flat[second] = (flat[first][0], flat[first][1], flat[second][2])
    flat[3] = (*flat[3][:2], HOSTILE)
    rest = iter(flat)
    return [[next(rest) for _ in range(count)] for count in COUNTS]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def dataset(root: Path, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(root / "shards", samples=samples())


@pytest.fixture(scope="module")
def teacher(root: Path, save_teacher: Callable[..., str]) -> str:
    return save_teacher(root / "teacher")


@pytest.fixture(scope="module")
def cache(root: Path, dataset: Dataset, teacher: str) -> str:
    return build(dataset, root / "cache", teacher)


def build(dataset: Dataset, cache: Path, teacher: str, **options: Any) -> str:
    """Views are crops: whole pictures of the same bytes alone would have the same embedding."""
    chosen: dict[str, Any] = {"views": 1, "policy": "evaluation", "batch_size": 16, **options}
    named = (TeacherSpec(teacher, "teach"),)
    build_cache(BuildSettings(shards=str(dataset.folder), cache=str(cache), teachers=named, **chosen), InProcess())
    return str(cache)


@pytest.fixture(scope="module")
def facts(dataset: Dataset, cache: str) -> ReportFacts:
    return report_cache(str(dataset.folder), cache)


def stored(cache: str, layer: str, column: str) -> np.ndarray:
    """(n, D) float64, each row of norm 1."""
    parts = []
    for path in sorted((Path(cache) / "teach" / layer).glob("*.arrow")):
        with pa.memory_map(str(path)) as source:
            rows = pa.ipc.open_file(source).read_all()[column].to_pylist()
        parts += rows
    values = np.array(parts, np.float64)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


class Page(HTMLParser):
    """What a browser makes of the page: tags, attributes, texts by id, captions."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, str] = {}
        self.captions: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.text = Path(path).read_text()
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in {"meta", "img", "br"}:
            self._open.append((tag, dict(attrs)))
        if dict(attrs).get("class") == "caption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"{tag} closes another element"

    def handle_data(self, data: str) -> None:
        for _, attributes in self._open:
            if name := attributes.get("id"):
                self.texts[name] = self.texts.get(name, "") + data
            if attributes.get("class") == "caption":
                self.captions[-1] += data

    def close(self) -> None:
        super().close()
        assert not self._open, "the page is not complete"


def table(facts: ReportFacts) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(facts.scores).to_pydict()
    return columns


def keys(dataset: Dataset) -> list[str]:
    return [key for shard in dataset.shards for key in shard.keys]


def pictures(page: Page) -> list[str]:
    return [value for name, value in page.attributes if name == "src"]


def test_scores_are_the_cosines_of_what_the_cache_holds(dataset: Dataset, cache: str, facts: ReportFacts) -> None:
    image, text = stored(cache, "views-000-000", "view_000"), stored(cache, "captions-txt", "caption_000")
    wanted = (image * text).sum(axis=1)
    rows = table(facts)
    assert rows["key"] == keys(dataset)
    assert rows["shard"] == [number for number, count in enumerate(COUNTS) for _ in range(count)]
    np.testing.assert_allclose(rows["clip_score"], wanted, atol=1e-6)
    assert facts.samples == sum(COUNTS)
    assert (facts.missing, facts.broken) == (0, 0)
    assert facts.score_mean == pytest.approx(wanted.mean(), abs=1e-6)
    assert facts.score_median == pytest.approx(np.median(wanted), abs=1e-6)
    page = Page(facts.page)
    assert page.texts["mean"] == f"{wanted.mean():.3f}"
    starts = np.concatenate([[0], np.cumsum(COUNTS)])
    own = np.concatenate(
        [wanted[a:b] > (image[a:b] * np.roll(text[a:b], -1, axis=0)).sum(axis=1) for a, b in pairwise(starts)]
    )
    assert page.texts["ahead"].split("\N{NO-BREAK SPACE}")[0] == f"{100 * own.mean():.1f}"


def test_every_image_is_given_its_nearest(dataset: Dataset, cache: str, facts: ReportFacts) -> None:
    image = stored(cache, "views-000-000", "view_000")
    cosines = image @ image.T
    np.fill_diagonal(cosines, -1)
    rows, names = table(facts), keys(dataset)
    for sample, (key, cosine) in enumerate(zip(rows["nearest_key"], rows["nearest_cosine"], strict=True)):
        most = cosines[sample].max()
        if most < facts.threshold - 1e-5:
            assert (key, cosine) == (None, None)
        elif most > facts.threshold + 1e-5:
            assert cosine == pytest.approx(most, abs=1e-4)
            assert cosines[sample, names.index(key)] > most - 1e-4
    for first, second in TWICE:
        assert rows["nearest_cosine"][second] == pytest.approx(1, abs=1e-4)
        assert cosines[second, names.index(rows["nearest_key"][second])] == pytest.approx(1, abs=1e-6), first
    assert facts.duplicates == int((cosines.max(axis=1) > facts.threshold).sum())
    assert facts.exact


def test_hostile_captions_are_text_and_nothing_is_loaded_from_elsewhere(facts: ReportFacts) -> None:
    page = Page(facts.page)
    assert page.tags["script"] == 0
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "href"]
    assert pictures(page)
    assert all(source.startswith("data:image/jpeg;base64,") for source in pictures(page))
    assert "default-src 'none'" in page.text
    assert not re.search(r"url\(|@import", page.text)
    assert HOSTILE in page.captions


def test_a_second_report_replaces_the_first_with_the_same_bytes(
    dataset: Dataset, cache: str, facts: ReportFacts, tmp_path: Path
) -> None:
    before = {path: Path(path).read_bytes() for path in (facts.page, facts.scores)}
    Path(facts.page).write_text("an older one")
    assert report_cache(str(dataset.folder), cache) == facts
    assert {path: Path(path).read_bytes() for path in before} == before
    names = {path.name for path in (Path(cache) / "teach").iterdir() if path.is_file()}
    assert names == {"teacher.json", "report.html", "scores.parquet"}
    elsewhere = report_cache(str(dataset.folder), cache, out=str(tmp_path / "out"))
    assert elsewhere.page == str(tmp_path / "out" / "report.html")
    assert Path(elsewhere.page).read_bytes() == before[facts.page]


@pytest.mark.parametrize("towers", ["image", "text"])
def test_teachers_with_one_tower_have_no_scores(
    dataset: Dataset, teacher: str, tmp_path: Path, towers: str, facts: ReportFacts
) -> None:
    cache = build(dataset, tmp_path / "cache", teacher, towers=towers)
    got = report_cache(str(dataset.folder), cache)
    page, rows = Page(got.page), table(got)
    assert (got.score_mean, got.score_median) == (None, None)
    assert rows["clip_score"] == [None] * sum(COUNTS)
    if towers == "image":
        assert rows["nearest_key"] == table(facts)["nearest_key"]
        assert got.duplicates == facts.duplicates
    else:
        assert (got.duplicates, got.exact, pictures(page)) == (0, None, [])
        assert rows["nearest_key"] == [None] * sum(COUNTS)


def test_of_several_caption_sets_the_plain_one_counts_else_the_first(
    dataset: Dataset, teacher: str, tmp_path: Path, facts: ReportFacts
) -> None:
    path = tmp_path / "captions.parquet"
    names = keys(dataset)
    pq.write_table(pa.table({"key": names, "syn": [[f"said {n}", "other"] for n in range(len(names))]}), path)
    made = CaptionSource.parse(f"table:{path}#syn*2")
    alone = build(dataset, tmp_path / "alone", teacher, captions=(made,))
    both = build(dataset, tmp_path / "both", teacher, captions=(made, CaptionSource.parse("txt")))
    got = report_cache(str(dataset.folder), alone)
    image, text = stored(alone, "views-000-000", "view_000"), stored(alone, "captions-table-syn", "caption_000")
    np.testing.assert_allclose(table(got)["clip_score"], (image * text).sum(axis=1), atol=1e-6)
    lowest = names[int(np.argmin((image * text).sum(axis=1)))]
    assert Page(got.page).captions[0] == f"said {names.index(lowest)}"
    whole = report_cache(str(dataset.folder), both)
    assert table(whole)["clip_score"] == table(facts)["clip_score"]
    # Every set is judged, by all its captions.
    second = stored(alone, "captions-table-syn", "caption_001")
    syn = np.mean([(image * rows).sum(axis=1) for rows in (text, second)])
    assert whole.set_scores == pytest.approx({"table-syn": syn, "txt": facts.score_mean}, abs=1e-6)
    assert f"{syn:.4f}" in Page(whole.page).text


def test_samples_that_the_cache_lacks_are_said_and_left_out(
    cache: str, tmp_path: Path, make_dataset: Callable[..., Dataset], facts: ReportFacts
) -> None:
    larger = make_dataset(tmp_path / "larger", samples=[*samples(), small_samples(4, 77)])
    got = report_cache(str(larger.folder), cache, out=str(tmp_path / "out"))
    rows = table(got)
    assert (got.samples, got.missing) == (sum(COUNTS) + 4, 4)
    assert rows["clip_score"] == [*table(facts)["clip_score"], *[None] * 4]
    assert rows["nearest_key"][-4:] == [None] * 4
    assert "4 of 54 samples have no embeddings" in Page(got.page).texts["problems"]
    other = make_dataset(tmp_path / "other", (3,), name="other")
    with pytest.raises(UserError, match="none of the 3 samples has embeddings"):
        report_cache(str(other.folder), cache)


def test_a_cache_that_is_being_added_to_is_judged_by_what_is_whole(
    dataset: Dataset, teacher: str, tmp_path: Path, facts: ReportFacts
) -> None:
    """The second caption set has come to some shards, as after a kill."""
    both = build(
        dataset, tmp_path / "cache", teacher, captions=(CaptionSource.parse("txt"), CaptionSource.parse("json:caption"))
    )
    for record in Path(both).rglob("captions-json-caption/_records/0000[2-5].*"):
        record.unlink()
    got = report_cache(str(dataset.folder), both)
    assert (got.missing, set(got.set_scores)) == (0, {"txt"})
    assert table(got) == table(facts)


def test_images_whose_captions_are_still_to_come_are_judged_and_shown(
    dataset: Dataset, teacher: str, tmp_path: Path, facts: ReportFacts
) -> None:
    cut = build(dataset, tmp_path / "cache", teacher)
    for record in Path(cut).rglob("captions-txt/_records/0000[4-5].*"):
        record.unlink()
    got = report_cache(str(dataset.folder), cut)
    assert (got.missing, got.duplicates) == (sum(COUNTS[4:]), facts.duplicates)
    page = Page(got.page)
    assert f"{got.missing} of 50 samples have no embeddings, or not all" in page.texts["problems"]
    # The copy in shard 5 is shown beside the sample in shard 0 that it is one of.
    assert keys(dataset)[48] in page.text
    rows = table(got)
    assert rows["nearest_key"] == table(facts)["nearest_key"]
    assert rows["clip_score"][-sum(COUNTS[4:]) :] == [None] * sum(COUNTS[4:])


@pytest.fixture
def broken(dataset: Dataset, teacher: str, tmp_path: Path, forge: Callable[..., None]) -> Iterator[str]:
    """A cache whose shard 4 has two rows that are no numbers, one of zeros, and the others turned round."""
    cache = build(dataset, tmp_path / "cache", teacher)

    def change(table: pa.Table) -> pa.Table:
        values = -np.array(table["view_000"].to_pylist(), np.float16)
        values[1], values[2], values[5, 3] = np.nan, 0, np.inf
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        place = table.schema.get_field_index("view_000")
        return table.set_column(place, "view_000", column).replace_schema_metadata(table.schema.metadata)

    forge(Path(cache) / "teach" / "views-000-000", 4, change)
    return cache


def test_a_damaged_shard_is_named(dataset: Dataset, broken: str, facts: ReportFacts) -> None:
    assert facts.odd_shards == ()
    got = report_cache(str(dataset.folder), broken)
    assert got.odd_shards == (4,)
    assert got.broken == 3
    told = Page(got.page).texts["problems"]
    assert "00004" in told
    assert "3 rows are zero or not a number" in told
    rows, before = table(got), table(facts)
    first = sum(COUNTS[:4])
    assert [rows["clip_score"][first + at] for at in (1, 2, 5)] == [None] * 3
    assert rows["clip_score"][first] == pytest.approx(-before["clip_score"][first], abs=1e-6)
    assert rows["clip_score"][:first] == before["clip_score"][:first]
    # On the other side of the rows that cannot be compared.
    assert rows["nearest_key"][7] == keys(dataset)[48]
    assert rows["nearest_key"][48] == keys(dataset)[7]


def test_the_page_says_who_the_teacher_is(cache: str, facts: ReportFacts) -> None:
    said = json.loads((Path(cache) / "teach" / "teacher.json").read_text())
    page = Page(facts.page)
    assert said["spec"] in page.text
    assert "20" in page.text
    assert "float16" in page.texts["layers"]
