"""An HTTP proxy in front of an S3 server that breaks chosen requests in chosen ways.

It forwards every header as it came, `Host` included: that one is signed, so the client's signature
holds although the server is at another port.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: What can be done to a request, by name.
FAULTS = {
    "reset": "the connection is reset before anything is read or forwarded",
    "reset_upload": "the connection is reset when half of the request's body is read",
    "reset_body": "the connection is reset after half of the answer's body",
    "lost_answer": "the server does what it is asked, the connection is reset instead of answering",
    "slow_down": "503 SlowDown",
    "error": "500 InternalError",
    "trickle": "the answer's body comes at `rate` bytes a second",
    "truncate": "half of the announced answer's body, then an orderly end of the connection",
    "flip": "one bit of the answer's body is another",
    "flip_upload": "one bit of the request's body is another",
    "hang": "no answer, ever",
    "expired": "400 ExpiredToken",
}

CODES = {
    "slow_down": (503, "SlowDown"),
    "error": (500, "InternalError"),
    "expired": (400, "ExpiredToken"),
}


@dataclass
class Rule:
    """Which requests break, and how.

    Args:
        fault: one of FAULTS.
        method: a regular expression that the whole method matches.
        path: a regular expression found in the path with its query.
        skip: matching requests that pass before the first that breaks.
        times: requests to break; None: all.
        chance: the part of the remaining requests that break.
        rate: bytes a second of "trickle".
        key: a regular expression found in the header that names the access key.
    """

    fault: str
    method: str = ".*"
    path: str = ""
    skip: int = 0
    times: int | None = 1
    chance: float = 1.0
    rate: float = 100.0
    key: str = ""
    matched: int = field(default=0, init=False)
    broken: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"no fault {self.fault!r}: use one of {', '.join(FAULTS)}")


class FaultProxy:
    """The proxy; `rules` may be changed while it runs.

    Attributes:
        counts: number of requests broken, by fault.
        requests: method and path of every request, broken or not, in order.
    """

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self.target = (host, port)
        self.rules: list[Rule] = []
        self.counts: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.stopping = threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def breaks(self, *rules: Rule) -> None:
        """Go by these rules from now on, and count anew."""
        with self._lock:
            self.rules = list(rules)
            self.counts.clear()
            self.requests.clear()

    def number(self, method: str, path: str = "") -> int:
        """Requests whose method and path match, as in a rule."""
        return sum(
            bool(re.fullmatch(method, m) and re.search(path, p)) for m, p in list(self.requests)
        )

    def rule(self, method: str, path: str, key: str = "") -> Rule | None:
        """The rule to break this request by, if any."""
        with self._lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if not (re.fullmatch(rule.method, method) and re.search(rule.path, path)):
                    continue
                if not re.search(rule.key, key):
                    continue
                rule.matched += 1
                if rule.matched <= rule.skip or rule.broken == rule.times:
                    continue
                if rule.chance < 1 and self._random.random() >= rule.chance:
                    continue
                rule.broken += 1
                self.counts[rule.fault] += 1
                return rule
        return None

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def fault_proxy(host: str, port: int, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy in front of a server, stopped at the end of the block."""
    proxy = FaultProxy(host, port, seed)
    try:
        yield proxy
    finally:
        proxy.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    proxy: FaultProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as clients expect
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def _serve(self) -> None:
        try:
            key = self.headers.get("Authorization", "")
            self._answer(self.server.proxy.rule(self.command, self.path, key))
        except OSError:  # the client has gone
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _answer(self, rule: Rule | None) -> None:
        fault = rule.fault if rule else ""
        if fault == "reset":
            return self._reset()
        body = self._body(half=fault == "reset_upload")
        if fault == "reset_upload":
            return self._reset()
        if fault == "hang":
            self.server.proxy.stopping.wait()
            self.close_connection = True
            return None
        if fault in CODES:
            status, code = CODES[fault]
            text = f"<Error><Code>{code}</Code><Message>{FAULTS[fault]}</Message></Error>".encode()
            return self._send(status, code, [("Content-Type", "application/xml")], text)
        status, reason, headers, content = self._forward(
            flipped(body) if fault == "flip_upload" else body
        )
        if fault == "lost_answer":
            return self._reset()
        if fault == "flip":
            content = flipped(content)
        if fault in ("reset_body", "truncate"):
            self._send(status, reason, headers, content, part=len(content) // 2)
            if fault == "reset_body":
                return self._reset()
            self.close_connection = True
            return None
        rate = rule.rate if rule and fault == "trickle" else 0
        return self._send(status, reason, headers, content, rate=rate)

    def _body(self, half: bool) -> bytes:
        """The request's body as it travels: with the sizes of its chunks, if it comes in chunks."""
        if length := int(self.headers.get("Content-Length") or 0):
            return self.rfile.read(length // 2 if half else length)
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        parts = []
        while True:
            line = self.rfile.readline()
            parts += [line, self.rfile.read(int(line.split(b";")[0], 16) + 2)]
            if len(parts[-1]) == 2 or half:
                return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(*self.server.proxy.target, timeout=120)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.putheader("Connection", "close")
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
            hop = ("connection", "transfer-encoding", "keep-alive")
            headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in hop]
            return answer.status, answer.reason, headers, content
        finally:
            upstream.close()

    def _send(
        self,
        status: int,
        reason: str,
        headers: list[tuple[str, str]],
        content: bytes,
        part: int | None = None,
        rate: float = 0,
    ) -> None:
        """Send an answer, or the head and the first `part` bytes of it."""
        self.send_response_only(status, reason)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD" and status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        content = content[:part]
        if not rate:
            self.wfile.write(content)
            return
        step = max(1, round(rate / 20))
        for at in range(0, len(content), step):
            if self.server.proxy.stopping.is_set():
                break
            self.wfile.write(content[at : at + step])
            time.sleep(step / rate)

    def _reset(self) -> None:
        """End the connection with a TCP reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closing the socket object would wait for the streams made of it.
        os.close(self.connection.detach())


def flipped(content: bytes) -> bytes:
    """`content` with the lowest bit of its middle byte the other way."""
    if not content:
        return content
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
