"""`doctor.html`: findings, classes, sizes and a contact sheet in one file that opens offline."""

import base64
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import datasets
import numpy as np

from finetune.data.samples import ReadSamples, reader_of
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.pictures.drawing import IGNORED, as_rgb, overlay
from finetune.pictures.reading import read_image
from finetune.programs.doctor.figures import Split
from finetune.programs.doctor.verdict import Expectations, Finding
from finetune.run.report import html_page, ticks

NUM_PICTURES = 36
"""Samples of the contact sheet."""
NUM_WITH_FINDINGS = 18
"""Of those, at most so many because something is wrong with them."""
MAX_LISTED = 200
"""Places of a finding that the page lists; doctor.json has them all."""
_OPEN = 12  # places that are shown without a click
_PICTURE = (240, 180)  # width and height that an image of the sheet is fitted into
_QUALITY = 80  # of JPEG

STYLE = """
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; font-weight: 600;
  color: #fff; background: #15803d; } .verdict.problems { background: #b91c1c; }
.finding { border-left: 4px solid #d97706; padding: .1rem 0 .1rem .9rem; margin: 1rem 0; }
.finding.problem { border-color: #dc2626; } .finding h3 { font-size: 1rem; margin: 0; }
.finding p { margin: .1rem 0; color: var(--faint); }
.finding ul { margin: .3rem 0; padding-left: 1.1rem; font-size: 13px; }
.finding li { overflow-wrap: anywhere; } .kind { font: 12px ui-monospace, monospace;
  color: var(--faint); } summary { cursor: pointer; font-size: 13px; color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; font-weight: 600; color: var(--faint); padding: .2rem .5rem; }
td { padding: .15rem .5rem; border-top: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { overflow-wrap: anywhere; max-width: 16rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .5em;
  border: 1px solid var(--line); vertical-align: -1px; }
.log { display: block; width: 110px; height: 8px; border-radius: 4px; background: var(--line); }
.log i { display: block; height: 100%; border-radius: 4px; background: var(--curve); }
.log i.second { background: var(--second); }
.wide { overflow-x: auto; } .facts { display: grid; gap: .3rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); font-size: 14px; }
.facts b { font-weight: 600; } svg.sizes { max-width: 560px; }
svg .image { fill: var(--curve); fill-opacity: .55; } svg .crop { fill: none; stroke: #dc2626;
  stroke-dasharray: 5 4; stroke-width: 1.4; }
.sheet { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
figure { margin: 0; } figure img { width: 100%; display: block; }
figcaption { font-size: 12px; color: var(--faint); overflow-wrap: anywhere; margin-top: .2rem; }
figcaption b { color: #dc2626; font-weight: 600; }
.legend { font-size: 13px; margin: 0 0 .8rem; } .legend > span { margin-right: 1rem;
  white-space: nowrap; }
"""


def draw(
    facts: Mapping[str, Any],
    expected: Expectations,
    splits: Sequence[Split],
    findings: Sequence[Finding],
    data: Sequence[datasets.Dataset],
) -> str:
    """The page, whole.

    Args:
        facts: What doctor.json holds.
        expected: Labels and crop.
        splits: What was read.
        findings: What is wrong with it.
        data: The splits' samples; those of the contact sheet are read again.
    """
    sheet = list(_pictures(expected.labels, splits, findings, data))
    parts = [
        f"<h1>{html.escape(_text(facts['name']))}</h1>",
        f'<p class="summary"><span class="verdict {facts["verdict"]}">{_verdict(facts)}</span> '
        f"{html.escape(summary(facts))}</p>",
        _understood(facts),
        "<h2>Findings</h2>",
        *[_finding(finding) for finding in facts["findings"]],
        "" if facts["findings"] else "<p>None: every file was read, and every rule holds.</p>",
        "<h2>Classes</h2>",
        _classes(facts, expected.labels),
        "<h2>Sizes and colours</h2>",
        _sizes(facts),
        _colors(facts),
        "<h2>Values in masks</h2>",
        _values(facts),
        f"<h2>Contact sheet</h2>{_legend(expected.labels)}",
        f'<div class="sheet">{"".join(sheet)}</div>',
    ]
    return html_page(f"doctor: {_text(facts['name'])}", parts, STYLE)


