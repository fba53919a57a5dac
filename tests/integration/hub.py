"""A hub of datasets on this machine: what `huggingface_hub` asks of huggingface.co, answered from a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"
"""The commit that every known revision is."""


@dataclass
class Hub:
    """One dataset repository, `user/name`, with the revisions `main` and `v1`: the files of `folder`."""

    folder: Path
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    strange: list[str] = field(default_factory=list)
    """Those that are not understood here."""
    sent: int = 0
    """Bytes of files that were handed out."""
    endpoint: str = ""

    def entry(self, path: str) -> dict[str, Any] | None:
        """What the hub says of a path."""
        place = self.folder / path
        if place.is_dir():
            return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
        if not place.is_file():
            return None
        oid = hashlib.sha1(place.read_bytes()).hexdigest()
        return {"type": "file", "oid": oid, "size": place.stat().st_size, "path": path}

    def tree(self, path: str, *, recursive: bool) -> list[dict[str, Any]]:
        place = self.folder / path
        found = sorted(place.rglob("*") if recursive else place.glob("*"))
        entries = [self.entry(str(one.relative_to(self.folder))) for one in found]
        return [entry for entry in entries if entry is not None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for start, known in (
            ("/api/datasets/user/name/tree/", self._tree),
            ("/api/datasets/user/name/paths-info/", self._paths),
            ("/api/datasets/user/name/revision/", self._info),
            ("/datasets/user/name/resolve/", self._file),
        ):
            if path.startswith(start):
                revision, _, rest = path.removeprefix(start).partition("/")
                if revision not in self.hub.revisions:
                    return self._refuse("RevisionNotFound", "Invalid rev id")
                return known(rest, query, body)
        if path == "/api/datasets/user/name":
            return self._info()
        if path.startswith(("/api/", "/datasets/")):
            return self._refuse("RepoNotFound", "Repository not found")
        self.hub.strange.append(f"{self.command} {self.path}")
        return self._refuse("EntryNotFound", "Entry not found")

    def _info(self, *_: Any) -> None:
        self._json({"id": "user/name", "sha": COMMIT, "private": False, "siblings": [], "tags": [], "downloads": 0})

    def _tree(self, path: str, query: dict[str, list[str]], _: bytes) -> None:
        entry = self.hub.entry(path) if path else {"type": "directory"}
        if entry is None or entry["type"] != "directory":
            return self._refuse("EntryNotFound", "Entry not found")
        return self._json(self.hub.tree(path, recursive=query.get("recursive", ["false"])[0].lower() == "true"))

    def _paths(self, _: str, __: Any, body: bytes) -> None:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        found = [self.hub.entry(path) for path in ([paths] if isinstance(paths, str) else paths)]
        self._json([entry for entry in found if entry is not None])

    def _file(self, path: str, *_: Any) -> None:
        place = self.hub.folder / path
        if not place.is_file():
            return self._refuse("EntryNotFound", "Entry not found")
        data = place.read_bytes()
        start, stop = 0, len(data)
        asked = self.headers.get("Range")
        if asked is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(len(data), int(last) + 1 if last else len(data))
        self.send_response(206 if asked is not None else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if asked is not None:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command != "HEAD":
            self.hub.sent += stop - start
            self.wfile.write(data[start:stop])

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, code: str, message: str) -> None:
        data = json.dumps({"error": message}).encode()
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """A hub with what is in the folder."""
    served = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
