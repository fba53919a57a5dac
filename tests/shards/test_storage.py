"""Folders, local and on an S3 server: what is published is whole, and what cannot work is said in one line."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs

from shards import Folder, UserError


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
    if request.param == "local":
        return Folder(tmp_path / "a folder" / "data")
    return Folder(f"{request.getfixturevalue('bucket')}/a folder/data")


def test_publish_read_replace_delete(folder: Folder) -> None:
    assert folder.size("x") is None
    assert not folder.exists("x")
    with pytest.raises(FileNotFoundError):
        folder.read("x")
    folder.publish("x", b"first")
    assert (folder.read("x"), folder.size("x"), folder.exists("x")) == (b"first", 5, True)
    folder.publish("x", b"")
    assert (folder.read("x"), folder.size("x")) == (b"", 0)
    folder.delete("x")
    folder.delete("x")
    assert not folder.exists("x")


def test_a_listing_holds_names_by_prefix_sorted_and_at_once(folder: Folder) -> None:
    assert folder.names() == []
    assert folder.names("00001.") == []
    for name in ("00010.a.json", "00001.b.json", "00001.a.json", "000011.json", ".hidden"):
        folder.publish(name, b"1")
        assert (name in folder.names()) == (name != ".hidden")
    folder.child("sub").publish("00001.deep", b"1")
    assert folder.names() == ["00001.a.json", "00001.b.json", "000011.json", "00010.a.json", "sub"]
    assert folder.names("00001.") == ["00001.a.json", "00001.b.json"]
    assert folder.names("zzz") == []
    assert folder.child("nothing", "here").names() == []
    # Another process deletes: a listing is never remembered.
    Folder(folder.url).delete("00001.b.json")
    assert folder.names("00001.") == ["00001.a.json"]


def test_staged_publishes_on_a_clean_exit_only(folder: Folder) -> None:
    folder.publish("kept", b"old")
    with folder.staged("kept") as path:
        path.write_bytes(b"half")
        assert folder.read("kept") == b"old"
        path.write_bytes(b"new")
    assert folder.read("kept") == b"new"


@pytest.mark.parametrize(
    "error", [ValueError("mine"), FileNotFoundError("mine"), PermissionError("mine"), SystemExit()]
)
def test_an_exception_publishes_nothing_and_passes_unchanged(folder: Folder, error: BaseException) -> None:
    folder.publish("kept", b"old")

    def half(name: str) -> None:
        with folder.staged(name) as path:
            path.write_bytes(b"half")
            raise error

    for name in ("kept", "fresh"):
        with pytest.raises(type(error)) as raised:
            half(name)
        assert raised.value is error
    assert folder.read("kept") == b"old"
    assert folder.names() == ["kept"]
    if folder.is_local:
        assert [path.name for path in folder.path.iterdir()] == ["kept"]


def test_readers_see_whole_versions_only(folder: Folder) -> None:
    versions = {hashlib.sha256(bytes([number]) * 200_000).digest(): number for number in range(8)}
    folder.publish("x", bytes([0]) * 200_000)
    done = threading.Event()

    def write() -> None:
        writing = Folder(folder.url)
        for number in range(1, 8):
            writing.publish("x", bytes([number]) * 200_000)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not done.is_set() or not seen:
        seen.append(versions[hashlib.sha256(folder.read("x")).digest()])
    writer.join()
    assert seen == sorted(seen)
    assert folder.read("x") == bytes([7]) * 200_000


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, kill_often: Callable[[str, int], list[int]]
) -> None:
    old, new = b"old" * 100_000, b"new" * 150_000
    program = f"""
from shards import Folder

def work(number):
    folder = Folder({str(tmp_path)!r}).child(f"data-{{number}}")
    folder.publish("standing", {old[:3]!r} * 100_000)
    tick_at_files(folder.url)
    for name in ("fresh", "standing"):
        with folder.staged(name) as path:
            with path.open("wb", buffering=0) as file:
                for _ in range(10):
                    file.write({new[:3]!r} * 15_000)
                    tick()