def summary(facts: Mapping[str, Any]) -> str:
    """What was examined, in a line."""
    splits = ", ".join(f"{name} {split['samples']:,}" for name, split in facts["splits"].items())
    return f"images with masks: {splits}; {len(facts['classes'])} classes"


def _verdict(facts: Mapping[str, Any]) -> str:
    if facts["verdict"] == "clean":
        return "clean"
    return f"{facts['problems']} problem{'s' if facts['problems'] > 1 else ''}"


def _text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _escaped(name: str) -> str:
    return html.escape(_text(name))


def _understood(facts: Mapping[str, Any]) -> str:
    lines = "".join(f"<li>{_escaped(line)}</li>" for line in facts["understood"])
    return f"<h2>How the folder was understood</h2><ul>{lines}</ul>" if lines else ""


# ---------------------------------------------------------------------------------------- findings


def _finding(finding: Mapping[str, Any]) -> str:
    places = [_place(place) for place in finding["places"][:MAX_LISTED]]
    shown = f"<ul>{''.join(places[:_OPEN])}</ul>"
    if rest := places[_OPEN:]:
        more = len(finding["places"]) - len(places)
        end = f"<p>and {more} more in doctor.json</p>" if more else ""
        shown += f"<details><summary>{len(finding['places']) - _OPEN} more</summary>"
        shown += f"<ul>{''.join(rest)}</ul>{end}</details>"
    return (
        f'<div class="finding {finding["severity"]}"><h3>{html.escape(finding["message"])} '
        f'<span class="kind">{finding["kind"]}</span></h3>'
        f"<p>{html.escape(finding['remedy'])}</p>{shown}</div>"
    )


def _place(place: Mapping[str, Any]) -> str:
    files = "<br>".join(_escaped(file) for file in place["files"])
    what = _escaped(place["what"])
    return f"<li>{files}{': ' if files and what else ''}{what}</li>"


# --------------------------------------------------------------------------------------- histogram


def _classes(facts: Mapping[str, Any], labels: Labels) -> str:
    """Pixels and images of every class as bars on a logarithmic scale."""
    names = list(facts["splits"])
    highest = {
        key: max((row[name][key] for row in facts["classes"] for name in names), default=1)
        for key in ("pixels", "images")
    }
    head = "".join(
        f'<th>{_escaped(name)}: pixels</th><th></th><th>images</th><th class="n"></th>'
        for name in names
    )
    total = {name: sum(row[name]["pixels"] for row in facts["classes"]) or 1 for name in names}
    lines = []
    for row, color in zip(facts["classes"], labels.colors, strict=True):
        cells = ""
        for name in names:
            pixels, images = row[name]["pixels"], row[name]["images"]
            share = f"{pixels / total[name]:.2%}" if pixels else "none"
            cells += f'<td>{_log_bar(pixels, highest["pixels"])}</td><td class="n">{share}</td>'
            cells += f"<td>{_log_bar(images, highest['images'], 'second')}</td>"
            cells += f'<td class="n">{images:,}</td>'
        weight = "-" if row["weight"] is None else f"{row['weight']:.2f}"
        lines.append(
            f'<tr><td class="name">{_swatch(color)}{_escaped(row["name"])}</td>{cells}'
            f'<td class="n">{weight}</td></tr>'
        )
    ignored = ", ".join(
        f"{_escaped(name)} {split['ignored_pixels'] / (split['pixels'] or 1):.2%}"
        for name, split in facts["splits"].items()
    )
    return (
        f'<p class="summary">Bars are logarithmic. Ignored pixels: {ignored}. Weight: '
        f"{html.escape(facts['weights'])}.</p>"
        f'<div class="wide"><table class="histogram"><tr><th>class</th>{head}'
        f'<th class="n">weight</th></tr>{"".join(lines)}</table></div>'
    )


def _log_bar(count: int, highest: int, css: str = "") -> str:
    width = 100 * math.log1p(count) / math.log1p(max(1, highest))
    return f'<span class="log"><i class="{css}" style="width:{width:.1f}%"></i></span>'


def _swatch(color: Sequence[int]) -> str:
    return f'<span class="swatch" style="background:rgb{tuple(color)}"></span>'


