"""`finetune demo` in a process of its own, used with a browser and with Gradio's client."""

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
import requests
from browser import Page
from gradio_client import Client, handle_file
from PIL import Image
from tiny import save_tiny

from finetune.inference import Segmenter, segment

from .test_answers import claims, picture

pytestmark = pytest.mark.slow  # a browser and a running page

ROOT = Path(__file__).resolve().parents[3]
SIZE = (150, 200)  # of the example: height, width


class Server:
    """The command, started as a person would behind a company's proxy, which is not there."""

    def __init__(self, folder):
        self.folder = folder
        self.models = [save_tiny(folder / name, seed=i) for i, name in enumerate(("one", "two"))]
        self.segmenters = [Segmenter.load(path) for path in self.models]
        self.example = folder / "street.png"
        Image.fromarray(picture(*SIZE)).save(self.example)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        (folder / "tmp").mkdir()
        command = [sys.executable, "-m", "finetune.cli", "demo", *map(str, self.models)]
        command += ["--port", str(self.port), "--example", str(self.example)]
        proxy = "http://127.0.0.1:9"
        variables = {"TMPDIR": str(folder / "tmp"), "HTTP_PROXY": proxy, "http_proxy": proxy}
        self.errors = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        said = self.process.stdout.readline()
        assert said == f"Open {self.address}/ in a browser; Ctrl-C ends the demo.\n", self.said()

    def said(self):
        self.errors.seek(0)
        return self.errors.read()

    def megabytes(self):
        """What the process holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def found(self, path, number=0):
        return segment(self.segmenters[number], str(path))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.process.kill()
    running.process.wait()
    running.process.stdout.close()
    running.errors.close()


class Tab(Page):
    """The page, as wide as asked for."""

    def start(self, address, width, height):
        for domain in ("Network", "Runtime", "Accessibility"):
            self.call(f"{domain}.enable")
        mobile = width < 500
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.open(address)
        self.wait("!!document.querySelector('#examples button[aria-label]')")
        self.wait("!!document.querySelector('#viewer .status')")

    def answered(self):
        self.wait("document.querySelectorAll('#viewer canvas').length > 0")

    def pixels(self, number=0):
        """RGB of a canvas as it is painted, (H, W, 3)."""
        self.value("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        values = self.value(
            f"(() => {{ const canvas = document.querySelectorAll('#viewer canvas')[{number}];"
            "return [canvas.height, canvas.width, Array.from(canvas.getContext('2d')"
            ".getImageData(0, 0, canvas.width, canvas.height).data)] })()"
        )
        return np.array(values[2]).reshape(values[0], values[1], 4)[..., :3]

    def click(self, selector, number=0):
        self.value(f"document.querySelectorAll({selector!r})[{number}].click()")

    def key(self, key, code):
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            number = {"windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **number, **text)

    def nodes(self):
        """Role, name and whether it takes the focus, of what a screen reader sees."""
        for node in self.call("Accessibility.getFullAXTree")["nodes"]:
            if not node.get("ignored"):
                properties = {p["name"]: p["value"].get("value") for p in node["properties"]}
                name = node.get("name", {}).get("value", "").strip()
                yield node["role"]["value"], name, properties

    def requests(self):
        self.value("0")  # what has happened is heard of
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent]


def opened(browser, server, folder, width=1280, height=900):
    page = Tab(browser[0], folder)
    return page, (server.address, width, height)


def test_at_a_desk(browser, server, tmp_path):
    page, start = opened(browser, server, tmp_path)
    first, second = (server.found(server.example, i) for i in (0, 1))
    with page:
        page.start(*start)
        page.click("#examples button")
        page.answered()
        # What the models find: classes by area, and pictures that can be heard.
        for number, found in enumerate((first, second)):
            areas = sorted(found.areas().items(), key=lambda item: -item[1]["pixels"])
            areas = [(name, area) for name, area in areas if area["pixels"]]
            assert len(areas) > 1
            panel = f"document.querySelectorAll('#viewer .panel')[{number}]"
            rows = f"[...{panel}.querySelectorAll('tbody tr')].map((row) => row.innerText)"
            shown = [row.split("\t") for row in page.value(rows)]
            assert [row[0].strip() for row in shown] == [name for name, _ in areas]
            assert [int(row[2].replace(",", "")) for row in shown] == [
                area["pixels"] for _, area in areas
            ]
            heard = page.value(f"{panel}.querySelector('canvas').getAttribute('aria-label')")
            assert heard.startswith(f"{areas[0][0]} {areas[0][1]['share']:.0%}"[:-1])
        agreement = f"{100 * (first.mask == second.mask).mean():.1f} %"
        assert agreement in page.value("document.querySelector('.agreement').innerText")
        asked = [url for url in page.requests() if "queue/join" in url]

        # A class alone, by its name, in both pictures; then at full opacity its very colour.
        name = next(name for name, area in first.areas().items() if area["pixels"])
        index = first.names.index(name)
        buttons = "[...document.querySelectorAll('#viewer .class')]"
        page.value(f"{buttons}.find((one) => one.textContent === {name!r}).click()")
        pressed = "[...document.querySelectorAll('#viewer [aria-pressed=true]')]"
        assert page.value(f"{pressed}.map((one) => one.textContent)").count(name) >= 1
        page.value(
            "const slider = document.querySelector('#viewer input'); slider.value = 100;"
            "slider.dispatchEvent(new Event('input', {bubbles: true})); 0"
        )
        for number, found in enumerate((first, second)):
            painted = page.pixels(number)
            alone = found.mask == index
            assert (painted[alone] == found.colors[index]).all()
            others = painted[~alone]
            assert (others == others[:, :1]).all()  # grey
        # All again, and one by a click into the picture.
        page.click("#viewer .all")
        assert (page.pixels() == np.array(first.colors)[first.mask]).all()
        box = json.loads(
            page.value(
                "JSON.stringify(document.querySelector('#viewer canvas').getBoundingClientRect())"
            )
        )
        row, column = 100, 30
        x = box["x"] + (column + 0.5) / SIZE[1] * box["width"]
        y = box["y"] + (row + 0.5) / SIZE[0] * box["height"]
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            count = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **count)
        clicked = first.names[first.mask[row, column]]
        assert clicked in page.value(f"{pressed}.map((one) => one.textContent)")
        sure = round(100 * float(first.confidence[row, column]))
        assert (
            page.value("document.querySelector('.point').textContent")
            == f"{clicked}, {sure} % sure"
        )
        page.click("#viewer .all")

        # Confidence: the surer, the lighter.
        page.click("#viewer [data-view=confidence]")
        light = page.pixels() @ (0.3, 0.59, 0.11)
        order = np.argsort(first.confidence.astype(float).ravel())
        assert (np.diff(light.ravel()[order][::50]) > -3).all()
        assert np.ptp(light) > 20

        # Downloads.
        page.click("#viewer a.download")
        mask = np.asarray(Image.open(page.downloaded(".png")))
        assert (mask == first.mask).all()
        page.click("#viewer [data-view=classes]")
        page.pixels()
        page.click("#viewer .downloads button", 1)
        overlay = np.asarray(Image.open(page.downloaded(".png")).convert("RGB"))
        assert overlay.shape[0] > SIZE[0]  # the legend
        assert (overlay[: SIZE[0]] == np.array(second.colors)[second.mask]).all()

        # The model ran once, and nothing came from elsewhere.
        assert asked
        assert [url for url in page.requests() if "queue/join" in url] == asked
        hosts = {urlsplit(url).netloc for url in page.requests() if url.startswith("http")}
        assert hosts == {f"127.0.0.1:{server.port}"}


def test_on_a_phone(browser, server, tmp_path):
    page, start = opened(browser, server, tmp_path, 390, 844)
    chosen = tmp_path / "wide.jpg"
    Image.fromarray(picture(120, 400, seed=3)).save(chosen)
    with page:
        page.start(*start)
        narrow = "document.documentElement.scrollWidth <= innerWidth && innerWidth === 390"
        assert page.value(narrow)
        page.give("#picture input[type=file]", chosen)
        page.answered()
        assert page.value(narrow)
        # Nothing is cut, the panels stand below each other, and a thumb can hit what is pressed.
        parts = "[...document.querySelectorAll('#viewer SELECTOR')].map((one) => {"
        parts += (
            "const box = one.getBoundingClientRect(); return [box.left, box.right, box.height]})"
        )
        boxes = page.value(parts.replace("SELECTOR", ":is(button, a, canvas, td)"))
        assert len(boxes) > 8
        assert all(left >= 0 and right <= 390 and height > 0 for left, right, height in boxes)
        sides = [left for left, _, _ in page.value(parts.replace("SELECTOR", ".panel"))]
        assert len(set(sides)) == 1 < len(sides)
        pressed = page.value(parts.replace("SELECTOR", ":is(button, a)"))
        assert min(height for _, _, height in pressed) >= 40
        # The answer is in sight, and its words are.
        assert page.value(
            "document.querySelector('#viewer').getBoundingClientRect().top < 844 * 0.6"
        )
        said = page.value("document.querySelector('#viewer .status').textContent")
        assert said.startswith("wide.jpg: 400 \u00d7 120 pixels")


def test_by_keyboard_and_by_ear(browser, server, tmp_path):
    page, start = opened(browser, server, tmp_path)
    with page:
        page.start(*start)
        focused = (
            "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
        )

        def tab_to(wanted):
            for _ in range(40):
                page.key("Tab", 9)
                outline = "getComputedStyle(document.activeElement).outlineStyle"
                inside = page.value("document.activeElement !== document.body")
                assert not inside or page.value(outline) == "solid", page.value(focused)
                if page.value(focused).strip() == wanted:
                    return
            raise AssertionError(f"{wanted} cannot be reached")

        tab_to("Example: street")
        page.key("Enter", 13)
        page.answered()
        found = server.found(server.example)
        name = max(found.areas(), key=lambda one: found.areas()[one]["pixels"])
        tab_to(name)
        page.key("Enter", 13)
        heard = "document.querySelector('#viewer canvas').getAttribute('aria-label')"
        assert page.value(heard).startswith(f"{name} alone, ")
        page.key("Escape", 27)
        assert " alone, " not in page.value(heard)
        before = page.pixels()
        page.value("document.querySelector('#viewer input[type=range]').focus()")
        page.key("ArrowLeft", 37)
        assert (page.pixels() != before).any()
        tab_to("Download mask (class ids)")
        page.key("Enter", 13)
        assert (np.asarray(Image.open(page.downloaded(".png"))) == found.mask).all()

        nodes = list(page.nodes())
        focusable = [(role, name) for role, name, how in nodes if how.get("focusable")]
        assert len(focusable) > 15
        assert all(name for _, name in focusable), focusable
        roles = {role for role, _, _ in nodes}
        assert {
            "main",
            "heading",
            "table",
            "columnheader",
            "rowheader",
            "slider",
            "status",
        } <= roles
        pictures = {name for role, name, _ in nodes if role == "image" and "%" in name}
        assert len(pictures) == 2
        assert page.value("document.documentElement.lang") == "en"


def test_mistakes_are_said_on_the_page(browser, server, tmp_path):
    page, start = opened(browser, server, tmp_path)
    (tmp_path / "note.png").write_text("not a picture")
    (tmp_path / "bomb.png").write_bytes(claims(40_000, 40_000))
    (tmp_path / "fat.png").write_bytes(bytes(33 * 2**20))
    before = server.said()
    with page:
        page.start(*start)
        for name, words in (
            ("note.png", "note.png cannot be read as a still picture"),
            ("bomb.png", "bomb.png is too large: this page takes up to 25 million pixels"),
        ):
            page.give("#picture input[type=file]", tmp_path / name)
            page.wait(
                f"document.querySelector('#viewer .problem').textContent.startsWith({words!r})"
            )
            assert page.value("document.querySelector('#viewer .problem').offsetHeight > 0")
            page.click("#picture button[aria-label='Remove Image']")
            page.wait("!!document.querySelector('#picture input[type=file]')")
        page.give("#picture input[type=file]", tmp_path / "fat.png")
        page.wait("/size/.test(document.body.innerText) && /exceed/.test(document.body.innerText)")
        # And it goes on.
        page.click("#examples button")
        page.answered()
    assert server.said() == before


def test_what_clients_may_not(server, tmp_path):
    client = Client(server.address, verbose=False)
    (tmp_path / "note.txt").write_text("not a picture")
    told = client.predict(handle_file(tmp_path / "note.txt"), api_name="/segment")
    assert told == {
        "problem": "note.txt cannot be read as a still picture. JPEG, PNG, WebP and TIFF can."
    }
    kind = {"_type": "gradio.FileData"}
    for payload, words in (
        ({"path": str(server.example), "meta": kind}, "null"),  # was not uploaded, nor was
        ({"path": str(server.models[0] / "config.json"), "meta": kind}, "null"),
        ({"path": f"{server.address}/manifest.json", "meta": kind}, "addresses are not fetched"),
        ({"url": "data:image/png;base64,AAAA", "meta": kind}, "must be uploaded as a file"),
    ):
        place = f"{server.address}/gradio_api/call/segment"
        event = requests.post(place, json={"data": [payload]}, timeout=60).json()["event_id"]
        told = requests.get(f"{place}/{event}", timeout=60).text
        assert told.startswith("event: error"), told
        assert words in told
    # Around the queue, where any number would run at once.
    around = f"{server.address}/gradio_api/run/segment"
    assert not requests.post(around, json={"data": [None]}, timeout=60).ok


async def ask(session, address, path):
    """What a client does; the answer, and its masks as PNG."""
    form = aiohttp.FormData()
    form.add_field("files", path.read_bytes(), filename=path.name)
    async with session.post(f"{address}/gradio_api/upload", data=form) as said:
        (place,) = await said.json()
    meta = {"_type": "gradio.FileData"}
    chosen = {"data": [{"path": place, "orig_name": path.name, "meta": meta}]}
    async with session.post(f"{address}/gradio_api/call/segment", json=chosen) as said:
        event = (await said.json())["event_id"]
    async with session.get(f"{address}/gradio_api/call/segment/{event}") as said:
        *_, kind, data = (await said.text()).strip().split("\n")
    assert kind == "event: complete", (kind, data)
    (answer,) = json.loads(data.removeprefix("data: "))
    masks = []
    for result in answer["results"]:
        async with session.get(result["mask"]["url"]) as said:
            masks.append(await said.read())
    return answer, masks


async def ask_all(address, paths, times):
    """A client a path; each asks so many times at once, and all of them together."""
    async with contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(aiohttp.ClientSession()) for _ in paths]
        jobs = zip(sessions * times, paths * times, strict=True)
        return await asyncio.gather(*(ask(session, address, path) for session, path in jobs))


def test_fifty_requests_at_once(server, tmp_path):
    """Of ten clients; each gets its own masks, and the server keeps none."""
    paths = [tmp_path / f"{number}.png" for number in range(10)]
    for number, path in enumerate(paths):
        Image.fromarray(picture(300, 400, seed=number)).save(path)
    asyncio.run(ask_all(server.address, paths[:3], 1))  # memory that is taken once
    before = server.megabytes()
    answers = asyncio.run(ask_all(server.address, paths, 5))
    grown = server.megabytes() - before
    assert len(answers) == 50
    expected = {path.name: [server.found(path, i).mask for i in (0, 1)] for path in paths}
    for number, (answer, masks) in enumerate(answers):
        assert answer["name"] == paths[number % 10].name
        for data, mask in zip(masks, expected[answer["name"]], strict=True):
            assert (np.asarray(Image.open(io.BytesIO(data))) == mask).all()
    # Pictures, masks and confidences of 50 answers are 54 MB.
    assert grown < 40, f"{grown:.0f} MB"
    print(f"\n50 requests: from {before:.0f} MB to {before + grown:.0f} MB")


def test_ctrl_c_ends_it_and_leaves_nothing(server):
    """Last: nothing is left of the server."""
    assert kept(server.folder / "tmp")
    before = server.said()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 130
    assert server.said() == before
    assert not kept(server.folder / "tmp")


ENDLESS = """
import sys, threading
from finetune.programs.demo import blocks, demo as app

