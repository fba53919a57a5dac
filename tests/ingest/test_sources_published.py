"""Small files in each published layout, and conditions on their columns."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import SourceSettings
from ingest.sources import Source
from shards import UserError

OWN = ("url", "caption", "captions", "filtered_by", "digest", "fault")


def read(path: Path, **settings: Any) -> list[dict[str, Any]]:
    source = Source(SourceSettings(paths=(str(path),), **settings))
    return [row for table in source.tables() for row in table.to_pylist()]


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


LAION_400M = {
    "SAMPLE_ID": pa.array([1.0, 2.0]),
    "URL": ["http://a/1.jpg", "http://a/2.jpg"],
    "TEXT": ["one", "two"],
    "HEIGHT": pa.array([480.0, None]),
    "WIDTH": pa.array([640.0, None]),
    "LICENSE": ["?", "https://creativecommons.org/licenses/by/2.0/"],
    "NSFW": ["UNLIKELY", None],
    "similarity": pa.array([0.35, 0.29], pa.float32()),
}
LAION_2B = LAION_400M | {
    "SAMPLE_ID": pa.array([1, 2]),
    "LANGUAGE": ["en", "en"],
    "punsafe": [0.1, 0.9],
    "pwatermark": [0.2, 0.8],
    "hash": [2**62, -1],
}
RE_LAION = {
    "url": ["http://a/1.jpg", "http://a/2.jpg"],
    "caption": ["one", "two"],
    "key": ["000000000", "000000001"],
    "status": ["success", "failed_to_download"],
    "width": [256, None],
    "height": [256, None],
    "original_width": [640, None],
    "original_height": [480, None],
    "similarity": [0.35, 0.29],
    "punsafe": [0.1, 0.9],
    "pwatermark": [0.2, 0.8],
}


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        (LAION_400M, ["SAMPLE_ID", "LICENSE", "NSFW", "similarity", "listed_width", "listed_height"]),
        (
            LAION_2B,
            [
                *("SAMPLE_ID", "LICENSE", "LANGUAGE", "NSFW", "similarity", "punsafe", "pwatermark", "hash"),
                *("listed_width", "listed_height"),
            ],
        ),
        (RE_LAION, ["listed_key", "similarity", "punsafe", "pwatermark", "listed_width", "listed_height"]),
    ],
)
def test_laions_columns_are_known_and_kept(tmp_path: Path, columns: dict[str, Any], kept: list[str]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "part-00000.snappy.parquet")
    rows = read(tmp_path, format="laion")
    assert [list(row) for row in rows] == [[*OWN, *kept]] * 2
    assert [(row["url"], row["caption"]) for row in rows] == [("http://a/1.jpg", "one"), ("http://a/2.jpg", "two")]
    assert column(rows, "similarity") == pytest.approx([0.35, 0.29])
    assert [(row["listed_width"], row["listed_height"]) for row in rows] == [(640, 480), (None, None)]
    assert column(rows, "digest") == [None, None]
    if "LICENSE" in kept:
        assert column(rows, "LICENSE") == ["?", "https://creativecommons.org/licenses/by/2.0/"]
        assert column(rows, "NSFW") == ["UNLIKELY", None]


def test_files_of_one_folder_may_spell_columns_otherwise_or_lack_some(tmp_path: Path) -> None:
    pq.write_table(pa.table(LAION_400M), tmp_path / "a.parquet")
    pq.write_table(pa.table({"url": ["http://b"], "text": ["three"], "nsfw": ["NSFW"]}), tmp_path / "b.parquet")
    rows = read(tmp_path, format="laion")
    assert column(rows, "url") == ["http://a/1.jpg", "http://a/2.jpg", "http://b"]
    assert column(rows, "NSFW") == ["UNLIKELY", None, "NSFW"]
    assert column(rows, "LICENSE") == ["?", "https://creativecommons.org/licenses/by/2.0/", None]


def test_what_is_named_goes_before_what_is_known(tmp_path: Path) -> None:
    extra = {"caption": ["better", "best"], "md5": ["AA", "bb"], "score": [1, 2]}
    pq.write_table(pa.table(LAION_2B | extra), tmp_path / "a.parquet")
    rows = read(
        tmp_path / "a.parquet",
        format="laion",
        caption_column="caption",
        hash_column="md5",
        keep=("score", "nsfw"),
    )
    assert column(rows, "caption") == ["better", "best"]
    assert column(rows, "digest") == ["aa", "bb"]
    assert column(rows, "score") == [1, 2]
    assert column(rows, "nsfw") == ["UNLIKELY", None]
    assert "NSFW" not in rows[0]
    assert column(rows, "LANGUAGE") == ["en", "en"]


def test_datacomps_hash_is_what_originals_must_have(tmp_path: Path) -> None:
    columns = {
        "uid": ["0123456789abcdef0123456789abcdef", "f" * 32],
        "url": ["http://a/1.jpg", "http://a/2.jpg"],
        "text": ["one", "two"],
        "original_width": [640, 300],
        "original_height": [480, 200],
        "clip_b32_similarity_score": pa.array([0.25, 0.5], pa.float32()),
        "clip_l14_similarity_score": pa.array([0.125, 0.75], pa.float32()),
        "face_bboxes": [[[0.0, 0.25, 0.5, 1.0]], []],
        "sha256": ["AB" * 32, ""],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows = read(tmp_path, format="datacomp")
    assert column(rows, "digest") == ["ab" * 32, None]
    renamed = {"original_width": "listed_width", "original_height": "listed_height"}
    for name in columns.keys() - {"url", "text", "sha256"}:
        assert column(rows, renamed.get(name, name)) == pa.array(columns[name]).to_pylist(), name
    assert "sha256" not in rows[0]


def photo(number: int, **changes: str) -> str:
    fields = {
        "line": str(number),
        "photo_id": str(1000 + number),
        "photo_hash": f"{number:032x}",
        "user_id": "39019111@N00",
        "nickname": "Jos%C3%A9+P",
        "taken": "2012-02-16 09:56:37.0",
        "uploaded": "1331840483",
        "device": "Canon+PowerShot",
        "title": f"Title+{number}",
        "description": "",
        "tags": "a,b",
        "machine_tags": "",
        "longitude": "-81.8",
        "latitude": "24.5",
        "accuracy": "12",
        "page": f"http://www.flickr.com/photos/39019111@N00/{1000 + number}/",
        "url": f"http://farm1.staticflickr.com/5/{1000 + number}_s.jpg",
        "license": "Attribution-NonCommercial License",
        "license_url": "http://creativecommons.org/licenses/by-nc/2.0/",
        "server": "5",
        "farm": "1",
        "secret": "s",
        "secret_original": "o",
        "extension": "jpg",
        "marker": "0",
    } | changes
    return "\t".join(fields.values())


def subset_of(folder: Path, *photos: int) -> str:
    path = folder / "yfcc100m_subset_data.tsv.bz2"
    path.write_bytes(bz2.compress("".join(f"{n}\t{1000 + n}\t{n:032x}\n" for n in photos).encode()))
    return str(path)


def test_yfcc15m_is_the_subsets_photos_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    first = [photo(3), photo(1, title="", description=quote_plus("a <b>big</b> dog &amp;\n\tcat")), photo(2)]
    second = [photo(5, title="What%3F", description="Caf%C3%A9+100%25"), photo(4), photo(3)]
    (tmp_path / "yfcc100m_dataset-0.bz2").write_bytes(bz2.compress(("\n".join(first) + "\n").encode()))
    (tmp_path / "yfcc100m_dataset-1.gz").write_bytes(gzip.compress("\n".join(second).encode()))
    rows = read(tmp_path, format="yfcc15m", subset=subset_of(tmp_path, 5, 9, 1, 3, 7))
    assert column(rows, "photo_id") == ["1003", "1001", "1005", "1007", "1009"]
    assert column(rows, "caption") == ["Title 3", "a big dog & cat", "What? Café 100%", None, None]
    assert (
        column(rows, "url") == [f"http://farm1.staticflickr.com/5/{n}_s.jpg" for n in (1003, 1001, 1005)] + [None] * 2
    )
    assert column(rows, "license") == ["Attribution-NonCommercial License"] * 3 + [None] * 2
    assert rows[0] == {
        "url": "http://farm1.staticflickr.com/5/1003_s.jpg",
        "caption": "Title 3",
        "captions": None,
        "filtered_by": None,
        "digest": None,
        "fault": None,
        "photo_id": "1003",
        "nickname": "José P",
        "page_url": "http://www.flickr.com/photos/39019111@N00/1003/",
        "license": "Attribution-NonCommercial License",
        "license_url": "http://creativecommons.org/licenses/by-nc/2.0/",
    }


@pytest.mark.parametrize(
    ("title", "description", "caption"),
    [
        ("A dog", "on the beach", "A dog. on the beach"),
        ("A dog!", "On the beach", "A dog! On the beach"),
        ("A dog", "", "A dog"),
        ("", "", ""),
        ("1 < 2", 'see <a href="http://x">this</a>', "1 < 2. see this"),
        ("&quot;x&quot;", "a\r\n\r\nb", '"x". a b'),
    ],
)
def test_yfccs_captions_are_title_and_description(tmp_path: Path, title: str, description: str, caption: str) -> None:
    path = tmp_path / "yfcc100m_dataset"
    path.write_text(photo(1, title=quote_plus(title), description=quote_plus(description)) + "\n")
    assert column(read(path, format="yfcc15m", subset=subset_of(tmp_path, 1)), "caption") == [caption]


def test_each_row_of_yfccs_subset_is_a_row_even_if_it_is_damaged_or_repeated(tmp_path: Path) -> None:
    path = tmp_path / "dataset.tsv"
    cut = "\t".join(photo(2).split("\t")[:9])
    path.write_text("\n".join([photo(1), cut, "no number\tx\ty", photo(4)]) + "\n")
    rows = read(path, format="yfcc15m", subset=subset_of(tmp_path, 1, 2, 1, 3), keep=("user_tags", "device"))
    assert [(row["photo_id"], row["url"] is None, row["caption"]) for row in rows] == [
        ("1001", False, "Title 1"),
        ("1001", False, "Title 1"),
        (None, True, cut),
        ("1003", True, None),
    ]
    assert [(row["user_tags"], row["device"]) for row in rows[:1]] == [("a,b", "Canon PowerShot")]


def test_a_list_of_photos_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.tsv").write_text(photo(1))
    (tmp_path / "subset.tsv").write_text("1\t1001\tx\n1001\n")
    with pytest.raises(UserError, match=r"subset\.tsv: the line '1001' is not a line number, photo id and photo hash"):
        read(tmp_path / "dataset.tsv", format="yfcc15m", subset=str(tmp_path / "subset.tsv"))


TABLE = pa.table(
    {
        "url": [f"http://a/{n}" for n in range(5)],
        "caption": list("abcde"),
        "score": pa.array([0.1, 0.3, None, float("nan"), 2.0], pa.float32()),
        "size": pa.array([1, 2**62, 2**62 + 1, None, -5], pa.int64()),
        "NSFW": ["UNLIKELY", "NSFW", None, "", "UNSURE"],
        "ok": [True, False, None, True, False],
        "day": pa.array([0, 1, 2, None, 4], pa.date32()),
        "number text": ["10", " 9 ", "x", None, "1e3"],
    }
)


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("score >= 0.3", {1, 4}),
        ("score<0.3", {0}),
        ("score != 2", {0, 1}),
        ("size == 4611686018427387904", {1}),
        ("size > 4611686018427387904", {2}),
        ("size < 1.5", {0, 4}),
        ("NSFW == UNLIKELY", {0}),
        ("nsfw == UNLIKELY", {0}),
        ("NSFW != 'NSFW'", {0, 3, 4}),
        ('NSFW == ""', {3}),
        ("ok == true", {0, 3}),
        ("day >= 1970-01-03", {2, 4}),
        ("number text > 9.5", {0, 4}),
        ("number text == '10'", {0}),
        ("caption <= b", {0, 1}),
    ],
)
def test_rows_that_do_not_meet_a_condition_say_which(tmp_path: Path, condition: str, met: set[int]) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", where=(condition,))
    assert column(rows, "filtered_by") == [None if row in met else condition for row in range(5)]
    assert column(rows, "caption") == list("abcde")


def test_all_conditions_must_hold_and_the_first_that_does_not_is_named(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", where=("score >= 0.1", "ok == true"))
    assert column(rows, "filtered_by") == [None, "ok == true", "score >= 0.1", "score >= 0.1", "ok == true"]


def test_a_malformed_row_is_not_said_to_be_filtered(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("url\tcaption\tscore\nhttp://a\tA\t1\nbroken\nhttp://b\tB\t0\n")
    rows = read(tmp_path / "a.tsv", where=("score > 0.5",))
    assert [(row["url"], row["filtered_by"]) for row in rows] == [
        ("http://a", None),
        (None, None),
        ("http://b", "score > 0.5"),
    ]


@pytest.mark.parametrize(
    "condition", ["score >= high", "size == x", "day > soon", "score", "score >=", ">= 3", "a => 3"]
)
def test_a_condition_that_cannot_be_put_is_refused(tmp_path: Path, condition: str) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="condition") as raised:
        Source(SourceSettings(paths=(str(tmp_path / "a.parquet"),), where=(condition,)))
    assert repr(condition) in str(raised.value)