def _legend(labels: Labels) -> str:
    if labels.num_labels > 40:
        return ""
    entries = [*zip(labels.names, labels.colors, strict=True), ("ignored or unknown", IGNORED)]
    spans = "".join(f"<span>{_swatch(color)}{_escaped(name)}</span>" for name, color in entries)
    return f'<p class="legend">{spans}</p>'


# ------------------------------------------------------------------------------------------- sizes


def _sizes(facts: Mapping[str, Any]) -> str:
    """Width against height of the images, larger where there are many, with the crop drawn in."""
    found, crop = facts["sizes"], facts["sizes"]["crop"]
    if "most_common" not in found:
        return "<p>No image could be read.</p>"
    width, height, left, right, top, bottom = 560, 360, 56, 16, 16, 40
    high = max(found["largest"][0], crop[0] if crop else 0)
    wide = max(found["largest"][1], crop[1] if crop else 0)
    columns, rows = ticks(0, wide * 1.05), ticks(0, high * 1.05)

    def x(value: float) -> float:
        return left + value / columns[-1] * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - value / rows[-1] * (height - top - bottom)

    shapes = []
    for tick in rows:
        line = f'x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"'
        shapes.append(f'<line class="grid" {line}/>')
        place = f'x="{left - 6}" y="{y(tick) + 4:.1f}"'
        shapes.append(f'<text {place} text-anchor="end">{tick:.6g}</text>')
    for tick in columns:
        place = f'x="{x(tick):.1f}" y="{height - bottom + 16}"'
        shapes.append(f'<text {place} text-anchor="middle">{tick:.6g}</text>')
    shapes.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">width</text>')
    shapes.append(f'<text x="{left + 6}" y="{top + 4}">height</text>')
    most = max(count for *_, count in found["most_common"])
    for one_height, one_width, count in found["most_common"]:
        radius = 2.5 + 8 * math.sqrt(count / most) * (len(found["most_common"]) < 200)
        shapes.append(
            f'<circle class="image" cx="{x(one_width):.1f}" cy="{y(one_height):.1f}" '
            f'r="{radius:.1f}"><title>{one_width} x {one_height}: {count}</title></circle>'
        )
    if crop:
        shapes.append(
            f'<rect class="crop" x="{x(0):.1f}" y="{y(crop[0]):.1f}" '
            f'width="{x(crop[1]) - x(0):.1f}" height="{y(0) - y(crop[0]):.1f}"/>'
            f'<text x="{x(0) + 6:.1f}" y="{y(crop[0]) + 14:.1f}">crop {crop[1]} x {crop[0]}</text>'
        )
    lines = [
        (name, f"{found[name][1]:g} x {found[name][0]:g}")
        for name in ("smallest", "median", "largest")
    ]
    lines.append(("different sizes", f"{found['different']:,}"))
    return (
        f"{_facts(lines, 'Width x height, each taken by itself.')}"
        f'<svg class="sizes" viewBox="0 0 {width} {height}" role="img">{"".join(shapes)}</svg>'
    )


def _facts(lines: Sequence[tuple[str, str]], note: str = "") -> str:
    cells = "".join(
        f"<span>{_escaped(name)}: <b>{_escaped(text)}</b></span>" for name, text in lines
    )
    return f'<p class="summary">{note}</p><div class="facts">{cells}</div>'


def _colors(facts: Mapping[str, Any]) -> str:
    colors = facts["colors"]
    if colors["mean"] is None:
        return ""

    def shown(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.3f}" for value in values)

    lines = [
        ("data.image_mean of the training split", shown(colors["mean"])),
        ("data.image_std of the training split", shown(colors["std"])),
        ("mean in the recipe", shown(colors["recipe_mean"])),
        ("std in the recipe", shown(colors["recipe_std"])),
    ]
    note = "Of values in 0..1. With pretrained weights keep those that they were trained with."
    return _facts(lines, note)


