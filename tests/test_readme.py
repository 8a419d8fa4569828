"""What the pages of the project tell a person to type, click and read exists."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from finetune.cli import app
from finetune.recipe import describe_keys

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob("*.md"))
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
COMMAND = typer.main.get_command(app)
KEYS = {row[0] for row in describe_keys()}


def commands():
    """Each line of a shell block, and each `finetune ...` in the text."""
    for name, text in TEXTS.items():
        blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += re.findall(r"`(finetune [^`]+)`", prose.replace("\n", " "))
        for line in lines:
            if "finetune" in line:
                yield name, line.strip()


COMMANDS = sorted(set(commands()))


def test_the_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= TEXTS.keys()
    assert len(COMMANDS) > 25


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_are_understood(page, line):
    words = shlex.split(line, comments=True)
    if "finetune.cli" in words:
        words = words[words.index("finetune.cli") :]
    elif not {"finetune/train.py", "finetune.train"}.isdisjoint(words):
        words = ["finetune", "train", *words[words.index("--recipe") + 1 :]]
    if words[0] == "pip" or len(words) == 1 or words[1] == "VERB":
        return
    verb = COMMAND.commands.get(words[1], COMMAND)
    assert verb is not COMMAND or words[1].startswith("-"), f"{page}: {line}"
    options = {name for p in verb.params for name in (*p.opts, *p.secondary_opts)}
    for word in words[1 if verb is COMMAND else 2 :]:
        key, is_override, _ = word.partition("=")
        if word.startswith("-"):
            assert key in options | {"-h", "--help"}, f"{page}: {line}"
        elif is_override:
            assert key in KEYS, f"{page}: {line}"


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    text = TEXTS[page]
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)]+)\)", text)
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif "://" not in link:
            assert (ROOT / link).exists(), link


def test_recipe_keys_named_in_the_text_exist():
    sections = {key.partition(".")[0] for key in KEYS if "." in key}
    sections -= {"model"}  # also the name of files
    named = re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)", TEXTS["README.md"])
    named = [key for key in named if not key.endswith((".txt", ".yaml", ".json", ".log"))]
    assert len(named) > 20
    assert not [key for key in named if key not in KEYS]


def test_the_citation_can_be_read():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    from finetune import __version__

    assert cited["version"] == __version__
    assert cited["license"] == "Apache-2.0"
    assert f"## {__version__}" in TEXTS["CHANGELOG.md"]
