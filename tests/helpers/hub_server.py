"""A stand-in of the Hugging Face hub on this machine: repositories in memory, by the hub's HTTP API.

It answers what `huggingface_hub` asks to create a repository, to commit small files, to list a revision and
to download files of it. Set HF_ENDPOINT to its `url` before huggingface_hub is imported.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stand_in"


@dataclass
class Hub:
    """repositories: id -> file name -> content. requests: `METHOD path` of each. url: of the server."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit_of(self, repository: str) -> str:
        """The id of the only commit, 40 hexadecimal digits, by content."""
        digest = hashlib.sha1()
        for name, content in sorted(self.repositories[repository].items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running hub without repositories."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Answer,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    hub: Hub
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
        if name not in self.hub.repositories:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", self.hub.commit_of(name)):
            return self._send(404, {"error": "Invalid rev"}, {"X-Error-Code": "RevisionNotFound"})
        files = sorted(self.hub.repositories[name].items())
        if not path.startswith("/api/"):
            return self._file(name, found[3])
        if found[3] == "tree":
            sizes = [(file, len(content), _digest(content)) for file, content in files]
            names = ("path", "size", "oid")
            listed = [{"type": "file", **dict(zip(names, size, strict=True))} for size in sizes]
            return self._send(200, listed)
        siblings = [{"rfilename": file} for file, _ in files]
        return self._send(200, {"id": name, "sha": self.hub.commit_of(name), "siblings": siblings})

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
            self.hub.repositories.setdefault(name, {})
            return self._send(200, {"url": f"{self.hub.url}/{name}", "id": "1", "name": name})
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
                assert value["encoding"] == "base64"
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
        commit = self.hub.commit_of(name)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _file(self, name: str, file: str) -> None:
        content = self.hub.repositories[name].get(file)
        if content is None:
            return self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        of_file = {"X-Repo-Commit": self.hub.commit_of(name), "ETag": f'"{_digest(content)}"'}
        return self._send(200, content, {**of_file, "Content-Type": "application/octet-stream"})

    def _note(self) -> str:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
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
