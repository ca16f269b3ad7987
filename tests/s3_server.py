"""An S3 server (moto's) that fails in all the ways of a network."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SKEWED = (
    b"<Error><Code>RequestTimeTooSkewed</Code>"
    b"<Message>The request time differs too much</Message></Error>"
)


class Faulty:
    """`fault(method, path)`, if set, says what happens to a request.

    `done` lists what the server has done.

    "500" and "skewed" are answers, "cut" one whose body ends too early, "short" one that says that
    its half is all, "lost" is none, and "slow" comes late.
    """

    fault: Callable[[str, str], str | None] | None = None

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self.done: list[tuple[str, str]] = []
        self.port = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """One request."""
        from werkzeug.wrappers import Response

        method = environ["REQUEST_METHOD"]
        path = environ["PATH_INFO"]
        fault = self.fault(method, path) if self.fault else None
        if fault == "500":
            return Response(SKEWED, 500)(environ, start)
        if fault == "skewed":
            return Response(SKEWED, 403)(environ, start)

        answer = Response.from_app(self._app, environ)
        if answer.status_code < 300:
            self.done.append((method, path))

        if fault == "slow":
            time.sleep(0.1)
        if fault == "lost":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        if fault in ("cut", "short"):
            content = answer.get_data()
            answer.set_data(content[: len(content) // 2])
            if fault == "cut":
                answer.headers["Content-Length"] = str(len(content))

        return answer(environ, start)


@contextlib.contextmanager
def s3_server() -> Iterator[Faulty]:
    """A server with no bucket, at its `port`."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    faulty = Faulty()
    server = make_server("127.0.0.1", 0, faulty, threaded=True)
    server.daemon_threads = True
    faulty.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield faulty
    finally:
        server.shutdown()
