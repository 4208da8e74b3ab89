"""A small Hugging Face Hub on 127.0.0.1, for tests with the real ``huggingface_hub`` 1.0 to 2.4.

Tests use it through the fixtures of ``conftest.py``::

    def test_something(hub, client):
        hub.add_user("ann", token="hf_ann", orgs=("org",))  # role="read": a read-only token
        sha = hub.add_repo("org/net", {"model.safetensors": data}, private=True)
        fault = hub.fault("reset", "^/cdn/", after=1_000_000)  # once, in the middle of the file
        done = client("from huggingface_hub import hf_hub_download; ...", token="hf_ann")
        assert fault.hits == 1
        assert hub.count("GET", "^/cdn/") == 2

* ``with LoopbackHub(folder) as hub``: ``hub.url`` is the endpoint. The storage ("CDN") is the same
  server by another host name, ``localhost``: ``/cdn/<sha256>/<file name>?X-Amz-Signature=...``.
* ``add_user``, ``add_repo``, ``commit``, ``tag``, ``grant`` (access to a gated repo) act past the
  protocol; ``add_repo`` and ``commit`` return the commit. File names are not checked there, so a
  repo can list ``../evil``. Every repo starts with a ``.gitattributes``, as on the real Hub.
* ``repo(id)`` has ``private``, ``gated``, ``branches``, ``tags``, ``commits``; ``head(id)``,
  ``files(id, revision)`` and ``entries(id, revision)`` (sizes and hashes) read a revision.
* ``requests`` is a list of ``Call(method, path, authorized, host)``, ``path`` raw and with its
  query; ``count(method, pattern)`` counts them.
* ``env(home, token, xet=..., timeout=...)`` is a clean environment for a subprocess.
* ``xet`` switches to that storage (the client needs ``xet=True`` too). To anonymous requests for a
  private or missing repo the real Hub answers 401 without a code, which the client understands
  over https only; here the code RepoNotFound is added, so that it raises what it raises there.
* ``fault(kind, match, method=..., times=...)`` spoils the next replies to raw paths in which
  ``match`` is found, ``times`` (default 1) of them; see ``Fault``.

An exception in the server is raised again when the hub closes. Not built: datasets, spaces, pull
requests, branches, paging, uploads in parts, lists of commits and tags, git.
"""

import base64
import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

HUB_HOST, CDN_HOST = "127.0.0.1", "localhost"
SIGNATURE = "0123456789abcdef5ec2e7"
LFS_BYTES = 10_000_000
XET_RECORD = 48
GITATTRIBUTES = b"".join(
    b"*.%s filter=lfs diff=lfs merge=lfs -text\n" % suffix
    for suffix in b"bin ckpt gz npy onnx pkl pt pth safetensors zip".split()
)

Json = Mapping[str, object] | Sequence[Mapping[str, object]]
Role = Literal["read", "write"]
Gate = Literal[False, "auto", "manual"]
Cut = Literal["reset", "short", "stall", "lost_reply"]
Kind = Cut | Literal["flip", "status", "etag", "size"]

# --------------------------------------------------------------------------------------------------
# Records


class Call(NamedTuple):
    """A request that arrived, as the tests see it."""

    method: str
    path: str
    authorized: bool
    host: str