"""
    kills = 12
    kill_often(program, kills)
    outcomes = set()
    for number in range(1, kills + 1):
        folder = Folder(tmp_path).child(f"data-{number}")
        fresh = folder.read("fresh") if folder.exists("fresh") else None
        assert fresh in {None, new}
        assert folder.read("standing") in {old, new}
        assert set(folder.names()) <= {"fresh", "standing"}
        outcomes.add(fresh)
        leftovers = len(list(folder.path.glob(".*")))
        assert folder.sweep() == leftovers <= 1
        assert not list(folder.path.glob(".*"))
    # Kills fell both before and after the first file was published.
    assert outcomes == {None, new}


def test_sweep_looks_where_bookkeeping_is_written_and_nowhere_else(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    places = [tmp_path, tmp_path / "_records", tmp_path / "_failures", tmp_path / "other-stage"]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / ".00001.tar.0123.tmp").write_bytes(b"half")
        (place / "kept").write_bytes(b"whole")
    (tmp_path / ".profile").write_bytes(b"the user's")
    assert folder.sweep() == 3
    assert [len(list(place.glob(".*.tmp"))) for place in places] == [0, 0, 0, 1]
    assert all((place / "kept").exists() for place in places)
    assert (tmp_path / ".profile").exists()


def test_a_folder_crosses_processes_by_its_url_alone(folder: Folder) -> None:
    folder.publish("x", b"here")
    copy = pickle.loads(pickle.dumps(folder))
    assert copy == folder
    assert hash(copy) == hash(folder)
    assert copy.read("x") == b"here"
    assert vars(pickle.loads(pickle.dumps(folder))) == {"url": folder.url}
    assert folder.child("y") != folder


def test_sweep_leaves_alone_what_is_being_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    sweeper = f"from shards import Folder; print(Folder({str(tmp_path)!r}).sweep())"
    with folder.staged("x") as path:
        path.write_bytes(b"half")
        assert folder.sweep() == 0
        swept = subprocess.run([sys.executable, "-c", sweeper], capture_output=True, text=True, check=True)
        assert swept.stdout == "0\n"
        assert path.read_bytes() == b"half"
    assert folder.read("x") == b"half"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_writers_and_sweepers_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            folder.sweep()

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in sweepers:
        thread.start()
    try:
        for number in range(150):
            folder.publish(str(number), b"whole")
    finally:
        done.set()
        for thread in sweepers:
            thread.join()
    assert sorted(folder.names(), key=int) == [str(number) for number in range(150)]


def test_a_relative_path_is_made_absolute_when_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = Folder("data")
    monkeypatch.chdir("/")
    assert folder.path == tmp_path / "data"
    assert Folder("~/data").path == tmp_path / "home" / "data"


def test_fetch_checks_what_it_copies_and_copies_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "copies"))
    folder = Folder(f"{bucket}/data")
    folder.publish("x", b"payload")
    sha256 = hashlib.sha256(b"payload").hexdigest()
    path = folder.fetch("x", sha256)
    assert path.read_bytes() == b"payload"
    folder.publish("x", b"PAYLOAD")
    assert folder.fetch("x", sha256) == path
    with pytest.raises(OSError, match="expected " + sha256):
        folder.fetch("x", sha256, fresh=True)
    assert path.read_bytes() == b"payload"
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(OSError, match="expected " + other):
        folder.fetch("x", other)
    assert [entry.name for entry in (tmp_path / "copies").iterdir()] == [sha256]


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Not root for the length of a test, whom no file mode stops."""
    mine = os.geteuid()
    os.seteuid(65534 if mine == 0 else mine)
    yield
    os.seteuid(mine)


def said(action: Callable[[], object], where: str) -> str:
    with pytest.raises(UserError) as raised:
        action()
    text = str(raised.value)
    assert where in text
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("ordinary_user")
def test_a_folder_without_permission_is_the_users_to_mend() -> None:
    folder = Folder("/etc/clipstill")
    assert "Permission denied" in said(lambda: folder.publish("x", b"1"), "/etc/clipstill")
    with pytest.raises(UserError, match="Permission denied"), folder.staged("x"):
        pytest.fail("nothing can be written here")


def test_a_file_where_a_folder_should_be_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (Folder(tmp_path / "file"), Folder(tmp_path / "file" / "below")):
        said(lambda folder=folder: folder.publish("x", b"1"), str(folder))
        said(lambda folder=folder: folder.read("x"), str(folder))
        said(lambda folder=folder: folder.names(), str(folder))
        said(lambda folder=folder: folder.names("00001."), str(folder))


def test_an_unknown_scheme_is_the_users_to_mend() -> None:
    assert "Protocol not known" in said(lambda: Folder("nope://x").names(), "nope://x")


def test_a_bucket_that_is_not_there_is_the_users_to_mend(bucket: str) -> None:
    missing = Folder(f"{bucket}-not-there/data")
    said(lambda: missing.publish("x", b"1"), missing.url)
    with pytest.raises(UserError, match="does not exist"), missing.staged("x") as path:
        path.write_bytes(b"1")
    assert missing.names() == []


@pytest.fixture
def locked(s3_endpoint: str) -> Iterator[None]:
    """The store asks for valid credentials; nobody has any."""

    def allow(actions: str) -> None:
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{s3_endpoint}/moto-api/reset-auth", actions.encode(), plain)
        urllib.request.urlopen(request).close()

    allow("0")
    yield
    allow("inf")


@pytest.mark.usefixtures("bucket", "locked")
def test_wrong_credentials_are_the_users_to_mend(bucket: str) -> None:
    folder = Folder(f"{bucket}/data")
    actions: list[Callable[[], object]] = [
        folder.names,
        lambda: folder.names("00001."),
        lambda: folder.read("x"),
        lambda: folder.size("x"),
        lambda: folder.exists("x"),
        lambda: folder.publish("x", b"1"),
        lambda: folder.delete("x"),
        lambda: folder.fetch("x", "0" * 64),
    ]
    for action in actions:
        assert "credentials" in said(action, folder.url)


def test_no_credentials_at_all_are_the_users_to_mend(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    folder = Folder(f"{bucket}/data")
    assert "credentials" in said(lambda: folder.publish("x", b"1"), folder.url)
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_endpoint_that_does_not_answer_is_the_users_to_mend(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    folder = Folder(f"{bucket}/data")
    assert "127.0.0.1:1" in said(lambda: folder.read("x"), folder.url)
    s3fs.S3FileSystem.clear_instance_cache()


HOLDER = """
import sys
from shards import Folder
with Folder(sys.argv[1]).alone():
    print("mine")
"""


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with contextlib.ExitStack() as mine:
        mine.enter_context(Folder(tmp_path).alone())
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == f"{tmp_path}: another run is at work here; waiting for its end\n"
            assert process.poll() is None
            mine.close()
            assert process.communicate(timeout=60)[0] == "mine\n"


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with Folder(tmp_path / "new").alone():
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with Folder(tmp_path / "mine").alone():
        pass
    assert (tmp_path / "mine").is_dir()
