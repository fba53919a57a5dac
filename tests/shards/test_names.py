"""Keys, fingerprints and seeds: the names that everything on disk is found by."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile

import pytest

from shards import UserError, fingerprint, seed64
from shards.fingerprint import first_difference
from shards.keys import check_dataset_name, is_key, sample_key


def test_keys_sort_in_the_order_of_the_rows() -> None:
    rows = [0, 9, 10, 999, 1000, 999_999_999]
    keys = [sample_key("cc3m", row) for row in rows]
    assert keys[0] == "cc3m-000000000"
    assert sorted(keys) == keys
    assert len(set(keys)) == len(rows)


def test_the_longest_key_fits_a_ustar_header_and_has_one_dot_before_its_extension() -> None:
    key = sample_key(check_dataset_name("n" * 48), 10**12)
    assert is_key(key)
    for suffix in ("jpg", "txt", "json"):
        header = tarfile.TarInfo(f"{key}.{suffix}").tobuf(tarfile.USTAR_FORMAT)
        assert header[:100].rstrip(b"\0").decode() == f"{key}.{suffix}"
        assert f"{key}.{suffix}".split(".", 1) == [key, suffix]


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "Upper", "-x", "_x", "ü", "a b", "n" * 49, "cc3m\n", "../x"])
def test_names_that_would_break_a_key_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be part of a key"):
        check_dataset_name(name)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "ü", "k" * 91, "a\n"])
def test_unsafe_keys_are_told_apart(key: str) -> None:
    assert not is_key(key)


def test_a_fingerprint_is_the_hash_of_canonical_json() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"ü": "x"}}
    text = '{"a":{"\\u00fc":"x"},"b":[1,2.5,null,true]}'
    assert json.loads(text) == value
    assert fingerprint(value) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_fingerprint_ignores_the_order_of_settings_and_nothing_else() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    others = [{"a": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2.5}, {"a": 1, "b": "2"}, [1, 2], [2, 1]]
    assert len({fingerprint(value) for value in others}) == len(others)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"])
def test_what_has_no_canonical_text_gets_no_fingerprint(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        fingerprint(value)


def test_seeds_are_the_first_eight_bytes_of_a_hash_and_differ_by_every_part() -> None:
    expected = int.from_bytes(hashlib.sha256(b"cc3m\x1fcc3m-000000001\x1f3").digest()[:8], "little")
    assert seed64("cc3m", "cc3m-000000001", 3) == expected
    # Parts are kept apart: gluing them would make these equal.
    assert len({seed64("ab", "c"), seed64("a", "bc"), seed64("abc"), seed64("ab", "c", 0), seed64("ab", "c", 1)}) == 5
    assert all(0 <= seed64(number) < 2**64 for number in range(100))


def test_seeds_and_fingerprints_are_the_same_in_another_process() -> None:
    program = "from shards import fingerprint, seed64; print(seed64('a', 1), fingerprint({'x': {'y': 1.1}, 'a': 0}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert done.stdout.split() == [str(seed64("a", 1)), fingerprint({"x": {"y": 1.1}, "a": 0})]


def test_the_first_difference_is_named_with_both_values() -> None:
    old = {"image": {"size": 256, "mode": "crop"}, "name": "a"}
    assert first_difference(old, {"image": {"size": 224, "mode": "crop"}, "name": "a"}) == (
        "image.size was 256, now 224"
    )
    assert first_difference(old, {"image": old["image"]}) == 'name was "a", now null'
    assert first_difference(old, json.loads(json.dumps(old))) is None
