"""A server on loopback for the files of a folder, which can break off in the middle of one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class Files:
    """What is served under ``address``; ``requests`` lists what was asked for, ``broken`` names files sent by half."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.requests: list[str] = []
        self.broken: set[str] = set()


@contextmanager
def serving(folder: Path) -> Iterator[Files]:
    """Serve a folder."""
    files = Files(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = unquote(self.path).lstrip("/")
            files.requests.append(name)
            if not (folder / name).is_file():
                self.send_error(404)
                return
            content = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if name in files.broken else content)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    files.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
