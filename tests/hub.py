"""A stand-in of the Hugging Face Hub: what huggingface_hub asks over HTTP, and ways to break it.

One server has two names, as the Hub has two: the API and small files at 127.0.0.1; what large files
are redirected to, and uploaded to, at localhost, which must never see the token.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_QzTokenThatNobodyMayEverSee"
OWNER = "painter"
LICENSES = ("openrail", "apache-2.0", "other")  # that cards may name
LARGE = (".safetensors", ".png")
REPO = r"/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"


@dataclass
class Repo:
    """A repository: the files of each commit, and the names of commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Put files on top of main; the hash of the commit."""
        content = {**self.commits.get(self.branches.get("main", ""), {}), **files}
        facts = [len(self.commits), *sorted((n, len(c)) for n, c in content.items())]
        sha = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.commits[sha] = content
        self.branches["main"] = sha
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        """Those of main."""
        return self.commits.get(self.branches.get("main", ""), {})

    def at(self, revision: str) -> str | None:
        known = {**self.branches, **self.tags, **{sha: sha for sha in self.commits}}
        return known.get(revision)


@dataclass
class Trouble:
    """What goes wrong next, each once for a number in its list.

    Attributes:
        downloads: so many bytes of a large file's answer are sent, then the connection is cut.
        uploads: so many bytes of an upload are read, then the same.
        statuses: answers by the beginning of the path, instead of what would be done.
        other_bytes: large files have other bytes than their hash says.
        hold: answers of large files and uploads wait for it.
    """

    downloads: list[int] = field(default_factory=list)
    uploads: list[int] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    other_bytes: bool = False
    hold: threading.Event | None = None


@dataclass(frozen=True)
class Asked:
    """A request: method, path, the host it was for, the token it carried, the range it wanted."""

    method: str
    path: str
    host: str
    token: str | None
    range: str | None


class StandIn:
    """The server's state, to be filled and looked at by tests."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.storage = f"http://localhost:{port}"
        self.models: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.trouble = Trouble()
        self.asked: list[Asked] = []
        self.can_write = True

    def repos(self, kind: str) -> dict[str, Repo]:
        return self.models if kind == "models" else self.datasets

    def sha256(self, content: bytes) -> str:
        """The hash of a large file, which is kept to be sent."""
        known = (oid for oid, one in self.large.items() if one is content)
        oid = next(known, None) or hashlib.sha256(content).hexdigest()
        self.large[oid] = content
        return oid

    def add(self, kind: str, repo_id: str, files: Mapping[str, bytes], **facts: Any) -> str:
        """A repository with one commit; its hash."""
        repo = self.repos(kind)[repo_id] = Repo(**facts)
        return repo.commit(files)


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.state = StandIn(server.server_address[1])  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.state  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


