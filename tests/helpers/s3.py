"""moto's S3 server in this process, and a proxy before it that injects faults."""

import http.client
import logging
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from unittest import mock
from urllib.parse import urlsplit

from moto.server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "bucket"
SECRET = "secret-of-the-tests"
Fault = Literal["slow down", "reset"] | None
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"


@contextmanager
def s3_server() -> Iterator[str]:
    """Runs the server and sets the variables that AWS's libraries read; yields the URI of the bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print a line for each request
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    variables = {
        "AWS_ACCESS_KEY_ID": "key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with mock.patch.dict(os.environ, variables):
        try:
            fs.S3FileSystem(endpoint_override=url, allow_bucket_creation=True).create_dir(BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            server.stop()


class Faults(ThreadingHTTPServer):
    """A proxy. decide: the fault of a request by its method, path and number among those of its method."""

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.target = target  # host:port
        self.decide: Callable[[str, str, int], Fault] = lambda method, path, number: None
        self.seen: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self._lock = threading.Lock()

    def fault_of(self, method: str, path: str) -> Fault:
        with self._lock:
            fault = self.decide(method, path, self.seen[method])
            self.seen[method] += 1
            self.made[method] += fault is not None
            return fault


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faults

    def _pass_on(self) -> None:
        fault = self.server.fault_of(self.command, self.path)
        if fault == "reset":
            self.rfile.read(min(int(self.headers.get("Content-Length", 1000)) // 2, 1000))
            # Closing with a time of 0 sends a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        body = self._body()
        if fault == "slow down":
            self._answer(503, [], SLOW_DOWN)
            return
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        headers = {n: v for n, v in self.headers.items() if n.lower() not in ("transfer-encoding", "expect")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        self._answer(answer.status, answer.getheaders(), answer.read())
        connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()  # there are no trailers
        return found

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        sent = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if "content-length" not in sent:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def flaky_proxy() -> Iterator[Faults]:
    """Puts the proxy before the server at AWS_ENDPOINT_URL; yields what decides the faults."""
    with Faults(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc) as faults:
        threading.Thread(target=faults.serve_forever, daemon=True).start()
        try:
            with mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{faults.server_port}"}):
                yield faults
        finally:
            faults.shutdown()
