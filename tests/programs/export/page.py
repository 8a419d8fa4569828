"""The page of --web in a tab of a browser."""

import browser
from PIL import Image


class Page(browser.Page):
    def open(self, address):
        super().open(address)
        self.wait("!!document.getElementById('status')")

    def say(self):
        return self.value("document.getElementById('status').textContent")

    def choose(self, path):
        """Puts a file into the input; returns what the page says in the end."""
        before = "document.getElementById('status')"
        self.value(f"{before}.textContent = 'asked'")
        self.give("#choose", path)
        self.wait(f"!/asked|Loading|Segmenting/.test({before}.textContent)")
        return self.say()

    def download(self):
        self.value("document.getElementById('download').click()")
        return Image.open(self.downloaded(".png"))