@dataclass(frozen=True, kw_only=True)
class User:
    name: str
    orgs: tuple[str, ...] = ()
    role: Role = "write"

    def owns(self, repo_id: str) -> bool:
        return repo_id.partition("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file in a commit: a git blob, or a pointer to ``sha256`` in the LFS storage."""

    size: int
    blob_id: str
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def pointer(self) -> dict[str, object]:
        return {"size": self.size, "pointerSize": self.pointer_size}

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    message: str
    author: str
    date: str
    tree: Mapping[str, Entry]


@dataclass
class Repo:
    id: str
    private: bool
    gated: Gate
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, a tag, or (part of) a commit id."""
        named = self.branches.get(revision) or self.tags.get(revision)
        hits = [named] if named else [sha for sha in self.commits if sha.startswith(revision)]
        if len(hits) != 1 or not (named or len(revision) >= 7):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[hits[0]]


@dataclass
class Fault:
    """Something that goes wrong ``times`` times (``hits``: so far), at paths that hold ``match``.

    A HEAD has no body: flip, reset and short pass it by, unless ``method`` says HEAD. Of a small
    file (a git blob) the client believes the headers of ``/api/resolve-cache/``, of a large one
    those of ``/resolve/``.

    =============  =================================================================================
    reset          a TCP reset after ``after`` bytes of the body
    short          a clean close after ``after`` bytes
    stall          ``seconds`` of silence after ``after`` bytes, then the rest
    lost_reply     the request is carried out, then a clean close without an answer
    flip           the byte ``at`` (default: the middle one) is another, the size is the same
    status         not carried out: ``status``, ``headers`` and ``body`` (default: HTML) instead
    etag           ``value`` as X-Linked-Etag, or ETag; None removes it
    size           ``value`` as X-Linked-Size, or as Content-Length of a HEAD
    =============  =================================================================================
    """

    kind: Kind
    match: str = ""
    _: KW_ONLY
    method: str | None = None
    times: float = 1
    after: int | None = None
    """Bytes; None: half of them. 0: not even a status line arrives."""
    at: int | None = None
    seconds: float = 3
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | bytes | None = None
    value: str | None = None
    hits: int = 0

    def takes(self, method: str, path: str) -> bool:
        if self.method is None and method == "HEAD" and self.kind in ("flip", "reset", "short"):
            return False  # it has no body
        fits = self.method in (None, method) and re.search(self.match, path) is not None
        fits = fits and self.hits < self.times
        self.hits += fits
        return fits


@dataclass
class Request:
    method: str
    path: str
    headers: Message
    body: bytes
    user: User | None = None

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def json(self) -> dict:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")


@dataclass(kw_only=True)
class Reply:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def json_reply(content: Json, status: int = 200, headers: Mapping[str, str] = {}) -> Reply:
    kind = {"Content-Type": "application/json"}
    return Reply(status=status, headers={**kind, **headers}, body=json.dumps(content).encode())


class HubError(Exception):
    """An answer that is a refusal."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        self.headers |= {"X-Error-Code": code} if code else {}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    def reply(self) -> Reply:
        return json_reply({"error": str(self)}, self.status, self.headers)


# --------------------------------------------------------------------------------------------------
# The hub, as the tests see it


class LoopbackHub:
    """Users, repos and stored bytes behind an HTTP server; see the module's docstring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.xet = False
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Call] = []
        self.errors: list[Exception] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.server = _Server(self)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.url = f"http://{HUB_HOST}:{self.server.server_port}"
        self.cdn_url = f"http://{CDN_HOST}:{self.server.server_port}"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.hang_up()
        self.server.server_close()
        if self.errors:
            raise ExceptionGroup("the loopback hub failed", self.errors)

    def env(
        self, home: Path | None = None, token: str = "", *, xet: bool = False, timeout: int = 10
    ) -> dict[str, str]:
        """All of a client's environment: no proxy, no telemetry, a home; ``timeout`` in seconds.

        Python's own variables go through: another version of the client can be put on PYTHONPATH.
        """
        home = home or self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "HF_HOME": str(home),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": str(timeout),
            "HF_HUB_DOWNLOAD_TIMEOUT": str(timeout),
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",
            **({} if xet else {"HF_HUB_DISABLE_XET": "1"}),
            **{name: value for name, value in os.environ.items() if name.startswith("PYTHON")},
            **({"HF_TOKEN": token} if token else {}),
        }

    def add_user(
        self, name: str, token: str, orgs: Iterable[str] = (), role: Role = "write"
    ) -> None:
        self.users[token] = User(name=name, orgs=tuple(orgs), role=role)

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] = {},
        *,
        private: bool = False,
        gated: Gate = False,
    ) -> str:
        """Create a repo and return its head, which holds ``files``."""
        with self.lock:
            repo = self.repos[repo_id] = Repo(repo_id, private, gated)
            tree = {".gitattributes": self.store(GITATTRIBUTES, lfs=False)}
            sha = self.add_commit(repo, "main", tree, "initial commit")
        return self.commit(repo_id, files) if files else sha

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        message: str = "seeded",
        revision: str = "main",
    ) -> str:
        """Write ``files`` (None: delete) past the protocol and return the new commit's id."""
        with self.lock:
            repo = self.repos[repo_id]
            tree = dict(repo.resolve(revision).tree)
            for path, data in files.items():
                if data is None:
                    del tree[path]
                else:
                    tree[path] = self.store(data, lfs=self.wants_lfs(tree, path, len(data)))
            return self.add_commit(repo, revision, tree, message)

    def tag(self, repo_id: str, name: str, revision: str = "main") -> None:
        repo = self.repos[repo_id]
        repo.tags[name] = repo.resolve(revision).sha

    def grant(self, repo_id: str, user: str) -> None:
        self.repos[repo_id].granted.add(user)

    def repo(self, repo_id: str) -> Repo:
        return self.repos[repo_id]

    def head(self, repo_id: str, branch: str = "main") -> str:
        return self.repos[repo_id].branches[branch]

    def entries(self, repo_id: str, revision: str = "main") -> Mapping[str, Entry]:
        return self.repos[repo_id].resolve(revision).tree

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Every file's bytes; a KeyError for a file that lies in Xet's storage."""
        entries = self.entries(repo_id, revision)
        return {path: self.blobs[entry.etag] for path, entry in entries.items()}

    def count(self, method: str | None = None, pattern: str = "") -> int:
        calls = [call for call in self.requests if method in (None, call.method)]
        return sum(re.search(pattern, call.path) is not None for call in calls)

    def fault(self, kind: Kind, match: str = "", **how: Any) -> Fault:
        """Let the next replies go wrong; ``how`` are the fields of ``Fault``."""
        self.faults.append(Fault(kind, match, **how))
        return self.faults[-1]

    # What the endpoints need

    @property
    def cas(self) -> Path:
        """The folder in which hf_xet keeps its chunks and shards when ``xet`` is on."""
        return self.folder / "cas"

    def record(self, call: Call) -> list[Fault]:
        """Note a request; the faults that await it."""
        with self.lock:
            self.requests.append(call)
            return [fault for fault in self.faults if fault.takes(call.method, call.path)]

    def store(self, data: bytes, *, lfs: bool) -> Entry:
        small = Entry(size=len(data), blob_id=git_sha1(data))
        entry = lfs_entry(sha256(data), len(data)) if lfs else small
        self.blobs[entry.etag] = data
        return entry

    def wants_lfs(self, tree: Mapping[str, Entry], path: str, size: int) -> bool:
        """Whether .gitattributes or the size sends a file to the LFS storage."""
        attributes = tree.get(".gitattributes")
        lines = self.blobs[attributes.etag].decode().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        name = path.rsplit("/", 1)[-1]
        return size > LFS_BYTES or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    def add_commit(
        self, repo: Repo, branch: str, tree: Mapping[str, Entry], message: str, author: str = ""
    ) -> str:
        parent = repo.branches.get(branch)
        facts = f"{repo.id} {parent} {len(repo.commits)} {message} {sorted(tree.items())}"
        sha = hashlib.sha1(facts.encode()).hexdigest()
        author, date = author or repo.namespace, datetime.now(UTC).strftime("%FT%T.000Z")
        repo.commits[sha] = Commit(sha, parent, message, author, date, dict(tree))
        repo.branches[branch] = sha
        return sha

    def xet_hash(self, oid: str) -> str | None:
        """Xet's name of the file with this sha256, from the shards that the client uploaded."""
        if not self.xet:
            return None
        shards = [path.read_bytes() for path in self.cas.rglob("*.mdb")]
        return {sha: name for shard in shards for sha, name in xet_files(shard)}.get(oid)

    def has_lfs(self, oid: str) -> bool:
        return oid in self.blobs or self.xet_hash(oid) is not None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_entry(oid: str, size: int) -> Entry:
    version = "https://git-lfs.github.com/spec/v1"
    pointer = f"version {version}\noid sha256:{oid}\nsize {size}\n".encode()
    return Entry(size=size, blob_id=git_sha1(pointer), sha256=oid, pointer_size=len(pointer))


def xet_files(shard: bytes) -> Iterator[tuple[str, str]]:
    """The (sha256, Xet hash) of each file in a shard (huggingface.co/docs/xet/shard).

    All records have 48 bytes. After the header, each file has one that counts its segments, a
    record for each segment, another one for each if bit 31 is set, and if bit 30 is set its sha256.
    """
    at = XET_RECORD
    while shard[at : at + 32] != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", shard, at + 32)
        sha256_at = at + XET_RECORD * (1 + segments * (2 if flags >> 31 else 1))
        if flags >> 30 & 1:
            yield xet_hex(shard, sha256_at), xet_hex(shard, at)
        at = sha256_at + XET_RECORD * (flags >> 30 & 1)


def xet_hex(shard: bytes, at: int) -> str:
    """Four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", shard, at))


# --------------------------------------------------------------------------------------------------
# Who may do what


def login(hub: LoopbackHub, request: Request) -> None:
    """A wrong token is refused everywhere, on public repos too."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    request.user = hub.users.get(token)
    if scheme and request.user is None:
        raise HubError(401, "Invalid credentials in Authorization header")


def known(request: Request) -> User:
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    return request.user


def readable(hub: LoopbackHub, request: Request, repo_id: str) -> Repo:
    """The repo, if it exists for this user."""
    repo = hub.repos.get(repo_id)
    if repo and (not repo.private or (request.user and request.user.owns(repo_id))):
        return repo
    if request.user is None:
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    raise HubError(404, "Repository not found", "RepoNotFound")


def through_the_gate(hub: LoopbackHub, request: Request, repo_id: str) -> Repo:
    """The repo, if this user may read its files."""
    repo, user = readable(hub, request, repo_id), request.user
    if not repo.gated or (user and (user.owns(repo_id) or user.name in repo.granted)):
        return repo
    message = f"Access to model {repo_id} is restricted and you are not in the authorized list."
    raise HubError(403 if user else 401, message, "GatedRepo")


def writable(hub: LoopbackHub, request: Request, repo_id: str) -> Repo:
    repo = readable(hub, request, repo_id)
    check_writer(known(request), repo_id)
    return repo


def check_writer(user: User, repo_id: str) -> None:
    if not user.owns(repo_id):
        raise HubError(403, f"You don't have the rights to write into the namespace of {repo_id}")
    if user.role != "write":
        raise HubError(403, "You must use a token with write access")


# --------------------------------------------------------------------------------------------------
# Accounts and repos


def whoami(_: LoopbackHub, request: Request) -> Reply:
    user = known(request)
    return json_reply(
        {
            "type": "user",
            "name": user.name,
            "fullname": user.name,
            "email": f"{user.name}@example.com",
            "orgs": [{"name": org, "roleInOrg": "write"} for org in user.orgs],
            "auth": {"accessToken": {"displayName": "test", "role": user.role}},
        }
    )


def create_repo(hub: LoopbackHub, request: Request) -> Reply:
    wish, user = request.json(), known(request)
    repo_id = f"{wish.get('organization') or user.name}/{wish['name']}"
    check_writer(user, repo_id)
    answer = {"url": f"{hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
    if repo_id in hub.repos:
        return json_reply({"error": "You already created this model repo", **answer}, 409)
    hub.add_repo(repo_id, private=wants_private(wish) or False)
    return json_reply(answer)


def wants_private(wish: Mapping[str, object]) -> bool | None:
    """Old clients send ``private``, new ones ``visibility``."""
    if wish.get("visibility") is not None:
        return wish["visibility"] == "private"
    return None if wish.get("private") is None else bool(wish["private"])


def settings(hub: LoopbackHub, request: Request, repo: str) -> Reply:
    wish, found = request.json(), writable(hub, request, repo)
    private = wants_private(wish)
    found.private = found.private if private is None else private
    found.gated = wish.get("gated", found.gated)
    return json_reply({"private": found.private, "gated": found.gated})


def validate_yaml(hub: LoopbackHub, _: Request) -> Reply:
    return json_reply({"errors": [], "warnings": []})


def harnesses(_: LoopbackHub, __: Request) -> Reply:
    return json_reply({"standardEnvVars": [], "harnesses": {}})


# --------------------------------------------------------------------------------------------------
# What is in a repo


def model_info(hub: LoopbackHub, request: Request, repo: str, rev: str = "main") -> Reply:
    found = readable(hub, request, repo)
    commit = found.resolve(rev)
    facts = {
        "author": found.namespace,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": next(iter(found.commits.values())).date,
        "private": found.private,
        "gated": found.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "usedStorage": sum(entry.size for entry in commit.tree.values()),
        "siblings": [sibling(*item, request.flag("blobs")) for item in commit.tree.items()],
        "spaces": [],
    }
    names = {"_id": found.id, "id": found.id, "modelId": found.id}
    wanted = ",".join(request.query.get("expand", facts)).split(",")
    return json_reply(names | {name: facts[name] for name in wanted if name in facts})


def sibling(path: str, entry: Entry, blobs: bool) -> dict[str, object]:
    if not blobs:
        return {"rfilename": path}
    lfs = {"lfs": entry.pointer | {"sha256": entry.sha256}} if entry.sha256 else {}
    return {"rfilename": path, "size": entry.size, "blobId": entry.blob_id, **lfs}


def tree(hub: LoopbackHub, request: Request, repo: str, rev: str, path: str = "") -> Reply:
    entries = readable(hub, request, repo).resolve(rev).tree
    under = path.strip("/") + "/" if path.strip("/") else ""
    items = [node(hub, name, entries) for name in nodes(entries) if name.startswith(under)]
    if under and not items:
        raise HubError(404, f"{path} does not exist on {rev}", "EntryNotFound")
    flat = [item for item in items if "/" not in str(item["path"])[len(under) :]]
    return json_reply(items if request.flag("recursive") else flat)


def paths_info(hub: LoopbackHub, request: Request, repo: str, rev: str) -> Reply:
    entries = readable(hub, request, repo).resolve(rev).tree
    asked = parse_qs(request.body.decode()).get("paths", [])
    return json_reply([node(hub, name, entries) for name in nodes(entries) if name in asked])


def nodes(entries: Mapping[str, Entry]) -> list[str]:
    """Files and their folders."""
    folders = {path[:i] for path in entries for i, letter in enumerate(path) if letter == "/" and i}
    return sorted({*entries, *folders})


def node(hub: LoopbackHub, path: str, entries: Mapping[str, Entry]) -> Mapping[str, object]:
    entry = entries.get(path)
    if entry is None:
        return {"type": "directory", "oid": git_sha1(path.encode()), "size": 0, "path": path}
    file = {"type": "file", "oid": entry.blob_id, "size": entry.size, "path": path}
    if entry.sha256 is None:
        return file
    xet_hash = hub.xet_hash(entry.sha256)
    lfs = {"lfs": entry.pointer | {"oid": entry.sha256}}
    return file | lfs | ({"xetHash": xet_hash} if xet_hash else {})


# --------------------------------------------------------------------------------------------------
# Upload: preupload says how, the LFS batch says where, the commit makes it so


def preupload(hub: LoopbackHub, request: Request, repo: str, rev: str) -> Reply:
    entries = writable(hub, request, repo).resolve(rev).tree
    answers = []
    for file in request.json()["files"]:
        path, present = file["path"], entries.get(file["path"])
        mode = "lfs" if hub.wants_lfs(entries, path, file["size"]) else "regular"
        answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        answers.append(answer | ({"oid": present.etag} if present else {}))
    return json_reply({"files": answers})


def lfs_batch(hub: LoopbackHub, request: Request, repo: str) -> Reply:
    writable(hub, request, repo)
    objects = [batch_object(hub, repo, **item) for item in request.json()["objects"]]
    return json_reply({"transfer": "basic", "objects": objects})


def batch_object(hub: LoopbackHub, repo: str, oid: str, size: int) -> dict[str, object]:
    """Where to send an object, or no actions if it is here already."""
    answer: dict[str, object] = {"oid": oid, "size": size, "authenticated": True}
    if hub.has_lfs(oid):
        return answer
    target = f"{hub.cdn_url}/upload/{oid}?X-Amz-Signature={SIGNATURE}"
    upload: dict[str, object] = {"href": target}
    verify = {"href": f"{hub.url}/{repo}.git/info/lfs/objects/verify"}
    return answer | {"actions": {"upload": upload, "verify": verify}}


def put_object(hub: LoopbackHub, request: Request, oid: str) -> Reply:
    check_signature(request)
    keep_object(hub, oid, request.body)
    return Reply(headers={"ETag": f'"{md5(request.body)}"'})


def keep_object(hub: LoopbackHub, oid: str, data: bytes) -> None:
    if sha256(data) != oid:
        raise HubError(400, "BadDigest: the sha256 is not the one that was announced")
    hub.blobs[oid] = data


def verify_object(hub: LoopbackHub, request: Request, repo: str) -> Reply:
    writable(hub, request, repo)
    wish = request.json()
    if len(hub.blobs.get(wish["oid"], b"")) != wish["size"]:
        raise HubError(404, "The object is missing or of another size")
    return Reply()


def check_signature(request: Request) -> None:
    if request.query.get("X-Amz-Signature") != [SIGNATURE]:
        raise HubError(403, "SignatureDoesNotMatch")


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def commit(hub: LoopbackHub, request: Request, repo: str, rev: str) -> Reply:
    found = writable(hub, request, repo)
    head = found.resolve(rev)
    if rev not in found.branches or request.flag("create_pr"):
        raise HubError(400, "Commits go to an existing branch here")
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit") not in (None, head.sha):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    entries = dict(head.tree)
    for line in lines:
        apply_operation(hub, entries, line["key"], line["value"])
    sha = hub.add_commit(found, rev, entries, header["summary"], known(request).name)
    url = f"{hub.url}/{repo}/commit/{sha}"
    return json_reply({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


def apply_operation(hub: LoopbackHub, entries: dict[str, Entry], key: str, value: dict) -> None:
    """One line of a commit, applied to ``entries``."""
    match key:
        case "file":
            data = base64.b64decode(value["content"], validate=True)
            entries[checked_path(value["path"])] = hub.store(data, lfs=False)
        case "lfsFile":
            if not hub.has_lfs(value["oid"]):
                raise HubError(400, f"LFS pointer to a file that does not exist: {value['oid']}")
            entries[checked_path(value["path"])] = lfs_entry(value["oid"], value["size"])
        case "deletedFile" | "deletedFolder":
            under = value["path"].rstrip("/") + "/"
            gone = [path for path in entries if f"{path}/".startswith(under)]
            if not gone:
                raise HubError(404, f"{value['path']} does not exist", "EntryNotFound")
            for path in gone:
                del entries[path]


def checked_path(path: str) -> str:
    if {"", ".", "..", ".git"} & set(path.split("/")) or {"\\", "\0"} & set(path):
        raise HubError(400, f"Invalid path in repo: {path!r}")
    return path


# --------------------------------------------------------------------------------------------------
# Download: git's blobs from the hub itself, LFS files from the CDN


def resolve(hub: LoopbackHub, request: Request, repo: str, rev: str, path: str) -> Reply:
    found = through_the_gate(hub, request, repo)
    sha = found.resolve(rev).sha
    entry = find_entry(found, sha, path)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.etag}"'}
    if entry.sha256 is None:
        headers["Location"] = f"/api/resolve-cache/models/{repo}/{sha}/{quote(path)}"
        return Reply(status=307, headers=headers)
    name = quote(path.rsplit("/", 1)[-1])
    headers["Location"] = f"{hub.cdn_url}/cdn/{entry.sha256}/{name}?X-Amz-Signature={SIGNATURE}"
    headers |= {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.sha256}"'}
    xet_hash = hub.xet_hash(entry.sha256)
    if xet_hash:
        headers["X-Xet-Hash"] = xet_hash
        headers["Link"] = f'<{hub.url}/api/models/{repo}/xet-read-token/{sha}>; rel="xet-auth"'
    return Reply(status=302, headers=headers)


def resolve_cache(hub: LoopbackHub, request: Request, repo: str, rev: str, path: str) -> Reply:
    found = through_the_gate(hub, request, repo)
    entry = find_entry(found, rev, path)
    headers = {"X-Repo-Commit": rev, "ETag": f'"{entry.etag}"'}
    return ranged(request, hub.blobs[entry.etag], headers)


def find_entry(repo: Repo, sha: str, path: str) -> Entry:
    entry = repo.resolve(sha).tree.get(path)
    if entry is None:
        raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=sha)
    return entry


def cdn(hub: LoopbackHub, request: Request, oid: str) -> Reply:
    check_signature(request)
    if oid not in hub.blobs:
        from_xet(hub, oid)
    return ranged(request, hub.blobs[oid], {"ETag": f'"{oid}"'})


def from_xet(hub: LoopbackHub, oid: str) -> None:
    """Take a file out of Xet's storage, for clients that do not speak it."""
    import hf_xet

    if (xet_hash := hub.xet_hash(oid)) is None:
        raise HubError(404, "NoSuchKey")
    with hub.lock, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer ones have another way
        info = hf_xet.PyXetDownloadInfo(f"{folder}/file", xet_hash, None)
        leave = ("xet", int(time.time()) + 3600)
        hf_xet.download_files([info], f"local://{hub.cas}", leave, None, None)
        hub.blobs[oid] = Path(folder, "file").read_bytes()


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Reply:
    """The bytes asked for: all of them, or from-to, or from."""
    headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not asked:
        return Reply(headers=headers, body=data)
    start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
    if start >= stop:
        return Reply(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return Reply(status=206, headers=headers, body=data[start:stop])


def xet_token(hub: LoopbackHub, request: Request, repo: str, rev: str, right: str) -> Reply:
    """Leave to use Xet's storage; both forms of it are read by some client."""
    found = (writable if right == "write" else through_the_gate)(hub, request, repo)
    found.resolve(rev)
    if not hub.xet:
        raise HubError(404, "Not Found")
    hub.cas.mkdir(parents=True, exist_ok=True)
    leave = {"accessToken": "xet", "exp": int(time.time()) + 3600, "casUrl": f"local://{hub.cas}"}
    names = ("X-Xet-Access-Token", "X-Xet-Token-Expiration", "X-Xet-Cas-Url")
    return json_reply(leave, headers=dict(zip(names, map(str, leave.values()), strict=True)))


# --------------------------------------------------------------------------------------------------
# HTTP

Endpoint = Callable[..., Reply]
REPO, REV, MODEL = r"(?P<repo>[^/]+/[^/]+)", r"(?P<rev>[^/]+)", r"/api/models/(?P<repo>[^/]+/[^/]+)"

HUB_ROUTES: list[tuple[str, str, Endpoint]] = [
    ("GET", r"/api/whoami-v2", whoami),
    ("GET", r"/api/agent-harnesses", harnesses),
    ("POST", r"/api/repos/create", create_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("PUT", rf"{MODEL}/settings", settings),
    ("GET", rf"{MODEL}", model_info),
    ("GET", rf"{MODEL}/revision/{REV}", model_info),
    ("GET", rf"{MODEL}/tree/{REV}", tree),
    ("GET", rf"{MODEL}/tree/{REV}/(?P<path>.*)", tree),
    ("POST", rf"{MODEL}/paths-info/{REV}", paths_info),
    ("POST", rf"{MODEL}/preupload/{REV}", preupload),
    ("POST", rf"{MODEL}/commit/{REV}", commit),
    ("GET", rf"{MODEL}/xet-(?P<right>read|write)-token/{REV}", xet_token),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/verify", verify_object),
    ("GET", rf"/{REPO}/resolve/{REV}/(?P<path>.+)", resolve),
    ("GET", rf"/api/resolve-cache/models/{REPO}/{REV}/(?P<path>.+)", resolve_cache),
]
CDN_ROUTES: list[tuple[str, str, Endpoint]] = [
    ("GET", r"/cdn/(?P<oid>\w+)/[^/]*", cdn),
    ("PUT", r"/upload/(?P<oid>\w+)", put_object),
]


def answer(hub: LoopbackHub, request: Request, host: str) -> Reply:
    try:
        if host == HUB_HOST:
            login(hub, request)
        return find_endpoint(request, HUB_ROUTES if host == HUB_HOST else CDN_ROUTES)(hub, request)
    except HubError as refusal:
        return refusal.reply()


def find_endpoint(request: Request, routes: Iterable[tuple[str, str, Endpoint]]) -> Endpoint:
    """The endpoint of a path; a HEAD is a GET whose body stays here."""
    method = "GET" if request.method == "HEAD" else request.method
    for verb, pattern, endpoint in routes:
        found = re.fullmatch(pattern, request.path.partition("?")[0])
        if found and verb == method:
            names = {name: unquote(part) for name, part in found.groupdict().items()}
            return functools.partial(endpoint, **names)
    raise HubError(404, f"No such endpoint: {request.method} {request.path}")


def spoil(reply: Reply, faults: Iterable[Fault], *, method: str) -> None:
    """What faults do to a reply before it is sent."""
    for fault in faults:
        match fault.kind:
            case "flip" if reply.body:
                at = len(reply.body) // 2 if fault.at is None else fault.at
                reply.body = reply.body[:at] + bytes([reply.body[at] ^ 1]) + reply.body[at + 1 :]
            case "etag":
                linked = "X-Linked-Etag" in reply.headers
                set_header(reply, "X-Linked-Etag" if linked else "ETag", fault.value)
            case "size" if "X-Linked-Size" in reply.headers:
                set_header(reply, "X-Linked-Size", fault.value)
            case "size" if method == "HEAD":
                set_header(reply, "Content-Length", fault.value)


def set_header(reply: Reply, name: str, value: str | None) -> None:
    reply.headers.pop(name, None)
    if value is not None:
        reply.headers[name] = value


def fault_page(fault: Fault) -> Reply:
    page = f"<html><h1>{fault.status}</h1></html>" if fault.body is None else fault.body
    headers = {"Content-Type": "text/html", **fault.headers}
    body = page if isinstance(page, bytes) else page.encode()
    return Reply(status=fault.status, headers=headers, body=body)


class _Handler(BaseHTTPRequestHandler):
    """One connection: read a request, record it, answer it, break it where a fault says so."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def log_message(self, *_: object) -> None:
        pass

    def serve(self) -> None:
        hub, host = self.server.hub, self.headers.get("Host", "").partition(":")[0]
        call = Call(self.command, self.path, "Authorization" in self.headers, host)
        faults = hub.record(call)
        request = Request(self.command, self.path, self.headers, self.read_body())
        page = next((fault_page(fault) for fault in faults if fault.kind == "status"), None)
        with hub.lock:
            reply = page or answer(hub, request, host)
        spoil(reply, faults, method=self.command)
        self.send(reply, faults)

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, reply: Reply, faults: Iterable[Fault]) -> None:
        body = b"" if self.command == "HEAD" else reply.body
        end = next((f for f in faults if f.kind in ("reset", "short", "stall", "lost_reply")), None)
        if end is None:
            self.send_start(reply)
            self.wfile.write(body)
            return
        self.close_connection = True
        after = len(body) // 2 if end.after is None else end.after
        if after and end.kind != "lost_reply":
            self.send_start(reply)
            self.wfile.write(body[:after])
        if end.kind == "reset":
            self.reset()
        if end.kind == "stall":
            self.server.hub.closing.wait(end.seconds)
            if not after:
                self.send_start(reply)
            self.wfile.write(body[after:])

    def send_start(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def reset(self) -> None:
        """Close the descriptor itself, at once: anything gentler sends a FIN first."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


class _Server(ThreadingHTTPServer):
    """A thread for each connection; all of them end when the hub closes."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub) -> None:
        self.hub = hub
        self.open: set[socket.socket] = set()
        super().__init__((HUB_HOST, 0), _Handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # pyright: ignore
        with self.hub.lock:
            self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # pyright: ignore
        super().shutdown_request(request)
        with self.hub.lock:
            self.open.discard(request)

    def hang_up(self) -> None:
        """Wake the threads that wait for a client's next request."""
        with self.hub.lock:
            waiting = list(self.open)
        for connection in waiting:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self.hub.errors.append(error)
