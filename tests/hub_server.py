"""A stand-in for Hugging Face's Hub on the loopback, which fails in all the ways of a network.

It answers what `huggingface_hub` asks for when it downloads: what a repository holds, and its
files, whole or from a byte on.
"""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# Seconds for which a silent server keeps a request: longer than anybody waits here.
SILENCE = 3.0
# Seconds between the pieces of a slow one.
PAUSE = 0.05
# Of the Hub, what a client is told that asks too often.
RETRY_AFTER = "1"


@dataclass
class StoredModel:
    """What a repository holds, by file."""

    main: dict[str, bytes]
    # By number, what pull requests propose.
    pull_requests: dict[int, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    @property
    def commit(self) -> str:
        """That of the main branch: another one when a file changes."""
        content = hashlib.sha1()
        for name in sorted(self.main):
            content.update(name.encode())
            content.update(self.main[name])
        return content.hexdigest()


class StandInHub:
    """The repositories of a Hub, and what has been asked of it.

    `fault(method, path)`, if set, says what happens to a request. "429", "503" and "404" are
    answers, "portal" is the page of somebody who wants a login first, "cut" an answer whose body
    ends in the middle, "slow" one that comes in pieces, "silent" none for a long time, "trickling"
    one that goes on for as long, byte by byte, "elsewhere" a redirection to another host of the
    same machine.
    """

    def __init__(self) -> None:
        self.port = 0
        self.forget()

    def forget(self) -> None:
        """Be as at the beginning."""
        self.models: dict[str, StoredModel] = {}
        self.asked: list[tuple[str, str]] = []
        # The `Range` of each request for a file that had one.
        self.ranges: list[str] = []
        # The `Authorization` of each request, by the host that it was sent to.
        self.tokens: list[tuple[str, str | None]] = []
        self.fault: Callable[[str, str], str | None] | None = None

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.port}"

    def publish(self, name: str, folder: Path, **more: Any) -> StoredModel:
        """A repository with the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.models[name] = StoredModel(files, **more)
        return self.models[name]

    def downloads(self) -> list[str]:
        """The files that were asked for, each as often as it was."""
        paths = [path for method, path in self.asked if method == "GET" and "/resolve/" in path]
        return [path.rpartition("/")[2] for path in paths]


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, *words: Any) -> None:
        """Nothing: tests read `asked`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        host = self.headers["Host"]
        self.hub.asked.append((self.command, path))
        self.hub.tokens.append((host, self.headers.get("Authorization")))

        fault = self.hub.fault(self.command, path) if self.hub.fault else None
        if fault == "silent":
            time.sleep(SILENCE)
        if fault == "trickling":
            self._trickle()
            return
        if fault == "portal":
            self._send(HTTPStatus.OK, b"<html>Welcome to our hotel</html>")
            return
        if fault is not None and fault.isdigit():
            more = {"Retry-After": RETRY_AFTER} if fault == "429" else {}
            self._send(HTTPStatus(int(fault)), **more)
            return

        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(/tree/.+|/revision/.+)?", path):
            self._say_what_is_there(match[1], match[2] or "")
        elif match := re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            self._send_file(match[1], match[3], fault)
        else:
            self._send(HTTPStatus.NOT_FOUND)

    def _trickle(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        ends = time.monotonic() + SILENCE
        # Until nobody listens any more.
        with contextlib.suppress(OSError):
            while time.monotonic() < ends:
                self.wfile.write(b" ")
                time.sleep(PAUSE)
        self.close_connection = True

    def _say_what_is_there(self, name: str, part: str) -> None:
        model = self.hub.models.get(name)
        if model is None:
            self._send(HTTPStatus.NOT_FOUND, **{"X-Error-Code": "RepoNotFound"})
            return

        files = []
        for path, content in model.main.items():
            files.append({"path": path, "size": len(content)})
        answer: Any
        if part.startswith("/tree/"):
            answer = [{"type": "file", "oid": "0" * 40, **file} for file in files]
        else:
            siblings = [{"rfilename": file["path"], "size": file["size"]} for file in files]
            answer = {"id": name, "sha": model.commit, "siblings": siblings}
        self._send(HTTPStatus.OK, json.dumps(answer).encode(), **{"Content-Type": "json"})

    def _send_file(self, name: str, file: str, fault: str | None) -> None:
        model = self.hub.models.get(name)
        if model is None:
            self._send(HTTPStatus.NOT_FOUND, **{"X-Error-Code": "RepoNotFound"})
            return
        if model.gated and "Authorization" not in self.headers:
            self._send(HTTPStatus.UNAUTHORIZED, **{"X-Error-Code": "GatedRepo"})
            return
        if file not in model.main:
            self._send(HTTPStatus.NOT_FOUND, **{"X-Error-Code": "EntryNotFound"})
            return

        content = model.main[file]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        about = {"ETag": etag, "X-Repo-Commit": model.commit, "Accept-Ranges": "bytes"}
        if fault == "elsewhere" and self.headers["Host"].startswith("127."):
            about["Location"] = f"http://localhost:{self.hub.port}{self.path}"
            about["X-Linked-ETag"] = etag
            about["X-Linked-Size"] = str(len(content))
            self._send(HTTPStatus.FOUND, **about)
            return

        status = HTTPStatus.OK
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            about["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content = content[first:]
            status = HTTPStatus.PARTIAL_CONTENT
        self._send(status, content, fault, **about)

    def _send(
        self,
        status: HTTPStatus,
        content: bytes = b"",
        fault: str | None = None,
        **headers: str,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return

        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "slow":
            piece = len(content) // 8 + 1
            for start in range(0, len(content), piece):
                self.wfile.write(content[start : start + piece])
                time.sleep(PAUSE)
        else:
            self.wfile.write(content)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that has gone away is what is tested."""


@contextlib.contextmanager
def hub_server() -> Iterator[StandInHub]:
    """A Hub without a repository, at its `url`."""
    hub = StandInHub()
    handler = type("Request", (_Request,), {"hub": hub})
    server = _QuietServer(("127.0.0.1", 0), handler)
    hub.port = server.server_port
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
