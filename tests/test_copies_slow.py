"""Servers that never answer, that trickle, and that never end: one sentence, in bounded memory."""

import http.server
import logging
import re
import threading
import time
from collections.abc import Iterator

import pytest

from ser.cache.tools import stream
from ser.cache.tools.remote import Remote
from ser.errors import CorruptStore, StoreError

pytest.importorskip("aiohttp")

ENDLESS_PIECE = bytes(1 << 16)


class Server(http.server.ThreadingHTTPServer):
    """A server that answers each file in the way of its name, and counts the bytes that it sent."""

    daemon_threads = True
    sent = 0
    over = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    """Of `/silent`, `/trickling` and `/endless`; whatever range is asked for."""

    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        if self.path.endswith("silent"):
            self.server.over.wait(60)
            return

        self.send_response(200)
        self.end_headers()
        endless = self.path.endswith("endless")
        while not self.server.over.is_set():
            piece = ENDLESS_PIECE if endless else b"x"
            try:
                self.wfile.write(piece)
            except OSError:
                return
            self.server.sent += len(piece)
            if not endless:
                time.sleep(0.05)


@pytest.fixture
def server() -> Iterator[Server]:
    """The server, on a port of this machine."""
    started = Server(("127.0.0.1", 0), Handler)
    started.over = threading.Event()
    threading.Thread(target=started.serve_forever, daemon=True).start()
    yield started
    started.over.set()
    started.shutdown()
    started.server_close()


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("name", ["silent", "trickling"])
def test_what_comes_too_slowly_is_told(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That it is waited for is said before."""
    monkeypatch.setattr(stream, "SAY_AFTER", 0.3)
    remote = Remote(url_of(server), patience=1.5)
    begun = time.monotonic()

    with caplog.at_level(logging.WARNING), pytest.raises(StoreError) as fault:
        remote.read(name)

    assert time.monotonic() - begun < 10
    assert f"{name}: is silent or too slow" in str(fault.value)
    assert "\n" not in str(fault.value)
    expected = (
        "nothing comes for" if name == "silent" else r"trickling: \d+ bytes in \d+ s; at most"
    )
    assert re.search(expected, caplog.text)


def test_an_answer_without_an_end_is_read_no_further_than_needed(server: Server) -> None:
    remote = Remote(url_of(server), patience=20)

    with pytest.raises(CorruptStore, match="is larger than any such file"):
        remote.read("endless", max_bytes=100_000)

    # What is under way in buffers of the two sides.
    assert server.sent < 50_000_000
