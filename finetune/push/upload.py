"""A folder to the Hugging Face Hub: in one commit, again where it broke off, within a time limit.

    upload_folder(Path("card"), "me/parrots", message="mIoU 41.2 at step 4000")

huggingface_hub does the talking. By itself it tries again what fails while files are sent; what it
sends once only (making the repository, checking the card, the commit) is tried again here. A commit
whose answer was lost may have been made: that is looked up before it is sent once more.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_url,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import _http as hub_http
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from finetune.errors import UserError

T = TypeVar("T")

# The HTTP library that the client sits on: httpx, or httpx2 in newer versions.
httpx: Any = import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])

TRANSIENT = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8, 8)  # seconds before each further try, where the Hub names none
# What the client sends once only.
SENT_ONCE = re.compile(
    r"/api/(repos/create|validate-yaml|(models|spaces)/[^/]+/[^/]+(/(revision|commit)/[^/]+)?)$"
)

# A new repository holds some of these; they are nobody's work, or stay whatever is pushed.
NOT_WORK = re.compile(r"\.git(attributes|ignore)|README\.md|LICEN[SC]E(\.\w+)?", re.IGNORECASE)
# What an earlier push may have left and this one has not: weights of another model, and code.
STALE = re.compile(r".*\.(safetensors|safetensors\.index\.json|onnx|onnx_data|py)")


@dataclass(frozen=True)
class Uploaded:
    """Where a folder lies now."""

    url: str
    commit: str
    private: bool
    """What the repository is, which an earlier push or its owner may have decided."""


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    message: str,
    repo_type: str = "model",
    timeout: float = 60.0,
    limit: float = 4 * 3600.0,
    token: str | None = None,
) -> Uploaded:
    """Makes the repository if there is none, and brings the folder into it in one commit.

    The same folder again makes no commit, and after a failure only what is missing is sent (whole
    files: the Hub's protocol knows no part of one). Hidden files stay here. Weights and code that
    the repository holds and the folder does not are removed; everything else stays.

    Args:
        folder: what to upload.
        repo_id: `owner/name`.
        private: of a repository that is made now; an older one stays what it is.
        message: of the commit.
        repo_type: "model" or "space" (of Gradio).
        timeout: seconds that a connection may be silent before it is given up and tried again.
        limit: seconds that the whole may take.
        token: of the Hub; None: HF_TOKEN, or what `hf auth login` saved.

    Raises:
        UserError: it cannot be uploaded; says why, and what to do. Nothing was committed.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        raise UserError(f"{repo_id}: a repository is named owner/name, such as me/parrots")
    files = _files_of(folder)
    token = _checked(token or get_token())
    for path in files.values():
        if path.stat().st_size < 1_000_000 and token.encode() in path.read_bytes():
            raise UserError(f"{path}: holds your token of the Hub; take it out")
    link = _Link(timeout, limit)
    with _without_xet(), link.open():
        try:
            return _Push(link, files, repo_id, repo_type, token).run(message, private)
        except Exception as error:
            words = _explain(error, repo_id, link)
            if words is None:
                raise
            # The token stands in headers, which some errors of the HTTP library quote.
            raise UserError(words.replace(token, "***")) from None


class _Push:
    """One upload."""

    def __init__(
        self, link: "_Link", files: Mapping[str, Path], repo_id: str, repo_type: str, token: str
    ):
        self.link = link
        self.files = files
        self.repo_id = repo_id
        self.repo_type = repo_type
        self.token = token
        self.api = HfApi(endpoint=link.endpoint, token=token, library_name="finetune")
        # They remember what was hashed and sent, over all tries.
        self.additions = [CommitOperationAdd(name, path) for name, path in files.items()]

    def run(self, message: str, private: bool) -> Uploaded:
        """All of it."""
        info = self._open(private)
        present = self._tree(info.sha)
        self._refuse_others_work(present, info.sha)
        stale = [path for path in present if path not in self.files and STALE.fullmatch(path)]
        operations = [*self.additions, *(CommitOperationDelete(path) for path in stale)]
        tried = False

        def landed(head: str | None) -> str | None:
            """The head of the repository, if it holds the folder."""
            tree = self._tree(head)
            return head if self._holds(tree) and not any(path in tree for path in stale) else None

        def commit() -> str:
            nonlocal tried
            if tried and (found := landed(self._info().sha)):
                return found
            tried = True
            try:
                return self.api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    repo_type=self.repo_type,
                    parent_commit=info.sha,
                ).oid
            except HfHubHTTPError as error:
                # Another commit came first. It may be our own, whose answer was lost.
                if error.response.status_code not in (409, 412):
                    raise
                if found := landed(self._info().sha):
                    return found
                raise

        is_there = self._holds(present) and not stale
        oid = info.sha if is_there else self.link.retry(commit)
        prefix = {"space": "spaces/"}.get(self.repo_type, "")
        return Uploaded(f"{self.link.endpoint}/{prefix}{self.repo_id}", oid, bool(info.private))

    def _open(self, private: bool) -> Any:
        """What the repository is; made if it is not there."""
        try:
            return self.link.retry(self._info)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
        sdk = "gradio" if self.repo_type == "space" else None

        def create() -> None:
            # Where the answer to the first try was lost, the next one finds it there.
            self.api.create_repo(
                self.repo_id,
                private=private,
                repo_type=self.repo_type,
                space_sdk=sdk,
                exist_ok=True,
            )

        self.link.retry(create)
        return self.link.retry(self._info)

    def _info(self) -> Any:
        return self.api.repo_info(self.repo_id, repo_type=self.repo_type)

    def _tree(self, revision: str | None) -> dict[str, RepoFile]:
        """The files of a commit; none where there is no commit yet."""
        if revision is None:
            return {}
        entries = self.api.list_repo_tree(
            self.repo_id, recursive=True, revision=revision, repo_type=self.repo_type
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _holds(self, tree: Mapping[str, RepoFile]) -> bool:
        """Whether a commit has every file of the folder, with these bytes."""
        for addition in self.additions:
            found = tree.get(addition.path_in_repo)
            if found is None or found.size != addition.upload_info.size:
                return False
            if found.lfs is not None:
                if found.lfs.sha256 != addition.upload_info.sha256.hex():
                    return False
            else:
                content = self.files[addition.path_in_repo].read_bytes()
                blob = b"blob %d\0" % len(content) + content
                if found.blob_id != hashlib.sha1(blob).hexdigest():
                    return False
        return True

    def _refuse_others_work(self, present: Mapping[str, RepoFile], head: str | None) -> None:
        """A repository may be empty, or hold a SegFormer (a Space: a demo of one)."""
        work = [path for path in present if not NOT_WORK.fullmatch(path)]
        proof = "app.py" if self.repo_type == "space" else "config.json"
        if not work:
            return
        if proof in present:
            content = self._download(proof, head)
            pattern = rb"finetune" if self.repo_type == "space" else rb'"model_type": *"segformer"'
            if re.search(pattern, content):
                return
        kind = "a demo of this package" if self.repo_type == "space" else "a SegFormer"
        shown = ", ".join(work[:3]) + (", ..." if work[3:] else "")
        raise UserError(
            f"{self.repo_id}: the repository exists and holds something else than {kind} "
            f"({shown}). Choose another name, or empty it first."
        )

    def _download(self, path: str, revision: str | None) -> bytes:
        address = hf_hub_url(
            self.repo_id,
            path,
            repo_type=self.repo_type,
            revision=revision,
            endpoint=self.link.endpoint,
        )
        response = http_backoff("GET", address, headers=build_hf_headers(token=self.token))
        hf_raise_for_status(response)
        return response.content


# --------------------------------------------------------------------------------- the connection


class _AgainError(Exception):
    """An answer after which one tries again what the client sends once only."""

    def __init__(self, status: int, wait: int | None, words: str):
        super().__init__(words)
        self.status = status
        self.wait = wait  # seconds that the Hub asks for


class _Link:
    """The client's connections, with limits; and the tries that are missing in the client."""

    def __init__(self, timeout: float, limit: float):
        # Not the client's constant, which was read when it was imported.
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.timeout = timeout
        self.limit = limit
        self.end = monotonic() + limit
        self.reached = False  # whether the Hub has answered at all

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Puts the limits on all that the client sends; afterwards it is as it was."""
        # The client's own have no time limit. Whoever set another factory (a proxy, certificates)
        # keeps it: there is no public way to ask for it.
        previous = hub_http._GLOBAL_CLIENT_FACTORY

        def factory() -> Any:
            client = previous()
            client.event_hooks["request"].append(self._limited)
            client.event_hooks["response"].append(self._looked_at)
            return client

        set_client_factory(factory)
        hub_http.logger.addFilter(_without_signatures)
        try:
            yield
        finally:
            hub_http.logger.removeFilter(_without_signatures)
            set_client_factory(previous)

    def retry(self, call: Callable[[], T]) -> T:
        """Calls it until it succeeds, fails for good, or was tried often enough."""
        for wait in WAITS:
            try:
                return call()
            except _AgainError as error:
                problem, seconds = str(error), wait if error.wait is None else error.wait
            except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
                # What the client tried again is over; and so is it where there is no network.
                if not SENT_ONCE.search(error.request.url.path) or not self.reached:
                    raise
                problem, seconds = str(error) or type(error).__name__, wait
            self.check(seconds)
            print(f"the Hub: {problem}; again in {seconds} s", file=sys.stderr)
            sleep(seconds)
        return call()

    def check(self, seconds: float = 0.0) -> None:
        """Ends an upload that has taken too long, or would with a wait of so many seconds."""
        if monotonic() + seconds > self.end:
            raise UserError(
                f"the upload did not end within {self.limit:.0f} seconds; the same command again "
                "sends what is missing"
            )

    def _limited(self, request: Any) -> None:
        self.check()
        left = min(self.timeout, max(self.end - monotonic(), 0.001))
        asked = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            key: min(left, asked.get(key) or left) for key in ("connect", "read", "write", "pool")
        }
        request.stream = _Watched(request.stream, self)

    def _looked_at(self, response: Any) -> None:
        self.reached = True
        status, path = response.status_code, response.request.url.path
        if status not in TRANSIENT:
            return
        wait = _wait_of(response.headers)
        self.check(wait or 0)
        if SENT_ONCE.search(path):
            raise _AgainError(status, wait, f"{status} at {path}")


class _Watched(httpx.SyncByteStream):
    """A request's body that ends when the time is over, however slowly it is taken."""

    def __init__(self, stream: Any, link: _Link):
        self.stream = stream
        self.link = link

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.stream:
            self.link.check()
            yield chunk

    def close(self) -> None:
        self.stream.close()


def _wait_of(headers: Mapping[str, str]) -> int | None:
    """Seconds that an answer asks to wait."""
    spent = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    seconds = spent[1] if spent else headers.get("retry-after", "").strip()
    return int(seconds) if seconds.isdecimal() else None


@contextlib.contextmanager
def _without_xet() -> Iterator[None]:
    """Files go by LFS: in one commit, over connections that have the limits of `_Link`.

    HF_HUB_DISABLE_XET is read once, when huggingface_hub is imported, which transformers may have
    done long ago. What it was read into is looked at with each upload.
    """
    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _without_signatures(record: logging.LogRecord) -> bool:
    """The client names addresses when it tries again; those of the storage are as good as keys."""
    record.msg, record.args = re.sub(r"\?\S+", "", record.getMessage()), ()
    return True


# --------------------------------------------------------------------------------- what is wrong


def _files_of(folder: Path) -> dict[str, Path]:
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            files[name.as_posix()] = path
    if not files:
        raise UserError(f"{folder}: no such folder, or nothing in it to upload")
    return files


def _checked(token: str | None) -> str:
    """A token that can be sent. It is never shown, wrong or not."""
    if not token:
        raise UserError(
            "there is no token of the Hub here: `hf auth login`, or set HF_TOKEN to one that may "
            "write"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UserError("the token of the Hub holds spaces, or characters that no token has")
    return token


def _explain(error: BaseException, repo_id: str, link: _Link) -> str | None:
    """What to tell the user; None where it is a defect."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # the client wraps what happens while a file is sent
    hub = link.endpoint
    if isinstance(error, UserError):
        return f"{repo_id}: {error}" if repo_id not in str(error) else str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it"
    if isinstance(error, _AgainError):
        return _explain_status(error.status, "", repo_id, hub)
    if isinstance(error, HfHubHTTPError):
        said = error.server_message or ""
        return _explain_status(error.response.status_code, said, repo_id, hub)
    if isinstance(error, httpx.HTTPError):
        return f"{repo_id}: {_explain_network(error, hub, link.timeout)}"
    if isinstance(error, json.JSONDecodeError):
        return f"{repo_id}: {hub} answers as no Hub does; look at HF_ENDPOINT"
    if isinstance(error, ValueError) and "README.md" in str(error):
        return f"{repo_id}: the Hub refuses the card. {_one_line(str(error))}"
    if isinstance(error, ValueError) and "LFS batch" in str(error):
        return f"{repo_id}: the Hub does not take the files. {_one_line(str(error))}"
    if isinstance(error, OSError):
        return f"{repo_id}: a file cannot be read ({error.strerror}: {error.filename})"
    return None


def _explain_status(status: int, said: str, repo_id: str, hub: str) -> str:
    full = status in (402, 413, 507) or re.search(r"quota|storage limit", said, re.IGNORECASE)
    words = {
        401: f"the Hub does not know this token. Make one that may write at {hub}/settings/tokens, "
        "then `hf auth login`, or set HF_TOKEN",
        403: "the token may not write there. Look at the owner's name, and at the token's rights "
        f"at {hub}/settings/tokens",
        404: "there is no such repository for this token, or it went away meanwhile",
        409: "somebody else changed the repository meanwhile. Push again",
        412: "somebody else changed the repository meanwhile. Push again",
        429: "too many requests; wait some minutes, then push again",
    }
    if full:
        text = "the Hub takes no more: the account's storage is full, or a file is too large"
    elif status in words:
        text = words[status]
    elif status >= 500 or status == 408:
        text = "the Hub fails. Push again later: what is there already is not sent again"
    else:
        text = "the Hub refuses it"
    # What the Hub says of a 401 is of no use: the same for a missing repository.
    reason = f" ({_one_line(said)})" if said and status != 401 else ""
    return f"{repo_id}: {text} [{status}]{reason}."


def _explain_network(error: BaseException, hub: str, timeout: float) -> str:
    causes = list(_causes(error))
    host = re.sub(r"^\w+://", "", hub)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"{host} is not found: there is no network, or HF_ENDPOINT is wrong"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"the certificate of {host} is not trusted ({_one_line(str(error))})"
    if isinstance(error, httpx.TimeoutException):
        return (
            f"{host} was silent for {timeout:.0f} seconds, several times. Push again later: what "
            "is there already is not sent again"
        )
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return f"HF_ENDPOINT={hub}: not an address, such as https://host"
    reason = _one_line(str(error)) or type(error).__name__
    return (
        f"{host} cannot be reached, or breaks off ({reason}). Look at the network, then push "
        "again: what is there already is not sent again"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(text: str, length: int = 300) -> str:
    """Without signatures of addresses, and not the page of a proxy."""
    text = re.sub(r"\?\S+", "", " ".join(text.split()))
    return text if len(text) <= length else text[:length] + "..."
