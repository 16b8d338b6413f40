"""A server on loopback that answers like the Hugging Face hub, for one dataset of Parquet files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """One repository at one commit; ``requests`` lists what was asked for."""

    def __init__(self, repository: str, revision: str, files: dict[str, bytes]) -> None:
        self.repository, self.revision, self.files = repository, revision, files
        self.requests: list[str] = []

    def entry(self, path: str) -> dict[str, object]:
        content = self.files[path]
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid}

    def children(self, folder: str) -> list[dict[str, object]]:
        prefix = f"{folder}/" if folder else ""
        inside = [name.removeprefix(prefix) for name in self.files if name.startswith(prefix)]
        folders = {name.split("/")[0] for name in inside if "/" in name}
        found = [
            {"type": "directory", "path": prefix + f, "oid": "0" * 40, "size": 0}
            for f in sorted(folders)
        ]
        return found + [self.entry(prefix + name) for name in inside if "/" not in name]

    def json(self, path: str, body: bytes) -> object | None:
        """Answer a call of the API, or None."""
        base = f"/api/datasets/{self.repository}"
        if path in (base, f"{base}/revision/{self.revision}"):
            siblings = [{"rfilename": name} for name in self.files]
            return {"id": self.repository, "sha": self.revision, "siblings": siblings, "tags": []}
        if path.startswith(f"{base}/tree/{self.revision}"):
            return self.children(path.removeprefix(f"{base}/tree/{self.revision}").strip("/"))
        if path == f"{base}/paths-info/{self.revision}":
            wanted = unquote(body.decode())
            return [self.entry(name) for name in self.files if name in wanted]
        return None

    def file(self, path: str) -> bytes | None:
        name = path.removeprefix(f"/datasets/{self.repository}/resolve/{self.revision}/")
        return self.files.get(name)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.hub.json(path, body)
        content = self.hub.file(path)
        if answer is not None:
            self._send(json.dumps(answer).encode(), "application/json")
        elif content is not None:
            self._send(content, "application/octet-stream")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_POST = do_GET

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.revision)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve a hub and yield its address."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