def answer(*_):
    app.KEPT_SECONDS = 0
    print("segmenting", flush=True)
    threading.Event().wait()

blocks.answer, app._SWEEP_SECONDS = answer, 0.1
app.run(sys.argv[1:2], host=None, port=int(sys.argv[2]))
"""


def kept(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def until(holds):
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("not within a minute")


@contextlib.contextmanager
def cut_off(port):
    """An upload that ends in the middle, when the server has the first part of it."""
    head = 'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = f"--x\r\n{head}".encode() + bytes(100_000)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body
        )
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_picture_in_work_is_not_waited_for(tmp_path, number):
    """Here one that never ends; a large one takes minutes. Old files go meanwhile."""
    (tmp_path / "tmp").mkdir()
    Image.fromarray(picture(40, 60)).save(tmp_path / "one.png")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", ENDLESS, str(save_tiny(tmp_path / "model")), str(port)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline().startswith("Open ")
            with cut_off(port):
                until(lambda: kept(tmp_path / "tmp"))
            client = Client(f"http://127.0.0.1:{port}", verbose=False)
            client.submit(handle_file(tmp_path / "one.png"), api_name="/segment")
            assert process.stdout.readline() == "segmenting\n"
            until(lambda: not kept(tmp_path / "tmp"))
            process.send_signal(number)
            assert process.wait(60) == 128 + number
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert not kept(tmp_path / "tmp")
