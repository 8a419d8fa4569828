"""A Hub on this machine: the public HTTP API as huggingface_hub uses it, and faults on demand.

    with Hub(tmp_path) as hub:
        hub.faults.append(Fault("POST", "/commit/", "drop", processed=True))
        HfApi(endpoint=hub.endpoint, token=TOKEN).create_repo("user/model")

    python tests/hub.py --port 8000 --root some/folder

It listens on the loopback only. Models, data sets and Spaces have one branch, `main`. Files are
stored by Git's rules and Git LFS's (basic and multipart); Xet is not spoken, so clients need
HF_HUB_DISABLE_XET=1. What is stored lies in `root` and is there again after a restart.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

# Of the user "user", who also writes for the organisation "team"; and one that may only read.
TOKEN = "hf_" + "writes" * 6
READ_TOKEN = "hf_" + "reads0" * 6
NAMESPACES = ("user", "team")

LFS_SUFFIXES = (".safetensors", ".onnx", ".onnx_data", ".bin", ".pt", ".pth", ".npz", ".zip")
SHA256 = re.compile(r"[0-9a-f]{64}")
LICENCES = """
    apache-2.0 mit openrail openrail++ bigscience-openrail-m creativeml-openrail-m afl-3.0
    bigscience-bloom-rail-1.0 bigcode-openrail-m artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research
    lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
    llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
PIPELINE_TAGS = """
    audio-classification audio-to-audio automatic-speech-recognition depth-estimation
    document-question-answering feature-extraction fill-mask graph-ml image-classification
    image-feature-extraction image-segmentation image-text-to-text image-to-3d image-to-image
    image-to-text image-to-video keypoint-detection mask-generation object-detection other
    question-answering reinforcement-learning robotics sentence-similarity summarization
    table-question-answering tabular-classification tabular-regression text-classification
    text-generation text-ranking text-to-3d text-to-audio text-to-image text-to-speech
    text-to-video time-series-forecasting token-classification translation
    unconditional-image-generation video-classification visual-question-answering
    voice-activity-detection zero-shot-classification zero-shot-image-classification
    zero-shot-object-detection
"""
SPACE_COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@dataclass
class Fault:
    """What goes wrong with the nth request of its kind, and the `times - 1` after it.

    `action` is a status to answer with, or "drop" (the connection breaks), "half" (it breaks when
    half of the body has come), "stall" (nothing is read or sent until the server ends), "slow" (the
    body is read in 64 KiB a fiftieth of a second) or "damage" (a byte of the body is another). With
    `processed`, a status or a drop come after the work was done.
    """

    method: str
    path: str  # a regular expression, searched for in the path with its query
    action: int | str
    nth: int = 1
    times: int = 1
    processed: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    met: threading.Event = field(default_factory=threading.Event)

    def meets(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path):
            return False
        self.seen += 1
        if not self.nth <= self.seen < self.nth + self.times:
            return False
        self.met.set()
        return True


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, error: str = "", *, code: str = "", **more: Any):
        super().__init__(error)
        self.status = status
        self.content = {**({"error": error} if error else {}), **more}
        self.headers = {"X-Error-Message": error} if error else {}
        if code:
            self.headers["X-Error-Code"] = code


@dataclass
class Answer:
    content: Any = None  # bytes, or what becomes JSON
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


