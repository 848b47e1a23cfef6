"""Real receivers on loopback: HTTP, mail, syslog; each remembers what it was given."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from aiosmtpd.controller import Controller


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Web:
    """An HTTP server. ``answers``: statuses for the next requests, then 200; ``delay_s``: before each answer; ``mute``:
    the next requests are read and never answered, their connection is closed."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[int] = []
        self.delay_s = 0.0
        self.mute = 0
        self.released = threading.Event()
        outer = self

        class Handle(BaseHTTPRequestHandler):
            # The answer in one piece: in two, whoever counts the calls that read it would count now one and now two.
            wbufsize = -1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests.append(Request(self.command, self.path, dict(self.headers.items()), body))
                if outer.delay_s:
                    outer.released.wait(outer.delay_s)
                if outer.mute:
                    outer.mute -= 1
                    self.close_connection = True
                    return
                status = outer.answers.pop(0) if outer.answers else 200
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handle)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def keys(self) -> list[str]:
        return [request.headers["Idempotency-Key"] for request in self.requests]


@contextmanager
def web() -> Iterator[Web]:
    one = Web()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.released.set()
        one.server.shutdown()
        one.server.server_close()


class Letters:
    """What a mail server was given."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []
        self.refuse = False

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refuse:
            return "451 not now"
        self.envelopes.append(envelope)
        return "250 taken"


@contextmanager
def mail(**options: Any) -> Iterator[tuple[Letters, int]]:
    letters = Letters()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    controller = Controller(letters, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield letters, port
    finally:
        controller.stop()


class Datagrams:
    """A socket that datagrams are sent to."""

    def __init__(self, one: socket.socket) -> None:
        self._socket = one
        one.settimeout(5)

    def read(self) -> list[str]:
        """All that have come by now; at least one."""
        found = [self._socket.recv(1 << 16).decode()]
        self._socket.settimeout(0.05)
        try:
            while True:
                found.append(self._socket.recv(1 << 16).decode())
        except TimeoutError:
            return found


@contextmanager
def datagrams(path: Path | None = None) -> Iterator[tuple[Datagrams, int]]:
    """On a Unix socket at ``path``, else by UDP on a port of its own."""
    with socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(str(path) if path else ("127.0.0.1", 0))
        yield Datagrams(one), 0 if path else one.getsockname()[1]
