"""Pushing while training goes on, in a process of its own that the training does not need.

Whatever happens to a push, at worst a line is printed: no method here raises anything.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import get_token

PATIENCE = 900.0
"""Seconds that the end of a training waits for its last push."""

# What a launcher tells the processes of a training, of which this one is none.
LAUNCHED = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
LOG = "hub.log"
COMMAND = [sys.executable, "-m", "finetune.programs.push"]


class BackgroundPush:
    """Keeps a repository on the Hub at a run's best model.

    One push at a time; of those that wait only the newest stays. What they say goes to hub.log in
    the run folder. Their processes end with this one, however it ends.

    Args:
        output: the run folder, which no other process writes to.
        repo: OWNER/NAME.
        private: whether the repository is private if it is made new.
        say: shows a line to the user.
    """

    def __init__(self, output: Path, repo: str, *, private: bool, say: Callable[[str], None]):
        self.output = output
        self.repo = repo
        self.say = say
        self._visibility = "--private" if private else "--no-private"
        self._flag = "" if private else " --public"  # of the verb, which people type
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: Path | None = None
        self._current: Path | None = None
        self._log_start = 0
        self._clean()  # of a run that was killed
        self._token = _token()
        if not self._token:
            say(
                f"warning: hub.repo={repo}, but there is no token of the Hub here: `hf auth "
                "login`, or set HF_TOKEN. Training goes on"
            )

    def newest(self, best: Path, step: int) -> None:
        """Takes a model folder as it is now: pushed at once, or after the push under way."""
        copy = self.output / f".pushing-{step:08d}"
        try:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(best, copy, copy_function=_link_or_copy)
        except OSError as error:  # shutil's own error is one too
            self.say(f"warning: step {step} is not pushed: {best} cannot be copied ({error})")
            return
        if self._waiting is not None:
            shutil.rmtree(self._waiting, ignore_errors=True)
        self._waiting = copy
        self.poll()

    def poll(self) -> None:
        """Looks after the push under way, and begins the one that waits; takes no time."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._ended("training goes on")
        if self._waiting is not None:
            self._current, self._waiting = self._waiting, None
            # Beside a training: no pictures of predictions, one thread, and not its GPU.
            quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            self._start([str(self._current), self.repo, self._visibility, "--quick"], quiet)

    def finish(self, stop: Callable[[], bool]) -> None:
        """Pushes the best model with its whole card, and waits for it, but not for ever.

        Args:
            stop: whether to leave at once.
        """
        self.close()
        best = self.output / "best"
        again = f"finetune push {shlex.quote(str(self.output))} {self.repo}{self._flag}"
        if not best.is_dir() or not self._start(
            [str(self.output), self.repo, self._visibility], {}
        ):
            return
        assert self._process is not None, "it was just started"
        self.say(f"pushing {best} to {self.repo} ({PATIENCE / 60:.0f} minutes at most) ...")
        end = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            if stop() or time.monotonic() > end:
                self.close()
                shutil.rmtree(self.output / ".best.push", ignore_errors=True)  # what it staged
                self.say(f"warning: the last push was given up; `{again}` makes it")
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
        if self._ended(f"`{again}` makes it"):
            self.say(f"pushed to {self.repo}")
        self.close()

    def close(self) -> None:
        """Ends the push under way and forgets the one that waits."""
        if self._process is not None:
            self._process.kill()
            self._forget()
        self._waiting = None
        self._clean()

    def _start(self, arguments: list[str], variables: dict[str, str]) -> bool:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHED)}
        source = str(Path(__file__).resolve().parents[2])  # a checkout need not be installed
        path = os.pathsep.join(filter(None, [source, inherited.get("PYTHONPATH")]))
        settings = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
        if self._token and "google.colab" in sys.modules:  # where it is the notebook's alone
            settings["HF_TOKEN"] = self._token
        try:
            with open(self.output / LOG, "ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [*COMMAND, *arguments],
                    stdin=subprocess.PIPE,  # whose end tells it that this process is no more
                    stdout=log,
                    stderr=log,
                    env={**inherited, **variables, **settings, "PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C at the terminal is for the training
                )
        except OSError as error:
            self.say(f"warning: no push can be started ({error})")
            return False
        return True

    def _ended(self, otherwise: str) -> bool:
        """Forgets a process that has ended; if it failed, says why, and `otherwise`."""
        assert self._process is not None, "asked for after a push"
        status = self._process.returncode
        self._forget()
        if status:
            log = self.output / LOG
            self.say(f"warning: not pushed ({self._reason(status)}); {otherwise}. See {log}")
        return not status

    def _forget(self) -> None:
        assert self._process is not None, "asked for after a push"
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process = None
        if self._current is not None:
            shutil.rmtree(self._current, ignore_errors=True)
            self._current = None

    def _reason(self, status: int) -> str:
        """The message of the process that has just failed."""
        try:
            with open(self.output / LOG, "rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (told or [line for line in lines if line.strip()] or [f"exit status {status}"])[-1]

    def _clean(self) -> None:
        """What killed pushes leave: copies of `best`, and what they were putting together."""
        for pattern in (".pushing-*", "..pushing-*"):
            for folder in self.output.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)


def _token() -> str | None:
    try:
        return get_token()
    except Exception:  # it may ask services, which fail in their own ways; a training goes on
        return None


def _link_or_copy(source: str, target: str) -> str:
    """Files of `best` are replaced, never written into: a second name keeps an old one."""
    try:
        os.link(source, target)
    except OSError:  # a file system without
        shutil.copyfile(source, target)
    return target
