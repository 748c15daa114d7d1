"""Owns a small HTTP server that speaks the part of the Hugging Face hub's protocol that a download needs."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds, where it listens and which requests it has had.

    With ``cut`` set, the next file is broken off in its middle, as by a failing network. Without ``ranges`` it gives
    whole files whatever part is asked for, with ``generous`` all that follows its first byte.
    """

    files: Mapping[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    url: str = ""
    cut: bool = False
    ranges: bool = True
    generous: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        parts = self.path.split("?")[0].strip("/").split("/")
        repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
        if repo in self.hub.gated:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repo not in self.hub.files:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if parts[0] == "api":
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in self.hub.files[repo].items()]
            return self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        name = "/".join(parts[4:])
        if name not in self.hub.files[repo]:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self._send_file(self.hub.files[repo][name])

    def _send_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked is None or not self.hub.ranges:
            return self._send(200, data, headers, may_cut=True)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last and not self.hub.generous else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._send(206, part, headers, may_cut=True)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, may_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "GET":
            return
        if may_cut and self.hub.cut:
            self.hub.cut = False
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve the hub's files on a free local port while the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
