"""A tab of headless Chromium, driven by its own protocol over a websocket, which aiohttp speaks."""

import asyncio
import itertools
import time

import aiohttp
from PIL import Image

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-port=0", "--enable-unsafe-swiftshader"),
)


class Page:
    """One tab of a browser."""

    def __init__(self, port, profile):
        self.port, self.downloads = port, profile / "downloads"
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
            pass  # events
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression):
        """Until it is true, at most a minute."""
        for _ in range(600):
            if found := self.value(expression):
                return found
            time.sleep(0.1)
        raise AssertionError(f"{expression} never; the page says {self.say()}")

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && !!document.getElementById('status')")

    def say(self):
        return self.value("document.getElementById('status').textContent")

    def choose(self, path):
        """Puts a file into the input; returns what the page says in the end."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#choose")["nodeId"]
        before = "document.getElementById('status')"
        self.value(f"{before}.textContent = 'asked'")
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
        self.wait(f"!/asked|Loading|Segmenting/.test({before}.textContent)")
        return self.say()

    def download(self):
        self.value("document.getElementById('download').click()")
        for _ in range(100):
            done = [p for p in self.downloads.iterdir() if p.suffix == ".png"]
            if done:
                file = done[0].rename(self.downloads.parent / "mask.png")
                return Image.open(file)
            time.sleep(0.1)
        raise AssertionError("nothing was downloaded")
