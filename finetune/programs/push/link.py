"""Connections to the Hub: time limits, the retries that the client lacks, and error messages."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import ssl
import sys
import threading
from _thread import interrupt_main
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from time import monotonic, sleep
from typing import Any, TypeVar

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from finetune.errors import UserError

T = TypeVar("T")

# The HTTP library that the client sits on: httpx, or httpx2 in newer versions.
httpx: Any = import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])

TRANSIENT = (408, 429, 500, 502, 503, 504)
WAITS = (1, 2, 4, 8, 8)  # seconds before each further try, where the Hub names none
GRACE = 2.0
"""Seconds that Ctrl-C leaves to the transfer in progress."""
NO_HUB = "{} does not answer like a Hub; check HF_ENDPOINT"
OFFLINE = "HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it"
# Requests that the client does not retry by itself.
SENT_ONCE = re.compile(
    r"/api/(repos/create|validate-yaml|(models|spaces)/[^/]+/[^/]+(/(revision|commit)/[^/]+)?)$"
)


class TryAgainError(HfHubHTTPError):
    """A transient answer to a request that the client does not retry."""


class Link:
    """Time limits on the client's connections, and the retries that the client lacks."""

    def __init__(self, timeout: float, limit: float):
        # Not the client's constant, which was read when it was imported.
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.timeout = timeout
        self.limit = limit
        self.end = monotonic() + limit
        self.reached = False  # whether the Hub has answered at all
        self.stopped = False  # by Ctrl-C

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Limits all requests of the client until the end of the block.

        Files go by LFS, not Xet: in one commit, over connections with these limits.
        """
        previous = _client_factory()  # its connections have no time limit

        def factory() -> Any:
            client = previous()
            client.event_hooks["request"].append(self._limited)
            client.event_hooks["response"].append(self._looked_at)
            return client

        handlers = list(logging.getLogger("huggingface_hub").handlers)
        set_client_factory(factory)
        # Each upload reads the constant; its variable was read when huggingface_hub was imported.
        without_xet, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
        for handler in handlers:
            handler.addFilter(_without_signatures)
        try:
            with self._interruptible():
                yield
        finally:
            for handler in handlers:
                handler.removeFilter(_without_signatures)
            set_client_factory(previous)
            constants.HF_HUB_DISABLE_XET = without_xet

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Lets Ctrl-C end the upload soon; the client would wait for its sending threads."""
        is_main = threading.current_thread() is threading.main_thread()
        previous: Any = signal.getsignal(signal.SIGINT)
        is_usual = previous is signal.default_int_handler
        is_the_commands = getattr(previous, "__module__", "") == "segformer_finetune"
        if not is_main or not (is_usual or is_the_commands):
            yield
            return
        again = threading.Timer(GRACE, _interrupt)  # the wait itself, for a silent connection
        again.daemon = True

        def stop(number: int, frame: Any) -> None:
            if not self.stopped:
                self.stopped = True
                again.start()
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            again.cancel()
            signal.signal(signal.SIGINT, previous)

    def retry(self, call: Callable[[], T]) -> T:
        """Calls it until it succeeds, fails permanently, or has been tried six times."""
        for wait in WAITS:
            try:
                return call()
            except TryAgainError as error:
                asked = _wait_of(error.response.headers)
                problem, seconds = str(error), wait if asked is None else asked
            except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
                # The client has retried already, or there is no network at all.
                if not SENT_ONCE.search(error.request.url.path) or not self.reached:
                    raise
                problem, seconds = str(error) or type(error).__name__, wait
            self.check(seconds)
            print(f"the Hub: {problem}; trying again in {seconds} s", file=sys.stderr)
            sleep(seconds)
        return call()

    def check(self, seconds: float = 0.0) -> None:
        """Ends an upload that was stopped, or that passes its limit by waiting `seconds`."""
        if self.stopped:
            raise KeyboardInterrupt
        if monotonic() + seconds > self.end:
            if seconds:
                raise UserError(f"the Hub asks to wait {seconds:.0f} seconds; push again later")
            raise UserError(
                f"the upload did not end within {self.limit:.0f} seconds; run the same command "
                "again to send the missing files"
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
        self.check(_wait_of(response.headers) or 0)
        if SENT_ONCE.search(path):
            raise TryAgainError(f"{status} at {path}", response=response)


def _client_factory() -> Callable[[], Any]:
    """The factory of the client's connections: its own, or the one that this process has set.

    The one private name of huggingface_hub that is used: the public interface sets a factory and
    does not return it. A process that has set its proxy or certificates needs them during a push
    and afterwards. Hooks on the client of `get_session` would not do instead: the client makes
    itself anew after a failed connection, and the new one would have no time limit.
    """
    from huggingface_hub.utils import _http

    return _http._GLOBAL_CLIENT_FACTORY


def _interrupt() -> None:
    """Ctrl-C from within: a real signal where there are any, since it ends a wait for a thread."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        interrupt_main()


class _Watched(httpx.SyncByteStream):
    """A request's body that stops at the time limit, however slowly the server reads it."""

    def __init__(self, stream: Any, link: Link):
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


def _without_signatures(record: logging.LogRecord) -> bool:
    """The client logs addresses when it retries, and the storage's contain signatures."""
    record.msg, record.args = re.sub(r"\?\S+", "", record.getMessage()), ()
    return True


def explain(error: BaseException, link: Link) -> str | None:
    """The message for the user; None if the error is a defect of ours."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # the client wraps errors of a transfer
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OfflineModeIsEnabled):
        return OFFLINE
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, link.endpoint)
    if isinstance(error, httpx.HTTPError):
        return _explain_network(error, link.endpoint, link.timeout)
    if isinstance(error, json.JSONDecodeError):
        return NO_HUB.format(link.endpoint)
    if isinstance(error, ValueError) and "README.md" in str(error):
        return f"the Hub rejects the card. {_one_line(str(error))}"
    if isinstance(error, ValueError) and "LFS batch" in str(error):
        return f"the Hub rejects the files. {_one_line(str(error))}"
    if isinstance(error, OSError):
        return f"cannot read {error.filename}: {error.strerror}"
    return None


def _explain_answer(error: HfHubHTTPError, hub: str) -> str:
    status, said = error.response.status_code, error.server_message or ""
    if error.response.request.method == "PUT" and status < 429:
        return f"the storage rejects a file ({_one_line(said)}). Push again."
    changed = "somebody else changed the repository in the meantime. Push again"
    words = {
        401: f"the Hub does not know this token. Create a token with write access at "
        f"{hub}/settings/tokens, then run `hf auth login`, or set HF_TOKEN",
        403: "the token may not write there. Check the owner's name, and the token's rights "
        f"at {hub}/settings/tokens",
        404: "there is no such repository for this token, or it was deleted. Check its name, "
        "and HF_ENDPOINT if it is set",
        409: changed,
        412: changed,
        429: "the Hub refuses more requests for now. Wait some minutes, then push again",
    }
    if status in (402, 413, 507) or re.search(r"quota|storage limit", said, re.IGNORECASE):
        text = "the Hub accepts no more: the account's storage is full, or a file is too large"
    elif status >= 500 or status == 408:
        text = "the Hub fails. Push again later: uploaded files are not sent again"
    else:
        text = words.get(status, "the Hub rejects the request")
    # The Hub's words for a 401 do not help: they are the same for a missing repository.
    reason = f" ({_one_line(said)})" if said and status != 401 else ""
    return f"{text} [{status}]{reason}."


def _explain_network(error: BaseException, hub: str, timeout: float) -> str:
    causes = list(_causes(error))
    host = re.sub(r"^\w+://", "", hub)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"{host} is not found: there is no network, or HF_ENDPOINT is wrong"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"the certificate of {host} is not trusted ({_one_line(str(error))})"
    if isinstance(error, httpx.TimeoutException):
        return (
            f"{host} was silent for {timeout:.0f} seconds, several times. Push again later: "
            "uploaded files are not sent again"
        )
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return f"HF_ENDPOINT={hub} is not an address; set one such as https://host"
    reason = _one_line(str(error)) or type(error).__name__
    return (
        f"{host} cannot be reached, or breaks off ({reason}). Check the network, then push "
        "again: uploaded files are not sent again"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(text: str, length: int = 300) -> str:
    """Short, and without the signatures in addresses; a proxy answers with a whole page."""
    text = re.sub(r"\?\S+", "", " ".join(text.split()))
    return text if len(text) <= length else text[:length] + "..."