class Hub:
    """The server and its store; a context manager.

    `log` holds (method, path, status) of every request, the status None where the connection broke.
    """

    def __init__(self, root: Path, *, port: int = 0, part_size: int | None = None):
        self.root = Path(root)
        self.part_size = part_size  # larger objects are sent in parts of so many bytes
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int | None]] = []
        self.tokens = {TOKEN: "write", READ_TOKEN: "read"}
        self.closing = threading.Event()
        self.lock = threading.RLock()
        for name in ("objects", "blobs", "parts", "repos"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.server = ThreadingHTTPServer(("127.0.0.1", port), _handler_of(self))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    # What a test wants to know.

    def calls(self, method: str, path: str) -> list[int | None]:
        """The statuses of the requests of this kind."""
        return [s for m, p, s in self.log if m == method and re.search(path, p)]

    def commits(self, repo_id: str, kind: str = "model") -> list[dict[str, Any]]:
        """Oldest first; the first one is made with the repository."""
        return self._load(kind, repo_id)["commits"]

    def files(self, repo_id: str, kind: str = "model") -> dict[str, bytes]:
        """The content of `main`, without the .gitattributes that comes with a repository."""
        files = self.commits(repo_id, kind)[-1]["files"]
        return {path: self.read(e) for path, e in files.items() if path != ".gitattributes"}

    def is_private(self, repo_id: str, kind: str = "model") -> bool:
        return self._load(kind, repo_id)["private"]

    def objects(self) -> set[str]:
        """The SHA-256 of what LFS holds."""
        return {path.name for path in (self.root / "objects").iterdir()}

    # The store.

    def read(self, entry: dict[str, Any]) -> bytes:
        folder, name = ("objects", entry["sha256"]) if entry["sha256"] else ("blobs", entry["oid"])
        return (self.root / folder / name).read_bytes()

    def create(self, kind: str, repo_id: str, **facts: Any) -> None:
        attributes = "".join(
            f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
        )
        repo = {"type": kind, "id": repo_id, **facts, "commits": []}
        self.commit(repo, "initial commit", {".gitattributes": self.add_blob(attributes.encode())})

    def add_blob(self, content: bytes) -> dict[str, Any]:
        oid = git_oid(content)
        (self.root / "blobs" / oid).write_bytes(content)
        return {"oid": oid, "size": len(content), "sha256": None}

    def add_object(self, sha256: str, size: int, content: bytes) -> None:
        if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
            raise Refused(400, "BadDigest: these are not the bytes that were announced")
        (self.root / "objects" / sha256).write_bytes(content)

    def object_size(self, sha256: str) -> int | None:
        path = self.root / "objects" / sha256
        return path.stat().st_size if path.is_file() else None

    def commit(self, repo: dict[str, Any], title: str, files: dict[str, Any]) -> str:
        parent = repo["commits"][-1]["oid"] if repo["commits"] else None
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        content = {"parent": parent, "title": title, "date": date, "files": files}
        oid = hashlib.sha1(json.dumps([content, len(repo["commits"])]).encode()).hexdigest()
        repo["commits"].append({"oid": oid, **content})
        path = self._path(repo["type"], repo["id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(repo))
        aside.replace(path)
        return oid

    def add_files(self, repo_id: str, files: dict[str, bytes], kind: str = "model") -> None:
        """A commit of somebody else."""
        with self.lock:
            repo = self._load(kind, repo_id)
            added = {path: self.add_blob(content) for path, content in files.items()}
            self.commit(repo, "theirs", {**repo["commits"][-1]["files"], **added})

    def _path(self, kind: str, repo_id: str) -> Path:
        return self.root / "repos" / f"{kind}s" / f"{repo_id}.json"

    def _load(self, kind: str, repo_id: str) -> dict[str, Any]:
        return json.loads(self._path(kind, repo_id).read_text())

    def exists(self, kind: str, repo_id: str) -> bool:
        return self._path(kind, repo_id).is_file()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    version = "version https://git-lfs.github.com/spec/v1"
    return f"{version}\noid sha256:{sha256}\nsize {size}\n".encode()


# ------------------------------------------------------------------------------------- requests

ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = []
REPO = r"(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
WEB_REPO = r"(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+?)"


def route(methods: str, pattern: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.extend((m, re.compile(f"/{pattern}"), function) for m in methods.split())
        return function

    return register


@dataclass
class Request:
    """One request, its body read."""

    hub: Hub
    query: dict[str, list[str]]
    headers: Any
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Refused(400, "the body is not JSON") from None

    def role(self) -> str | None:
        """What the token may do, None without one."""
        name, _, token = self.headers.get("Authorization", "").partition(" ")
        if not name:
            return None
        if token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def repo(self, kind: str | None, repo_id: str, *, write: bool = False) -> dict[str, Any]:
        kind, role = kind or "model", self.role()
        repo = self.hub._load(kind, repo_id) if self.hub.exists(kind, repo_id) else None
        hidden = repo is not None and repo["private"]
        if role is None and (repo is None or hidden or write):
            raise Refused(401, "Invalid username or password.")
        if repo is None or (hidden and repo_id.split("/")[0] not in NAMESPACES):
            raise Refused(404, "Repository not found", code="RepoNotFound")
        if write and (role != "write" or repo_id.split("/")[0] not in NAMESPACES):
            raise Refused(403, f"you are not allowed to write to {kind}s/{repo_id}")
        return repo


def commit_at(repo: dict[str, Any], revision: str) -> dict[str, Any]:
    for commit in reversed(repo["commits"]):
        if revision in ("main", commit["oid"]):
            return commit
    raise Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


@route("GET", "api/whoami-v2")
def whoami(request: Request) -> Answer:
    role = request.role()
    if role is None:
        raise Refused(401, "Invalid username or password.")
    token = {"accessToken": {"displayName": "of a test", "role": role}, "type": "access_token"}
    return Answer(
        {"type": "user", "name": "user", "orgs": [{"type": "org", "name": "team"}], "auth": token}
    )


@route("POST", "api/repos/create")
def create(request: Request) -> Answer:
    wish, role = request.json(), request.role()
    kind, owner = wish.get("type", "model"), wish.get("organization") or "user"
    repo_id = f"{owner}/{wish['name']}"
    if role is None:
        raise Refused(401, "Invalid username or password.")
    if role != "write" or owner not in NAMESPACES:
        raise Refused(
            403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"'
        )
    if kind == "space" and wish.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
        raise Refused(400, "a Space needs an sdk")
    prefix = "" if kind == "model" else f"{kind}s/"
    found = {"url": f"{request.hub.endpoint}/{prefix}{repo_id}", "name": repo_id, "id": repo_id}
    with request.hub.lock:
        if request.hub.exists(kind, repo_id):
            raise Refused(409, f"You already created this {kind} repo", **found)
        private = wish.get("visibility") == "private" or bool(wish.get("private"))
        request.hub.create(kind, repo_id, private=private, sdk=wish.get("sdk"))
    return Answer(found)


@route("POST", "api/validate-yaml")
def validate_yaml(request: Request) -> Answer:
    wish = request.json()
    errors, warnings = card_problems(wish["content"], wish.get("repoType", "model"))
    content = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    return Answer(content, status=400 if errors else 200)


@route("POST", f"api/{REPO}/preupload/(?P<revision>[^/]+)")
def preupload(request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repo = request.repo(kind, repo_id, write=True)
    present = commit_at(repo, revision)["files"]
    files = []
    for file in request.json()["files"]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        is_lfs = path.endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 or b"\0" in sample
        answer = {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
        if path in present:
            answer["oid"] = present[path]["sha256"] or present[path]["oid"]
        files.append(answer)
    return Answer({"files": files, "commitOid": repo["commits"][-1]["oid"]})


@route("POST", rf"{WEB_REPO}\.git/info/lfs/objects/batch")
def lfs_batch(request: Request, kind: str | None, repo_id: str) -> Answer:
    request.repo(kind, repo_id, write=True)
    hub, wish = request.hub, request.json()
    if wish["operation"] != "upload" or wish["hash_algo"] != "sha256":
        raise Refused(422, "uploads by SHA-256 only")
    prefix = f"{kind}s/" if kind else ""
    verify = {"href": f"{hub.endpoint}/{prefix}{repo_id}.git/info/lfs/objects/verify"}
    objects = []
    for wanted in wish["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        if not SHA256.fullmatch(oid):
            raise Refused(422, f"not a SHA-256: {oid}")
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if hub.object_size(oid) is None:
            storage = f"{hub.endpoint}/storage/{oid}"
            if hub.part_size is None or size <= hub.part_size:
                upload: dict[str, Any] = {"href": f"{storage}?size={size}&Signature=secret"}
            else:
                header = {"chunk_size": str(hub.part_size)}
                for number in range(1, -(-size // hub.part_size) + 1):
                    header[str(number)] = f"{storage}/{number}?Signature=secret"
                upload = {"href": f"{storage}/complete?size={size}", "header": header}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return Answer({"transfer": "basic", "objects": objects})


@route("PUT", "storage/(?P<oid>[0-9a-f]{64})(?:/(?P<part>[0-9]+))?")
def put_object(request: Request, oid: str, part: str | None) -> Answer:
    if "Authorization" in request.headers:  # the address is signed; S3 refuses both
        raise Refused(400, "InvalidArgument: only one way of authentication")
    if request.query["Signature"] != ["secret"]:
        raise Refused(403, "SignatureDoesNotMatch")
    if part is None:
        request.hub.add_object(oid, int(request.query["size"][0]), request.body)
    else:
        (request.hub.root / "parts" / f"{oid}.{part}").write_bytes(request.body)
    return Answer(b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", "storage/(?P<oid>[0-9a-f]{64})/complete")
def complete(request: Request, oid: str) -> Answer:
    if request.hub.object_size(oid) is not None:  # the answer to the first try was lost
        return Answer({"success": True})
    content = b""
    for number, part in enumerate(request.json()["parts"], start=1):
        path = request.hub.root / "parts" / f"{oid}.{number}"
        if part["partNumber"] != number or not path.is_file():
            raise Refused(400, f"InvalidPart: {number}")
        piece = path.read_bytes()
        if part["etag"].strip('"') != hashlib.md5(piece).hexdigest():
            raise Refused(400, f"InvalidPart: {number} has another ETag")
        content += piece
    request.hub.add_object(oid, int(request.query["size"][0]), content)
    for path in (request.hub.root / "parts").glob(f"{oid}.*"):
        path.unlink()
    return Answer({"success": True})


@route("POST", rf"{WEB_REPO}\.git/info/lfs/objects/verify")
def verify(request: Request, kind: str | None, repo_id: str) -> Answer:
    request.repo(kind, repo_id, write=True)
    wish = request.json()
    if request.hub.object_size(wish["oid"]) != wish["size"]:
        raise Refused(404, f"no such object: {wish['oid']}")
    return Answer({})


@route("POST", f"api/{REPO}/commit/(?P<revision>[^/]+)")
def commit(request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    hub = request.hub
    with hub.lock:
        repo = request.repo(kind, repo_id, write=True)
        if revision != "main":
            raise Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        lines = [json.loads(line) for line in request.body.splitlines() if line]
        head, files = commit_at(repo, revision), dict(commit_at(repo, revision)["files"])
        header = lines[0]["value"]
        if lines[0]["key"] != "header" or not header["summary"]:
            raise Refused(400, "a commit begins with its header")
        if header.get("parentCommit") not in (None, head["oid"]):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            _apply(hub, kind, files, line["key"], line["value"])
        oid = hub.commit(repo, header["summary"], files)
    url = f"{hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}/commit/{oid}"
    return Answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def _apply(hub: Hub, kind: str, files: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        content = base64.b64decode(value["content"], validate=True)
        if path.endswith(LFS_SUFFIXES):
            raise Refused(400, f"{path}: must go through LFS")
        if path == "README.md" and (errors := card_problems(content.decode(), kind)[0]):
            raise Refused(400, "\n".join(errors))
        files[path] = hub.add_blob(content)
    elif key == "lfsFile":
        size = hub.object_size(value["oid"])
        if value["algo"] != "sha256" or size is None or size != value.get("size", size):
            raise Refused(400, f"{path}: its content was not uploaded")
        pointer = git_oid(lfs_pointer(value["oid"], size))
        files[path] = {"oid": pointer, "size": size, "sha256": value["oid"]}
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refused(404, "A file with this name doesn't exist", code="EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
            del files[name]
    else:
        raise Refused(400, f"unknown operation: {key}")


@route("GET", f"api/{REPO}(?:/revision/(?P<revision>[^/]+))?")
def info(request: Request, kind: str, repo_id: str, revision: str | None) -> Answer:
    repo = request.repo(kind, repo_id)
    commit, files = commit_at(repo, revision or "main"), repo["commits"][-1]["files"]
    card: dict[str, Any] = {}
    if "README.md" in files:
        card = front_matter(request.hub.read(files["README.md"]).decode()) or {}
    return Answer(
        {
            "_id": hashlib.sha1(repo_id.encode()).hexdigest()[:24],
            "id": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit["oid"],
            "private": repo["private"],
            "createdAt": repo["commits"][0]["date"],
            "lastModified": commit["date"],
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags") or [],
            "cardData": card,
            "siblings": [{"rfilename": path} for path in sorted(commit["files"])],
            **({"modelId": repo_id} if kind == "model" else {}),
            **({"sdk": repo["sdk"]} if kind == "space" else {}),
            **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card},
        }
    )


@route("GET", f"api/{REPO}/commits/(?P<revision>[^/]+)")
def commits(request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    repo = request.repo(kind, repo_id)
    last = repo["commits"].index(commit_at(repo, revision))
    found = [
        {
            "id": commit["oid"],
            "title": commit["title"],
            "message": "",
            "date": commit["date"],
            "authors": [{"user": "user"}],
        }
        for commit in repo["commits"][last::-1]
    ]
    return Answer(found)


@route("GET", f"api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
def tree(request: Request, kind: str, repo_id: str, revision: str, folder: str | None) -> Answer:
    files = commit_at(request.repo(kind, repo_id), revision)["files"]
    prefix = f"{folder.strip('/')}/" if folder else ""
    recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        if path.startswith(prefix):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(name.encode()).hexdigest()
                found[name] = {"type": "directory", "oid": oid, "size": 0, "path": name}
            if recursive or len(parts) == 1:
                found[path] = _listed(path, files[path])
    if prefix and not found:
        raise Refused(404, f"{folder} does not exist on {revision}", code="EntryNotFound")
    return Answer(list(found.values()))


@route("POST", f"api/{REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(request: Request, kind: str, repo_id: str, revision: str) -> Answer:
    files = commit_at(request.repo(kind, repo_id), revision)["files"]
    paths = parse_qs(request.body.decode()).get("paths", [])
    return Answer([_listed(path, files[path]) for path in paths if path in files])


def _listed(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    listed = {"type": "file", "oid": entry["oid"], "size": entry["size"], "path": path}
    if entry["sha256"]:
        pointer = lfs_pointer(entry["sha256"], entry["size"])
        listed["lfs"] = {
            "oid": entry["sha256"],
            "size": entry["size"],
            "pointerSize": len(pointer),
        }
    return listed


@route("GET HEAD", f"{WEB_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> Answer:
    commit = commit_at(request.repo(kind, repo_id), revision)
    if path not in commit["files"]:
        missing = Refused(404, "Entry not found", code="EntryNotFound")
        missing.headers["X-Repo-Commit"] = commit["oid"]  # clients remember that it is not there
        raise missing
    entry = commit["files"][path]
    content = request.hub.read(entry)
    headers = {
        "X-Repo-Commit": commit["oid"],
        "ETag": f'"{entry["sha256"] or entry["oid"]}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if entry["sha256"]:
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not wanted:
        return Answer(content, headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
    if first > last:
        refused = Refused(416, "Range Not Satisfiable")
        refused.headers["Content-Range"] = f"bytes */{len(content)}"
        raise refused
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Answer(content[first : last + 1], headers, 206)


# ---------------------------------------------------------------------------------------- cards


def front_matter(text: str) -> dict[str, Any] | None:
    """The YAML between the first two lines of dashes; None: there is none.

    Raises:
        yaml.YAMLError: it is broken.
    """
    found = re.match(r"\s*---[^\S\n]*\n(.*?)\n---[^\S\n]*(\n|$)", text, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def card_problems(text: str, kind: str) -> tuple[list[str], list[str]]:
    """What is wrong with a README's metadata, and what could be better."""
    try:
        card = front_matter(text)
    except yaml.YAMLError as error:
        return [f"metadata is not valid YAML: {error}"], []
    if card is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return ["metadata must be an object"], []
    errors = []

    def check(key: str, known: Any) -> None:
        values = card.get(key)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value not in known:
                errors.append(f'"{key}" must be one of [{", ".join(known)}], not {value!r}')

    check("license", LICENCES.split())
    for key in ("tags", "datasets", "base_model", "language", "metrics"):
        values = card.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if value is not None and not isinstance(value, str):
                errors.append(f'"{key}" must be a string, not {value!r}')
    if kind == "model":
        check("pipeline_tag", PIPELINE_TAGS.split())
        errors += _index_problems(card.get("model-index"))
    if kind == "space":
        check("sdk", ("gradio", "streamlit", "docker", "static"))
        check("colorFrom", SPACE_COLORS)
        check("colorTo", SPACE_COLORS)
        errors += [f'"{key}" is required' for key in ("sdk",) if key not in card]
        if len(card.get("short_description") or "") > 60:
            errors.append('"short_description" must be at most 60 characters long')
    return errors, []


def _index_problems(index: Any) -> Iterator[str]:
    if index is None:
        return
    if not isinstance(index, list) or not index:
        yield '"model-index" must be a list'
        return
    for model in index:
        if not isinstance(model.get("name"), str):
            yield '"model-index[].name" is required'
        for result in model.get("results") or []:
            for key, needed in (("task", ["type"]), ("dataset", ["type", "name"])):
                for name in needed:
                    if not isinstance((result.get(key) or {}).get(name), str):
                        yield f'"model-index[].results[].{key}.{name}" is required'
            metrics = result.get("metrics")
            if not metrics:
                yield '"model-index[].results[].metrics" is required'
            for metric in metrics or []:
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    yield '"model-index[].results[].metrics[]" needs type and value'


# ----------------------------------------------------------------------------------- connections


def _handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536  # an answer in one piece: two would wait for each other, 40 ms each time

        def handle_any(self) -> None:
            place = len(hub.log)
            hub.log.append((self.command, self.path, None))
            with hub.lock:
                met = [
                    f for f in hub.faults if f.meets(self.command, self.path)
                ]  # all of them count
            fault = met[0] if met else None
            action = fault.action if fault else None
            if action == "stall":
                hub.closing.wait()
            if action == "half":
                self.rfile.read(int(self.headers.get("Content-Length", "2")) // 2)
            if action in ("stall", "half") or (action == "drop" and not fault.processed):
                return self._break()
            body = self._body(pause=0.02 if action == "slow" else 0.0)
            if action == "damage":
                body = bytes([body[0] ^ 1]) + body[1:]
            if isinstance(action, int) and not fault.processed:
                answer = Answer({"error": f"a fault: {action}"}, fault.headers, action)
            else:
                answer = self._answer(body)
                if fault and fault.processed and action == "drop":
                    return self._break()
                if fault and fault.processed:
                    answer = Answer({"error": f"a fault: {action}"}, fault.headers, int(action))
            hub.log[place] = (self.command, self.path, answer.status)
            self._send(answer)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def _body(self, pause: float) -> bytes:
            content = b""
            if self.headers.get("Transfer-Encoding") != "chunked":
                left = int(self.headers.get("Content-Length", "0"))
                while piece := self.rfile.read(min(left - len(content), 65536 if pause else left)):
                    content += piece
                    time.sleep(pause)
                return content
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def _answer(self, body: bytes) -> Answer:
            address = urlsplit(self.path)
            request = Request(hub, parse_qs(address.query), self.headers, body)
            for method, pattern, function in ROUTES:
                found = pattern.fullmatch(address.path) if method == self.command else None
                if found:
                    parts = {k: v and unquote(v) for k, v in found.groupdict().items()}
                    try:
                        return function(request, **parts)
                    except Refused as refused:
                        return Answer(refused.content, refused.headers, refused.status)
            return Answer({"error": f"Cannot {self.command} {address.path}"}, status=404)

        def _send(self, answer: Answer) -> None:
            content, headers = answer.content, dict(answer.headers)
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
                headers["Content-Type"] = "application/json; charset=utf-8"
            self.send_response(answer.status)
            for key, value in headers.items():
                self.send_header(key, quote(value, safe=" \"!#$%&'()*+,-./:;<=>?@[]^_`{|}~"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _break(self) -> None:
            """Ends the connection as a failing network does: by a reset, without an answer."""
            self.close_connection = True
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # the client left, or we broke it off
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, *arguments: Any) -> None:
            """Nothing: `Hub.log` has it."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hub on this machine's loopback.")
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    parser.add_argument("--root", type=Path, required=True, help="folder of what it stores")
    options = parser.parse_args()
    with Hub(options.root, port=options.port) as hub:
        print(f"HF_ENDPOINT={hub.endpoint}", flush=True)
        print(f"HF_TOKEN={TOKEN}", flush=True)
        print("HF_HUB_DISABLE_XET=1", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
