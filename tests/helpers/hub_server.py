"""A stand-in of the Hugging Face hub on this machine: repositories in memory, by the hub's HTTP API.

Set HF_ENDPOINT to its `url` before huggingface_hub is imported.
"""

import base64
import hashlib
import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """repositories: id -> file name -> content. requests: `METHOD path` of each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        self.requests: list[str] = []

    def commit_of(self, repository: str) -> str:
        """The id of the only commit, 40 hexadecimal digits, by content."""
        return _digest(repr(sorted(self.repositories[repository].items())).encode())


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running hub without repositories."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._note()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/(revision|tree)/([^/]+))?", path):
            name, revision = found[1], found[4] or "main"
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision = found[1], found[2]
        else:
            return self._send(404, {"error": f"no {path}"})
        if name not in self.server.repositories:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", self.server.commit_of(name)):
            return self._send(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
        files = sorted(self.server.repositories[name].items())
        if not path.startswith("/api/"):
            return self._file(name, found[3])
        if found[3] == "tree":
            listed = [{"type": "file", "path": f, "size": len(c), "oid": _digest(c)} for f, c in files]
            return self._send(200, listed)
        siblings = [{"rfilename": file} for file, _ in files]
        return self._send(200, {"id": name, "sha": self.server.commit_of(name), "siblings": siblings})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            return self._send(200, {"url": f"{self.server.url}/{name}", "id": "1", "name": name})
        if re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._send(200, {"files": modes})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(found[1], body)
        return self._send(404, {"error": f"no {path}"})

    def _commit(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
        commit = self.server.commit_of(name)
        url = f"{self.server.url}/{name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _file(self, name: str, file: str) -> None:
        content = self.server.repositories[name].get(file)
        if content is None:
            return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        of_file = {"X-Repo-Commit": self.server.commit_of(name), "ETag": f'"{_digest(content)}"'}
        return self._send(200, content, {**of_file, "Content-Type": "application/octet-stream"})

    def _note(self) -> str:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        """answer: bytes, or what becomes JSON."""
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        told = {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(content))}
        self.send_response(status)
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
