"""A stand-in for the Kubernetes API server: stores objects under the API's paths.

It is not Kubernetes: it runs no controller, starts no pods and validates nothing but the fields it
is told to know. It answers with the paths, the status codes and the error bodies of the real one,
which is enough to try our requests through the real client.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+/[^/]+))/namespaces/(?P<namespace>[^/]+)/"
    r"(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?"
)


class ApiServer:
    """What the server stores and how it behaves.

    Attributes:
        url: of the server.
        objects: by namespace, kind and name.
        requests: method, path and query of each request.
        namespaces: that there are.
        kinds: that are installed.
        forbidden: kinds that the caller may not touch.
        unknown: top-level fields of a spec that the installed CRD does not have.
        strict: whether the server honours fieldValidation=Strict, as those since 1.27 do.
        signed_in: whether the caller's credentials are accepted.
    """

    def __init__(self) -> None:
        self.url = ""
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.requests: list[tuple[str, str, dict[str, list[str]]]] = []
        self.namespaces = {"default", "lab"}
        self.kinds = {"configmaps", "rayjobs"}
        self.forbidden: set[str] = set()
        self.unknown: set[str] = set()
        self.strict = True
        self.signed_in = True

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        """The status code and the document that answer a request."""
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        self.requests.append((method, parts.path, query))
        if not self.signed_in:
            return _status(401, "Unauthorized")
        found = _PATH.fullmatch(parts.path)
        if found is None or found["kind"] not in self.kinds:
            return 404, "404 page not found\n"
        kind, namespace = found["kind"], found["namespace"]
        if kind in self.forbidden:
            return _status(403, f'{kind} is forbidden: User "ann" cannot {method.lower()} it')
        if namespace not in self.namespaces:
            return _status(404, f'namespaces "{namespace}" not found')
        if method == "POST":
            return self._create(namespace, kind, body, query)
        key = (namespace, kind, found["name"])
        if key not in self.objects:
            return _status(404, f'{kind} "{found["name"]}" not found')
        if method == "DELETE":
            return 200, {"kind": "Status", "status": "Success", "gone": self.objects.pop(key)}
        if method == "PATCH":
            self.objects[key]["metadata"] |= body["metadata"]
        return 200, self.objects[key]

    def _create(self, namespace: str, kind: str, body: Any, query: Any) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if (namespace, kind, name) in self.objects:
            return _status(409, f'{kind} "{name}" already exists')
        made = copy.deepcopy(body)
        unknown = self.unknown & set(made.get("spec", {}))
        if unknown and self.strict and query.get("fieldValidation") == ["Strict"]:
            return _status(400, f'strict decoding error: unknown field "spec.{min(unknown)}"')
        for field in unknown:
            del made["spec"][field]
        made["metadata"] |= {"uid": str(uuid.uuid4()), "resourceVersion": "1"}
        if "spec" in made:
            made["spec"].setdefault("suspend", False)  # a default, as a real server adds
        self.objects[namespace, kind, name] = made
        return 201, made


def _status(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "code": code,
    }


@contextmanager
def api_server(kubeconfig: Path) -> Iterator[ApiServer]:
    """A running server, and a kubeconfig for it."""
    state = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            code, document = state.answer(self.command, self.path, body)
            plain = isinstance(document, str)
            content = (document if plain else json.dumps(document)).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if plain else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _do

        def log_message(self, *arguments: object) -> None:
            """Not to standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    # JSON is YAML.
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": {"server": state.url}}],
                "users": [{"name": "ann", "user": {"token": "secret"}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "ann"}}],
                "current-context": "test",
            }
        )
    )
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
