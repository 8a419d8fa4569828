"""Pushes to the Hub during training, in a separate process.

A failed push only prints a line: no method here raises an exception.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import get_token

PATIENCE = 900.0
"""Seconds to wait for the last push at the end of a training."""

# Variables of a launcher for the processes of a training. A push is not one of them.
LAUNCHED = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
LOG = "hub.log"


class BackgroundPush:
    """Pushes a run's best model to a repository on the Hub.

    One push runs at a time, and only the newest model waits. The output of pushes goes to hub.log
    in the run folder. A push ends with this process, even if this process is killed.

    Args:
        output: the run folder; no other process writes there.
        repo: OWNER/NAME.
        command: the program that pushes, to which folder, repository and options are added.
        private: whether a new repository is private.
        say: shows a line to the user.
    """

    def __init__(
        self,
        output: Path,
        repo: str,
        *,
        command: Sequence[str],
        private: bool,
        say: Callable[[str], None],
    ):
        self.output = output
        self.repo = repo
        self.command = command
        self.say = say
        self._options = [repo] if private else [repo, "--public"]
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: Path | None = None
        self._current: Path | None = None
        self._log_start = 0
        self._clean()  # after a run that was killed
        try:
            self._token = get_token()
        except Exception:  # it may ask services, which raise anything; the training goes on
            self._token = None
        if not self._token:
            say(
                f"warning: nothing is pushed to hub.repo={repo}, because there is no token of the "
                "Hub here. Run `hf auth login`, or set HF_TOKEN. Training goes on"
            )

    def newest(self, best: Path, step: int) -> None:
        """Copies a model folder, and pushes it now or after the running push."""
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
        """Checks the running push and starts a waiting one; returns at once."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._ended("training goes on")
        if self._waiting is not None:
            self._current, self._waiting = self._waiting, None
            # Spare the training: no pictures of predictions, one thread, no GPU.
            quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            self._start([str(self._current), *self._options, "--quick"], quiet)

    def finish(self, stop: Callable[[], bool]) -> None:
        """Pushes the best model with its complete card, and waits up to `PATIENCE` seconds.

        Args:
            stop: whether to leave at once.
        """
        self.close()
        best = self.output / "best"
        arguments = [str(self.output), *self._options]
        again = shlex.join(["finetune", "push", *arguments])
        if not best.is_dir() or not self._start(arguments, {}):
            return
        assert self._process is not None, "it was just started"
        self.say(f"pushing {best} to {self.repo} ({PATIENCE / 60:.0f} minutes at most) ...")
        end = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            if stop() or time.monotonic() > end:
                self.close()
                shutil.rmtree(self.output / ".best.push", ignore_errors=True)  # its staging folder
                self.say(f"warning: the last push was given up; push later with `{again}`")
                return
            time.sleep(0.1)
        if self._ended(f"push later with `{again}`"):
            self.say(f"pushed to {self.repo}")
        self.close()

    def close(self) -> None:
        """Ends the running push and drops the waiting one."""
        if self._process is not None:
            self._process.kill()
            self._forget()
        self._waiting = None
        self._clean()

    def _start(self, arguments: list[str], variables: dict[str, str]) -> bool:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHED)}
        source = str(Path(__file__).resolve().parents[2])  # a checkout may not be installed
        path = os.pathsep.join(filter(None, [source, inherited.get("PYTHONPATH")]))
        settings = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
        if self._token and "google.colab" in sys.modules:  # there only the notebook has the token
            settings["HF_TOKEN"] = self._token
        try:
            with open(self.output / LOG, "ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [*self.command, *arguments],
                    stdin=subprocess.PIPE,  # its end tells the push that this process has ended
                    stdout=log,
                    stderr=log,
                    env={**inherited, **variables, **settings, "PYTHONPATH": path},
                    start_new_session=True,  # Ctrl-C at the terminal stops the training only
                )
        except OSError as error:
            self.say(f"warning: the push cannot be started ({error})")
            return False
        return True

    def _ended(self, otherwise: str) -> bool:
        """Drops a process that has ended; if it failed, shows the reason and `otherwise`."""
        assert self._process is not None, "asked for after a push"
        status = self._process.returncode
        self._forget()
        if status:
            log = self.output / LOG
            self.say(f"warning: the push failed ({self._reason(status)}); {otherwise}. See {log}")
        return not status

    def _forget(self) -> None:
        assert self._process is not None, "asked for after a push"
        self._process.communicate()  # closes its input, and waits for its end
        self._process = None
        if self._current is not None:
            shutil.rmtree(self._current, ignore_errors=True)
            self._current = None

    def _reason(self, status: int) -> str:
        """The error message of the failed process."""
        try:
            with open(self.output / LOG, "rb") as log:
                log.seek(self._log_start)
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (told or [line for line in lines if line.strip()] or [f"exit status {status}"])[-1]

    def _clean(self) -> None:
        """Removes the rests of killed pushes: copies of `best` and staging folders."""
        for folder in self.output.glob(".*pushing-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> str:
    """Links a file of `best`; these files are replaced whole, so a link keeps the old content."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
    return target
