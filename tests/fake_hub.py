"""A Hugging Face Hub on this machine: repositories from memory, with the faults that tests ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

COMMIT = "a" * 40


class Hub:
    """What it holds and how it fails; `requests` has (method, path, Range) of each."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.gated: set[str] = set()
        self.token: str | None = None
        self.cut_after: list[int] = []
        """Bytes after which the next answers of a file's content break off."""
        self.spoil = 0
        """How many answers come with a wrong byte."""
        self.ranges = True
        self.status: int | None = None
        self.private: dict[str, bool] = {}
        """Whether a repository that was made here is."""
        self.may_write = True
        self.blobs: dict[str, bytes] = {}
        """What was sent by its sha256, in a commit or not."""
        self.commits: list[tuple[str, str]] = []
        """(repository, first line) of each."""

    def content(self, method: str = "GET") -> list[tuple[str, str | None]]:
        """(file, Range) of the requests for content."""
        return [
            (path.rsplit("/", 1)[-1], wanted)
            for kind, path, wanted in self.requests
            if kind == method and "/resolve/" in path
        ]


def etag(content: bytes) -> str:
    """As the Hub has it: git's hash of small files, sha256 of large ones."""
    if len(content) < 1000:
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        hub, content = self.hub, self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        hub.requests.append(("POST", path, None))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if hub.status:
            return self._json({}, hub.status)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not token or token != hub.token:
            return self._json({"error": "Invalid credentials"}, 401)
        if not hub.may_write:
            return self._json({"error": "Forbidden"}, 403)
        asked = [json.loads(line) for line in content.splitlines()] if path.endswith("/commit/main") else []
        if asked:
            return self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), asked)
        said = json.loads(content)
        if path == "/api/repos/create":
            repo = f"{said.get('organization') or 'me'}/{said['name']}"
            if repo in hub.files:
                return self._json({"error": "You already created this model repo", "url": f"{self._url}/{repo}"}, 409)
            hub.files[repo], hub.private[repo] = {}, said.get("visibility") == "private"
            return self._json({"url": f"{self._url}/{repo}"})
        if "/preupload/" in path:
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".png")) else "regular",
                    "shouldIgnore": False,
                }
                for one in said["files"]
            ]
            return self._json({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            put = [
                {**one, "actions": {"upload": {"href": f"{self._url}/lfs/{one['oid']}"}}}
                if one["oid"] not in hub.blobs
                else one
                for one in said["objects"]
            ]
            return self._json({"transfer": "basic", "objects": put})
        return self._json({}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(("PUT", self.path, None))
        if hashlib.sha256(content).hexdigest() != self.path.removeprefix("/lfs/"):
            return self._json({}, 400)
        self.hub.blobs[self.path.removeprefix("/lfs/")] = content
        return self._json({})

    def _commit(self, repo: str, lines: list[dict]) -> None:
        for line in lines:
            about = line["value"]
            if line["key"] == "header":
                self.hub.commits.append((repo, about["summary"]))
            elif line["key"] == "file":
                self.hub.files[repo][about["path"]] = base64.b64decode(about["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[repo][about["path"]] = self.hub.blobs[about["oid"]]
        commit = {"commitOid": COMMIT, "commitUrl": f"{self._url}/{repo}/commit/{COMMIT}", "pullRequestUrl": None}
        return self._json({"success": True, **commit})

    @property
    def _url(self) -> str:
        return f"http://{self.headers['Host']}"

    def _json(self, said: object, status: int = 200) -> None:
        return self._send(status, json.dumps(said).encode(), True, {"Content-Type": "application/json"})

    def _answer(self, body: bool) -> None:
        hub, wanted = self.hub, self.headers.get("Range")
        hub.requests.append((self.command, self.path, wanted))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if hub.status:
            return self._send(hub.status, b"", body)
        if token and token != hub.token:
            return self._send(401, b"", body, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(\?.*)?", self.path):
            repo = hub.files.get(found[1])
            if repo is None:
                return self._send(404, b"", body, {"X-Error-Code": "RepoNotFound"})
            listing = {
                "id": found[1],
                "sha": COMMIT,
                "private": hub.private.get(found[1], False),
                "siblings": [{"rfilename": name} for name in repo],
            }
            return self._send(200, json.dumps(listing).encode(), body)
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        if not found or found[1] not in hub.files:
            return self._send(404, b"", body, {"X-Error-Code": "RepoNotFound"})
        if found[1] in hub.gated and not token:
            return self._send(401, b"", body, {"X-Error-Code": "GatedRepo"})
        content = hub.files[found[1]].get(found[2])
        if content is None:
            return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if body and hub.spoil:
            hub.spoil -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        if wanted and hub.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206, content[start:], body, headers)
        return self._send(200, content, body, headers)

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        if "/resolve/" in self.path and status < 300 and self.hub.cut_after:
            self.wfile.write(content[: self.hub.cut_after.pop(0)])
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content)


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, cache: object) -> Iterator[Hub]:
    """A Hub that the library takes for the real one, with an empty cache at `cache`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is another server
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    for name in ("HF_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
