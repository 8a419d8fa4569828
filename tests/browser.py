"""Headless Chromium, driven by its own protocol over a websocket, which aiohttp speaks."""

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import time

import aiohttp
import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--enable-unsafe-swiftshader"),
)


def skip(reason):
    """Not in CI, which would be green without having looked."""
    if os.environ.get("FINETUNE_CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def running(profile):
    """A browser with its files in a folder; gives the port that `Page` wants."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        skip("needs Chromium, to open the page")
    errors = (profile / "stderr").open("w")
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}"], stdout=errors, stderr=errors
    )
    try:
        port = profile / "DevToolsActivePort"
        for _ in range(300):
            if port.is_file() and port.read_text().strip():
                break
            assert process.poll() is None, (profile / "stderr").read_text()[-1000:]
            time.sleep(0.1)
        yield int(port.read_text().split()[0])
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        errors.close()


class Page:
    """One tab; what it downloads goes to `downloads` in a folder, what happens to `events`."""

    def __init__(self, port, folder):
        self.port, self.downloads, self.events = port, folder / "downloads", []
        self.downloads.mkdir()
        self.loop, self.numbers = asyncio.new_event_loop(), itertools.count(1)

    def __enter__(self):
        self.loop.run_until_complete(self._connect())
        self.call("Page.enable")
        self.call("DOM.enable")
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        return self

    async def _connect(self):
        self.session = aiohttp.ClientSession()
        address = f"http://127.0.0.1:{self.port}/json/new?about:blank"
        async with self.session.put(address) as answer:
            url = (await answer.json())["webSocketDebuggerUrl"]
        self.socket = await self.session.ws_connect(url, max_msg_size=0)

    def __exit__(self, *_):
        self.loop.run_until_complete(self.session.close())
        self.loop.close()

    def call(self, method, **parameters):
        return self.loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method, parameters):
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while (answer := await self.socket.receive_json(timeout=60)).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, expression):
        """What it gives; of a promise, what that comes to."""
        how = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression):
        """Until it is true, at most a minute."""
        for _ in range(600):
            if found := self.value(expression):
                return found
            time.sleep(0.1)
        raise AssertionError(f"{expression} never; the page says {self.say()}")

    def say(self):
        """What a failed `wait` quotes."""
        return self.value("document.body.innerText")

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({address!r})")

    def give(self, selector, *paths):
        """Puts files into an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path) for path in paths], nodeId=node)

    def downloaded(self, suffix):
        """The file with this ending that has been downloaded, moved out of the way."""
        for _ in range(100):
            done = [path for path in self.downloads.iterdir() if path.suffix == suffix]
            if done:
                return done[0].rename(self.downloads.parent / done[0].name)
            time.sleep(0.1)
        raise AssertionError("nothing was downloaded")
