"""An S3 server in a process of its own (moto's), and before it a proxy that fails in all the ways of a network."""

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
SKEWED = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The request time differs too much</Message></Error>"


class Proxy(ThreadingHTTPServer):
    """`fault(method, path, number)`, if set, says what happens to a request; `done` lists what the server has done.

    "500" and "skewed" are answers, "cut" one whose body ends too early, "short" one that says that its half is all,
    "lost" is none, and "slow" comes late.
    """

    daemon_threads = True
    fault: Callable[[str, str, int], str | None] | None = None

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.done, self.number = port, list[tuple[str, str]](), 0

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no fault of the proxy."""


class Handler(BaseHTTPRequestHandler):
    """Passes one request on."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one(self) -> None:
        """Any method."""
        self.server.number += 1
        path = self.path.partition("?")[0]
        fault = self.server.fault and self.server.fault(self.command, path, self.server.number)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault in ("500", "skewed"):
            self._answer(500 if fault == "500" else 403, {}, SKEWED if fault == "skewed" else b"")
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        if answer.status < 300:
            self.server.done.append((self.command, path))
        if fault == "slow":
            time.sleep(0.5)
        if fault == "lost":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "short":
            answer.headers.replace_header("Content-Length", str(len(content) // 2))
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "date")}
        self._answer(answer.status, headers, content[: len(content) // 2] if fault in ("cut", "short") else content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if name.lower() != "transfer-encoding":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = len(content) != int(headers.get("Content-Length", len(content)))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@contextlib.contextmanager
def s3_server() -> Iterator[Proxy]:
    """A server with no bucket, behind its proxy."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as moto:
        proxy = Proxy(int(moto.stdout.readline()))
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            moto.stdin.close()
