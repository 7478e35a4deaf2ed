"""A hub on the loopback interface that fails as told: the API that ``datasets`` asks, one file."""

from __future__ import annotations

import http.server
import json
import os
import time
from pathlib import Path
from typing import Any

NAME = "some/corpus"
COMMIT = "a" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves one data set, ``train.jsonl``; what goes wrong is read from a control file.

    Control file: ``{"mode": "drop" | "hang" | "error", "times": n, "at": share of the file}``.
    """

    daemon_threads = True

    def __init__(self, rows: Path, control: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rows = rows
        self.control = control

    def trouble(self) -> dict[str, Any] | None:
        """What goes wrong with this request; counts it."""
        try:
            plan = json.loads(self.control.read_text())
        except (OSError, ValueError):
            return None
        if plan["times"] <= 0:
            return None
        plan["times"] -= 1
        self.control.write_text(json.dumps(plan))
        return dict(plan)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """As GET, without a body."""
        self.do_GET()

    def do_POST(self) -> None:
        """Facts about paths."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._json(self._files() if b"train.jsonl" in body else [])

    def do_GET(self) -> None:
        """The API's answers, and the file."""
        if "/api/datasets/" in self.path and "/tree/" in self.path:
            self._json(self._files())
        elif "/api/datasets/" in self.path:
            siblings = [{"rfilename": "train.jsonl"}]
            self._json({"id": NAME, "sha": COMMIT, "siblings": siblings, "tags": []})
        elif self.path.endswith("train.jsonl"):
            self._file()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _files(self) -> list[dict[str, Any]]:
        size = self.server.rows.stat().st_size
        return [{"type": "file", "path": "train.jsonl", "size": size, "oid": "b" * 40}]

    def _file(self) -> None:
        content = self.server.rows.read_bytes()
        first, last = 0, len(content) - 1
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if asked[1]:
            first, last = int(asked[0]), min(last, int(asked[2] or last))
        trouble = self.server.trouble() if self.command == "GET" else None
        if trouble and trouble["mode"] == "error":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked[1] else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{"b" * 40}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "GET":
            return
        part = content[first : last + 1]
        if trouble is None:
            self.wfile.write(part)
            return
        self.wfile.write(part[: int(trouble["at"] * len(part))])
        self.wfile.flush()
        if trouble["mode"] == "hang":
            time.sleep(60)
        self.close_connection = True
        self.connection.close()

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def start(rows: Path, control: Path) -> tuple[int, str]:
    """Serve from a process of its own; returns its number and the endpoint."""
    server = Hub(rows, control)
    pid = os.fork()
    if not pid:
        server.serve_forever()
        os._exit(0)
    server.socket.close()
    return pid, f"http://127.0.0.1:{server.server_port}"