def _values(facts: Mapping[str, Any]) -> str:
    masks = facts["masks"]
    stored = ", ".join(f"{count:,} {kind}" for kind, count in masks["stored"].items())
    rows = sorted(masks["values"], key=lambda row: -row["pixels"])[:MAX_LISTED]
    highest = rows[0]["pixels"] if rows else 1
    lines = "".join(
        f'<tr><td class="n">{row["value"]}</td><td class="name">'
        f"{'<b>no rule</b>' if row['meaning'] is None else _escaped(row['meaning'])}</td>"
        f'<td>{_log_bar(row["pixels"], highest)}</td><td class="n">{row["pixels"]:,}</td>'
        f'<td class="n">{row["images"]:,}</td></tr>'
        for row in rows
    )
    return (
        f'<p class="summary">{html.escape(stored or "No pictures: objects.")}</p>'
        f"<details {'open' if len(rows) <= 40 else ''}><summary>{len(rows)} values</summary>"
        f'<div class="wide"><table><tr><th class="n">value</th><th>meaning</th><th>pixels</th>'
        f'<th></th><th class="n">images</th></tr>{lines}</table></div></details>'
    )


# ----------------------------------------------------------------------------------- contact sheet


def chosen(
    splits: Sequence[Split], findings: Sequence[Finding]
) -> list[tuple[int, int, tuple[str, ...]]]:
    """Split, place and kinds of findings of the samples to show, whose images can be read.

    Some of each finding in turn, then others evenly spread over the splits.
    """
    where: dict[str, tuple[int, int]] = {}
    for s, split in enumerate(splits):
        for i, names in enumerate(zip(split.images, split.masks, strict=True)):
            if split.facts[i].size is not None:
                where.update((name, (s, i)) for name in names if name not in where)
    kinds: dict[tuple[int, int], dict[str, None]] = {}
    queues = [
        iter(dict.fromkeys(where[file] for file in finding.files if file in where))
        for finding in findings
    ]
    waiting = list(zip(findings, queues, strict=True))
    while waiting and len(kinds) < NUM_WITH_FINDINGS:
        for finding, queue in list(waiting):
            place = next(queue, None)
            if place is None:
                waiting.remove((finding, queue))
            elif len(kinds) < NUM_WITH_FINDINGS or place in kinds:
                kinds.setdefault(place, {})[finding.kind] = None
    others = [place for place in dict.fromkeys(where.values()) if place not in kinds]
    number = min(len(others), NUM_PICTURES - len(kinds))
    spread = [others[int(place)] for place in np.linspace(0, len(others) - 1, max(number, 0))]
    picked = [(s, i, tuple(names)) for (s, i), names in kinds.items()]
    return picked + [(s, i, ()) for s, i in dict.fromkeys(spread)]


def _pictures(
    labels: Labels,
    splits: Sequence[Split],
    findings: Sequence[Finding],
    data: Sequence[datasets.Dataset],
) -> Iterator[str]:
    readers = []
    for part in data:
        own = reader_of(part)
        lenient = replace(labels, ignores_unknown=True)
        readers.append(ReadSamples(lenient, own.form, own.pictures, own.num_channels))
    for s, i, kinds in chosen(splits, findings):
        row = data[s].with_format(None)[i]
        caption = f"{_escaped(splits[s].name)}: {_escaped(splits[s].ids[i])}"
        if kinds:
            caption += f" <b>{', '.join(kinds)}</b>"
        picture = _picture(readers[s], row["image"], row["mask"])
        yield f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _picture(reader: ReadSamples, image: str, mask: str) -> str:
    """Image and overlay side by side; grey instead of an overlay that cannot be had."""
    try:
        pixels = as_rgb(read_image(reader.pictures.open(image), reader.num_channels))
    except UserError:
        return "<p>the image cannot be read any more</p>"
    scale = min(1.0, *(limit / n for limit, n in zip(_PICTURE, pixels.shape[1::-1], strict=True)))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    try:
        ids = reader.read(image, mask)[1]
    except UserError:
        return _jpeg(np.hstack([small, np.full_like(small, 128)]), "its mask cannot be used")
    ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)
    return _jpeg(np.hstack([small, overlay(small, ids, reader.labels.colors)]), "image and overlay")


def _jpeg(pixels: np.ndarray, alt: str) -> str:
    written, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    assert written
    encoded = base64.b64encode(data.tobytes()).decode()
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{encoded}">'
