"""HTTP servers on the loopback interface: of a folder's files, or before another server, which they
pass on to; some answers fail as a test says.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CUT = -1  # a fault: half of the body, and no more
Fault = Callable[[int, str], int | None]  # number of the request, path -> an HTTP status, or CUT


@dataclass
class FileServer:
    """``fault`` may be set anew; ``seen``: the paths that were asked for, in order."""

    source: Path | tuple[str, int]  # a folder, or host and port of the server behind
    fault: Fault = lambda number, path: None
    seen: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, method: str, path: str, headers: dict) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body without faults."""
        if isinstance(self.source, Path):
            file = self.source / path.lstrip("/")
            return (200, {}, file.read_bytes()) if file.is_file() else (404, {}, b"")
        connection = HTTPConnection(*self.source)
        connection.request(method, path, headers=headers)
        found = connection.getresponse()
        body = found.read()
        connection.close()
        return found.status, dict(found.getheaders()), body


@contextmanager
def serving(source: Path | tuple[str, int], **options) -> Iterator[FileServer]:
    """A :class:`FileServer` that runs."""
    server, numbers = FileServer(source, **options), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with numbers:
                server.seen.append(self.path)
                number = len(server.seen)
            fault = server.fault(number, self.path)
            status, headers, body = server.answer(self.command, self.path, dict(self.headers))
            if fault is not None and fault != CUT:
                status, headers, body = fault, {}, b""
            self.send_response(status)
            dropped = ("connection", "transfer-encoding", "date", "server")
            headers = {key: text for key, text in headers.items() if key.lower() not in dropped}
            for key, text in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, text)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[: len(body) // 2] if fault == CUT else body)
            self.close_connection = fault == CUT

        do_HEAD = do_GET

        def log_message(self, *_) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.handle_error = lambda *_: None  # a client that was killed
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
