"""Downloads: resumed, checked, whole or absent. A real server on this machine, killed at will."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mechatlas.dictionaries.fetch import fetch_openai
from mechatlas.io import UserError
from mechatlas.io.download import download

CONTENT = bytes(i * 7 % 251 for i in range(300_000))
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves one content; may cut connections, go slowly, change the content, or fail."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.md5 = CONTENT, '"1"', None
        self.cut_after: list[int] = []
        self.statuses: list[int] = []
        self.delay = 0.0
        self.requests: list[tuple[str, str | None, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        start = 0
        if wanted and self.headers.get("If-Range") == server.etag:
            start = int(re.match(r"bytes=(\d+)-", wanted)[1])
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        if start:
            total = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        elif server.md5:
            self.send_header("Content-MD5", server.md5)
        self.end_headers()
        server.requests.append((self.path, wanted, start))
        if server.cut_after:
            body = body[: server.cut_after.pop(0)]
        for first in range(0, len(body), 10_000):
            self.wfile.write(body[first : first + 10_000])
            time.sleep(server.delay)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_arrives_with_its_record(server: Server, tmp_path: Path) -> None:
    record = download(f"{server.url}/a.pt", tmp_path / "a.pt", sha256=DIGEST)
    assert (tmp_path / "a.pt").read_bytes() == CONTENT
    assert record == {
        "url": f"{server.url}/a.pt", "bytes": len(CONTENT), "sha256": DIGEST, "etag": '"1"',
    }  # fmt: skip
    assert names(tmp_path) == {"a.pt"}


def test_lost_connections_are_taken_up_where_they_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = [100_000, 0, 50_000]
    server.statuses = [503]
    download(f"{server.url}/a.pt", tmp_path / "a.pt", pause=0.01)
    assert (tmp_path / "a.pt").read_bytes() == CONTENT
    assert [start for _, _, start in server.requests] == [0, 100_000, 100_000, 150_000]


def test_a_server_that_gives_nothing_ends_in_one_line_and_keeps_what_came(
    server: Server, tmp_path: Path
) -> None:
    server.cut_after = [120_000] + [0] * 9
    with pytest.raises(UserError, match="the 120000 bytes that have arrived are kept"):
        download(f"{server.url}/a.pt", tmp_path / "a.pt", pause=0.0, attempts=3)
    assert names(tmp_path) == {".part-a.pt", ".part-a.pt.json"}
    server.cut_after = []
    download(f"{server.url}/a.pt", tmp_path / "a.pt")
    assert server.requests[-1][2] == 120_000 and names(tmp_path) == {"a.pt"}


def test_a_file_that_changed_meanwhile_is_not_patched_together(
    server: Server, tmp_path: Path
) -> None:
    server.cut_after = [120_000, 0]
    with pytest.raises(UserError):
        download(f"{server.url}/a.pt", tmp_path / "a.pt", pause=0.0, attempts=1)
    server.content, server.etag, server.cut_after = CONTENT[::-1], '"2"', []
    download(f"{server.url}/a.pt", tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_another_content_than_announced_is_thrown_away(
    server: Server, tmp_path: Path, kind: str
) -> None:
    wanted = "0" * 64 if kind == "sha256" else None
    server.md5 = "AAAAAAAAAAAAAAAAAAAAAA==" if kind == "md5" else None
    with pytest.raises(UserError, match="SHA-256 is" if wanted else "MD5 is not"):
        download(f"{server.url}/a.pt", tmp_path / "a.pt", sha256=wanted)
    assert names(tmp_path) == set()


def test_a_missing_file_is_said_at_once(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(UserError, match="HTTP 404"):
        download(f"{server.url}/a.pt", tmp_path / "a.pt", pause=60)
    with pytest.raises(UserError, match="not an https address"):
        download("http://example.org/a.pt", tmp_path / "a.pt")


def test_a_killed_download_leaves_no_file_that_looks_whole(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    code = f"from mechatlas.io.download import download; download({server.url!r} + '/a.pt', 'a.pt')"
    scripts = Path(__file__).resolve().parents[2] / "workflow" / "scripts"
    env = {**os.environ, "PYTHONPATH": str(scripts)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env)
    part = tmp_path / ".part-a.pt"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    arrived = part.stat().st_size
    assert "a.pt" not in names(tmp_path) and 0 < arrived < len(CONTENT)
    server.delay = 0.0
    download(f"{server.url}/a.pt", tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == CONTENT
    assert server.requests[-1][2] == arrived


def test_fetching_a_dictionary_records_where_it_came_from(server: Server, tmp_path: Path) -> None:
    path, checksum = tmp_path / "7.pt", tmp_path / "7.pt.sha256"
    place = {"site": "resid_post_mlp", "version": "_v5_32k", "layer": 7}
    fetch_openai(path, checksum, **place, base=f"{server.url}/gpt2-small")
    assert server.requests[0][0] == "/gpt2-small/resid_post_mlp_v5_32k/autoencoders/7.pt"
    done = subprocess.run(["sha256sum", "-c", checksum], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f'"sha256": "{DIGEST}"' in (tmp_path / "7.pt.source.json").read_text()
    with pytest.raises(UserError, match="layer 12 is out of range"):
        fetch_openai(path, checksum, **place | {"layer": 12}, base=server.url)