class Cut(Exception):
    """The connection ends here."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> StandIn:
        return self.server.state  # type: ignore[attr-defined,no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        authorization = self.headers.get("Authorization")
        self.token = authorization.removeprefix("Bearer ") if authorization else None
        self.path = unquote(urlsplit(self.path).path)
        asked = Asked(
            self.command, self.path, self.headers["Host"].split(":")[0], self.token,
            self.headers.get("Range"),
        )  # fmt: skip
        self.hub.asked.append(asked)
        try:
            body = self.body()
            for start, status in [*self.hub.trouble.statuses.items()]:
                if self.path.startswith(start):
                    return self.send(status, {"error": f"told to fail for {self.token}"})
            for pattern, act in ROUTES:
                if (found := re.fullmatch(pattern, self.path)) and self.command in act.methods:
                    return act(self, body, **found.groupdict())
            self.send(404, {"error": f"unknown to the stand-in: {self.command} {self.path}"})
        except Cut:
            self.close_connection = True
            self.connection.close()

    def body(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self.chunks())
        if self.command == "PUT":
            self.wait()
            if self.hub.trouble.uploads:
                self.rfile.read(min(size, self.hub.trouble.uploads.pop(0)))
                raise Cut
        return self.rfile.read(size)

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def wait(self) -> None:
        if self.hub.trouble.hold is not None:
            self.hub.trouble.hold.wait(20)

    def send(
        self, status: int, content: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        body = json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    # -- who may what -----------------------------------------------------

    def repo(self, kind: str, id: str, write: bool = False) -> Repo | None:
        """The repository, or None when the answer is given already."""
        if self.token not in (None, TOKEN):
            message = "Invalid credentials in Authorization header"
            self.send(401, {"error": message}, {"X-Error-Message": message})
            return None
        repo = self.hub.repos(kind).get(id)
        if repo is None or (repo.private and not self.token):
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        if write and not (self.token and self.hub.can_write):
            self.send(403, {"error": "You have no permission to write"})
            return None
        if repo.gated:
            self.refuse(403, "GatedRepo", "Access to model is restricted")
            return None
        return repo


def route(pattern: str, *methods: str) -> Any:
    def kept(act: Any) -> Any:
        act.methods = methods
        ROUTES.append((pattern, act))
        return act

    return kept


ROUTES: list[tuple[str, Any]] = []


@route(r"/api/validate-yaml", "POST")
def validate(handler: Handler, body: bytes) -> None:
    found = re.search(r"^license: (.*)", json.loads(body)["content"], re.MULTILINE)
    if found and found[1] not in LICENSES:
        message = f'"license" must be one of {", ".join(LICENSES)}'
        return handler.send(400, {"warnings": [], "errors": [{"message": message}]})
    handler.send(200, {"warnings": [], "errors": []})


@route(r"/api/repos/create", "POST")
def create(handler: Handler, body: bytes) -> None:
    if handler.token != TOKEN:
        return handler.send(401, {"error": "Invalid username or password."})
    if not handler.hub.can_write:
        return handler.send(403, {"error": "You don't have the rights to create a model"})
    wanted = json.loads(body)
    repo_id = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
    repos = handler.hub.repos(f"{wanted.get('type') or 'model'}s")
    url = {"url": f"{handler.hub.url}/{repo_id}"}
    if repo_id in repos:
        return handler.send(409, {"error": "You already created this model repo", **url})
    private = wanted.get("private") or wanted.get("visibility") == "private"
    repos[repo_id] = Repo(private=bool(private))
    repos[repo_id].commit({})
    return handler.send(200, url)


@route(rf"/api{REPO}(/revision/(?P<revision>.+))?", "GET")
def info(handler: Handler, body: bytes, kind: str, id: str, revision: str | None) -> None:
    if (repo := handler.repo(kind, id)) is None:
        return
    sha = repo.at(revision or "main")
    if sha is None:
        return handler.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    listed = [sibling(handler.hub, name, content) for name, content in repo.commits[sha].items()]
    facts = {"id": id, "sha": sha, "private": repo.private, "gated": repo.gated, "tags": []}
    handler.send(200, {**facts, "downloads": 0, "siblings": listed, "cardData": repo.card})


def sibling(hub: StandIn, name: str, content: bytes) -> dict[str, Any]:
    size = len(content)
    if name.endswith(LARGE):
        lfs = {"sha256": hub.sha256(content), "size": size, "pointerSize": 134}
        return {"rfilename": name, "size": size, "blobId": "of the pointer", "lfs": lfs}
    git = hashlib.sha1(f"blob {size}\0".encode() + content).hexdigest()
    return {"rfilename": name, "size": size, "blobId": git}


@route(rf"/api{REPO}/refs", "GET")
def refs(handler: Handler, body: bytes, kind: str, id: str) -> None:
    if (repo := handler.repo(kind, id)) is None:
        return

    def listed(names: Mapping[str, str], place: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{place}/{name}", "targetCommit": sha}
            for name, sha in names.items()
        ]

    heads, tags = listed(repo.branches, "heads"), listed(repo.tags, "tags")
    handler.send(200, {"branches": heads, "tags": tags, "converts": []})


@route(r"/((?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<name>.+)", "GET")
def resolve(handler: Handler, body: bytes, kind: str | None, id: str, rev: str, name: str) -> None:
    if (repo := handler.repo(kind or "models", id)) is None:
        return
    content = repo.commits.get(repo.at(rev) or "", {}).get(name)
    if content is None:
        return handler.refuse(404, "EntryNotFound", "Entry not found")
    if not name.endswith(LARGE):
        return send_part(handler, content)
    place = f"{handler.hub.storage}/large/{handler.hub.sha256(content)}?signed=secret"
    handler.send(302, None, {"Location": place})


@route(r"/large/(?P<oid>\w+)", "GET")
def large(handler: Handler, body: bytes, oid: str) -> None:
    content = handler.hub.large[oid]
    if handler.hub.trouble.other_bytes:
        content = content[:-1] + bytes([content[-1] ^ 1])
    handler.wait()
    send_part(handler, content)


def send_part(handler: Handler, content: bytes) -> None:
    """The range that is asked for, or half of it."""
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range") or "")
    start, end = (int(found[1]), int(found[2]) + 1) if found else (0, len(content))
    handler.send_response(206 if found else 200)
    handler.send_header("Content-Length", str(end - start))
    handler.end_headers()
    if handler.hub.trouble.downloads:
        handler.wfile.write(content[start : start + handler.hub.trouble.downloads.pop(0)])
        handler.wfile.flush()
        raise Cut
    handler.wfile.write(memoryview(content)[start:end])


@route(rf"/api{REPO}/preupload/(?P<revision>[^/]+)", "POST")
def preupload(handler: Handler, body: bytes, kind: str, id: str, revision: str) -> None:
    if handler.repo(kind, id, write=True) is None:
        return

    def mode(path: str) -> str:
        return "lfs" if path.endswith(LARGE) else "regular"

    files = [
        {"path": file["path"], "uploadMode": mode(file["path"]), "shouldIgnore": False}
        for file in json.loads(body)["files"]
    ]
    handler.send(200, {"files": files})


@route(r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "POST")
def batch(handler: Handler, body: bytes, id: str) -> None:
    if handler.repo("models", id, write=True) is None:
        return
    objects = []
    for wanted in json.loads(body)["objects"]:
        href = f"{handler.hub.storage}/upload/{wanted['oid']}?signed=secret"
        needed = {"actions": {"upload": {"href": href, "header": {}}}}
        objects.append({**wanted, **({} if wanted["oid"] in handler.hub.large else needed)})
    handler.send(200, {"transfer": "basic", "objects": objects})


@route(r"/upload/(?P<oid>\w+)", "PUT")
def upload(handler: Handler, body: bytes, oid: str) -> None:
    if hashlib.sha256(body).hexdigest() != oid:
        return handler.send(400, {"error": "BadDigest"})
    handler.hub.large[oid] = body
    handler.send(200)


@route(rf"/api{REPO}/commit/(?P<revision>[^/]+)", "POST")
def commit(handler: Handler, body: bytes, kind: str, id: str, revision: str) -> None:
    if (repo := handler.repo(kind, id, write=True)) is None:
        return
    files = {}
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            if value["oid"] not in handler.hub.large:
                return handler.send(400, {"error": f"{value['path']} was never uploaded"})
            files[value["path"]] = handler.hub.large[value["oid"]]
    sha = repo.commit(files)
    handler.send(200, {"commitUrl": f"{handler.hub.url}/{id}/commit/{sha}", "commitOid": sha})
