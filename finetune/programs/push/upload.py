"""Uploads a folder to the Hugging Face Hub: one commit, with retries, within a time limit.

    upload_folder(Path("card"), "me/parrots", message="mIoU 41.2 at step 4000")

huggingface_hub does the work, by its public interface. It retries the transfer of files; the
requests that it sends once (creating the repository, checking the card, the commit) are retried
here. A commit whose answer was lost may exist: the repository is read before the commit is retried.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff
from huggingface_hub.utils.sha import git_hash

from finetune.errors import UserError
from finetune.programs.push.link import NO_HUB, OFFLINE, Link, explain
from finetune.programs.push.staging import code_files, files_of

# A new repository holds some of these. They are not somebody's work, or a push keeps them.
NOT_WORK = re.compile(r"\.git(attributes|ignore)|README\.md|LICEN[SC]E(\.\w+)?", re.IGNORECASE)
# Files of an earlier push that this one may lack: weights of another model, code, pictures.
# Exact names, because people keep a handler.py or adapters of their own beside a model.
STALE = {
    "model": re.compile(
        r"card/(classes|examples)\.png"
        r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
        r"|onnx/model\w*\.onnx(_data)?"
        rf"|{'|'.join(re.escape(path.name) for path in code_files())}"
    ),
    "space": re.compile(r"finetune/.*"),
}
PROOF = {
    "model": ("config.json", rb'"model_type": *"segformer"', "a SegFormer"),
    "space": ("app.py", rb"(?m)^ *(from|import) +finetune\b", "a demo of this package"),
}
"""A file, the text in it that marks a repository as one of ours, and the name of such a one."""


@dataclass(frozen=True)
class Uploaded:
    """The repository after an upload."""

    url: str
    commit: str
    private: bool
    """An older repository keeps its visibility."""


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    message: str,
    repo_type: str = "model",
    timeout: float = 60.0,
    limit: float = 4 * 3600.0,
) -> Uploaded:
    """Creates the repository if it does not exist, and uploads the folder in one commit.

    The token is HF_TOKEN, or the one that `hf auth login` saved.

    An unchanged folder makes no commit. After a failure only missing files are sent (whole files:
    the Hub's protocol cannot continue inside one). Hidden files are left out. Files of an earlier
    push that the folder no longer holds (weights, code, the card's pictures; in a Space the
    package) are removed; all other files stay.

    Args:
        folder: what to upload.
        repo_id: `owner/name`.
        private: visibility of a new repository; an older one keeps its own.
        message: of the commit.
        repo_type: "model" or "space" (of Gradio).
        timeout: seconds of silence after which a connection is closed and retried.
        limit: seconds for the whole upload.

    Raises:
        UserError: the upload failed; the message says why, and what to do. Nothing was committed.
    """
    files = files_of(folder)
    token = _own_token()
    for path in files.values():
        if path.stat().st_size < 1_000_000 and token.encode() in path.read_bytes():
            raise UserError(f"{path}: holds your token of the Hub; remove it")
    link = Link(timeout, limit)
    with link.open():
        try:
            return _Push(link, files, repo_id, repo_type, token).run(message, private)
        except Exception as error:
            words = explain(error, link)
            if words is None:
                raise
            # The token stands in headers, which some errors of the HTTP library quote.
            raise UserError(f"{repo_id}: {words}".replace(token, "***")) from None


def check_ready(repo_id: str) -> None:
    """Raises a UserError if there is no token, or the Hub is switched off; sends nothing."""
    _own_token()
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{repo_id}: {OFFLINE}")


@dataclass
class _Push:
    link: Link
    files: Mapping[str, Path]
    repo_id: str
    repo_type: str
    token: str

    def __post_init__(self) -> None:
        self.api = HfApi(self.link.endpoint, token=self.token, library_name="finetune")
        # They keep their hashes, and whether they were sent, over all retries.
        self.additions = [CommitOperationAdd(name, path) for name, path in self.files.items()]

    def run(self, message: str, private: bool) -> Uploaded:
        info = self._open(private)
        present = self._tree(info.sha)
        self._refuse_others_work(present, info.sha)
        old = STALE[self.repo_type]
        stale = [path for path in present if path not in self.files and old.fullmatch(path)]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*self.additions]
        operations += [CommitOperationDelete(path) for path in stale]
        tried = False

        def is_in(tree: Mapping[str, RepoFile]) -> bool:
            is_stored = all(_is_stored(one, tree.get(one.path_in_repo)) for one in self.additions)
            return is_stored and not any(path in tree for path in stale)

        def landed() -> str | None:
            """The head of the repository, if it holds the folder."""
            head = self._info().sha
            return head if is_in(self._tree(head)) else None

        def commit() -> str:
            nonlocal tried
            if tried and (found := landed()):
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
                # Another commit came first. It may be ours, and its answer was lost.
                if error.response.status_code in (409, 412) and (found := landed()):
                    return found
                raise

        oid = info.sha if is_in(present) else self.link.retry(commit)
        prefix = {"space": "spaces/"}.get(self.repo_type, "")
        return Uploaded(f"{self.link.endpoint}/{prefix}{self.repo_id}", oid, bool(info.private))

    def _open(self, private: bool) -> Any:
        """The repository's facts; it is created if it does not exist."""
        try:
            return self.link.retry(self._info)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
        create = partial(
            self.api.create_repo,
            self.repo_id,
            private=private,
            repo_type=self.repo_type,
            space_sdk="gradio" if self.repo_type == "space" else None,
            exist_ok=True,  # the answer to an earlier try may have been lost
        )
        self.link.retry(create)
        return self.link.retry(self._info)

    def _info(self) -> Any:
        try:
            return self.api.repo_info(self.repo_id, repo_type=self.repo_type)
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise UserError(NO_HUB.format(self.link.endpoint)) from error

    def _tree(self, revision: str | None) -> dict[str, RepoFile]:
        """The files of a commit by path; empty before the first commit."""
        if revision is None:
            return {}
        entries = self.api.list_repo_tree(
            self.repo_id, recursive=True, revision=revision, repo_type=self.repo_type
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _refuse_others_work(self, present: Mapping[str, RepoFile], head: str | None) -> None:
        """Raises a UserError unless the repository is empty or holds a SegFormer (or its demo)."""
        work = [path for path in present if not NOT_WORK.fullmatch(path)]
        proof, pattern, kind = PROOF[self.repo_type]
        if not work or (proof in present and re.search(pattern, self._download(proof, head))):
            return
        shown = ", ".join(work[:3]) + (", ..." if work[3:] else "")
        raise UserError(
            f"the repository exists and holds something else than {kind} ({shown}). Choose "
            "another name, or empty it first."
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


def _is_stored(addition: CommitOperationAdd, found: RepoFile | None) -> bool:
    """Whether a file of the repository has the bytes of one to send."""
    if found is None or found.size != addition.upload_info.size:
        return False
    if found.lfs is not None:
        return found.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return found.blob_id == git_hash(file.read())


def _own_token() -> str:
    """A token that can be sent. No message shows it, even a wrong one."""
    try:
        token = get_token()
    except Exception as error:  # it may ask services, which fail in their own ways
        raise UserError(f"the token of the Hub cannot be read: {error}") from error
    if not token:
        raise UserError(
            "there is no token of the Hub here; run `hf auth login`, or set HF_TOKEN to a token "
            "with write access"
        )
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise UserError(
            "the token of the Hub holds spaces or characters that no token has; correct HF_TOKEN, "
            "or run `hf auth login`"
        )
    return token
