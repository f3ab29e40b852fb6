"""A stand-in for the hub on loopback: repositories are folders, misbehaviour is by repository name.

    <root>/models/<owner>/<name>/…    <root>/datasets/<owner>/<name>/…

Owners say how a repository behaves: `gated/…` needs the token of somebody with access (401 without a token,
403 with another's), `private/…` looks as if it did not exist, `dropped/…` breaks every connection in the
middle of a weight file, `shaky/…` only the first one to each file. All else is open. Every revision is the
one commit there is, but `nowhere`, which is none. Whoever has a token may write, but not below `gated/` and only with
`TOKEN`; what is committed lies in the repository's folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN, STRANGER = "hf_planted_secret", "hf_planted_stranger"
KINDS = ("models", "datasets")


@dataclass
class Hub:
    """A running stand-in: `url`, and every request it saw as `METHOD path`."""

    root: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    created: dict[str, Any] = field(default_factory=dict)  # repositories, with what was asked for them

    def asked(self, *parts: str) -> list[str]:
        return [request for request in self.requests if all(part in request for part in parts)]


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve the repositories below `root` on a free port of loopback while the block lasts."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        self._body = self._read()
        parts = path.split("/")
        if path == "api/whoami-v2":
            return self._whoami()
        if path == "api/repos/create":
            return self._create()
        if path == "api/validate-yaml":
            data = yaml.safe_load(json.loads(self._body)["content"].split("---")[1])
            wrong = [] if "license" in data else [{"message": "no license"}]
            return self._json({"errors": wrong, "warnings": []})
        if parts[0] == "api" and parts[1] in KINDS:
            return self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        kind, parts = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._error(404, "EntryNotFound")

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return body

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _whoami(self) -> None:
        if self._token() not in (TOKEN, STRANGER):
            return self._error(401, None)
        return self._json({"type": "user", "name": "somebody"})

    def _refused(self, repo: str) -> bool:
        owner, token = repo.split("/")[0], self._token()
        if owner == "gated" and token is None:
            self._error(401, "GatedRepo")
        elif owner == "gated" and token != TOKEN:
            self._error(403, "GatedRepo")
        elif owner == "private" and token != TOKEN:
            self._error(401, "RepoNotFound")
        else:
            return False
        return True

    def _api(self, kind: str, repo: str, rest: list[str]) -> None:
        folder = self.hub.root / kind / repo
        what = rest[0] if rest else "revision"
        if what in ("preupload", "commit"):
            return self._write(repo, folder, what)
        if repo.startswith("private/") and self._refused(repo):
            return None
        if not folder.is_dir():
            return self._error(404 if self._token() else 401, "RepoNotFound")
        if what != "auth-check" and rest[1:2] == ["nowhere"]:
            return self._error(404, "RevisionNotFound")
        if what in ("auth-check", "tree", "paths-info") and self._refused(repo):
            return None
        if what == "auth-check":
            return self._json({})
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        names = {f.relative_to(folder).as_posix(): f for f in files}
        if what == "revision":
            siblings = [{"rfilename": name, "size": f.stat().st_size} for name, f in names.items()]
            gated = "manual" if repo.startswith("gated/") else False
            about = {"id": repo, "sha": COMMIT, "private": False, "gated": gated, "tags": [], "downloads": 0}
            return self._json(about | {"siblings": siblings})
        if what == "tree":
            return self._tree(names, "/".join(rest[2:]))
        if what == "paths-info":
            asked = json.loads(self._body)["paths"]
            folders = [p for p in asked if any(name.startswith(f"{p}/") for name in names)]
            listed = [{"type": "directory", "path": p, "oid": COMMIT} for p in folders]
            return self._json(listed + [_entry(name, f) for name, f in names.items() if name in asked])
        return self._error(404, "EntryNotFound")

    def _create(self) -> None:
        asked = json.loads(self._body)
        repo = f"{asked['organization']}/{asked['name']}"
        if self._token() != TOKEN or repo.startswith("gated/"):
            return self._error(403, None)
        (self.hub.root / "models" / repo).mkdir(parents=True, exist_ok=True)
        self.hub.created[repo] = asked
        return self._json({"url": f"{self.hub.url}/{repo}", "name": repo})

    def _write(self, repo: str, folder: Path, what: str) -> None:
        if self._token() != TOKEN:
            return self._error(403, None)
        if what == "preupload":  # every file is part of the commit itself
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(self._body)["files"]]
            return self._json({"files": [f | {"shouldIgnore": False, "oid": None} for f in files]})
        for line in self._body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                path = folder / entry["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(entry["value"]["content"]))
        address = f"{self.hub.url}/{repo}/commit/{COMMIT}"
        return self._json({"success": True, "commitOid": COMMIT, "commitUrl": address})

    def _tree(self, names: dict[str, Path], below: str) -> None:
        prefix = f"{below}/" if below else ""
        chosen = {name: f for name, f in names.items() if name.startswith(prefix)}
        if not chosen:
            return self._error(404, "EntryNotFound")
        folders = {n.rsplit("/", 1)[0] for n in chosen if "/" in n.removeprefix(prefix)}
        entries = [{"type": "directory", "path": name, "oid": COMMIT} for name in sorted(folders)]
        return self._json(entries + [_entry(name, f) for name, f in chosen.items()])

    def _file(self, kind: str, repo: str, revision: str, name: str) -> None:
        folder = self.hub.root / kind / repo
        path = folder / name
        if not folder.is_dir():
            return self._error(404 if self._token() else 401, "RepoNotFound")
        if self._refused(repo):
            return None
        if revision == "nowhere":
            return self._error(404, "RevisionNotFound")
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        return self._send(path.read_bytes(), repo)

    def _send(self, data: bytes, repo: str) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._drops(repo):
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _drops(self, repo: str) -> bool:
        owner, weights = repo.split("/")[0], self.path.endswith(".safetensors")
        first = self.path not in self.hub.dropped
        self.hub.dropped.add(self.path)
        return weights and (owner == "dropped" or (owner == "shaky" and first))

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(name: str, path: Path) -> dict[str, Any]:
    oid = hashlib.sha1(path.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}
