"""The panel of examples, overlays and legends: what is drawn where."""

import numpy as np
import pytest
from PIL import Image

from finetune.pictures import drawing
from finetune.pictures.drawing import (
    COLUMNS,
    GAP,
    IGNORED,
    WRONG,
    PanelRow,
    as_rgb,
    heat,
    overlay,
    panel,
    sheet,
    with_legend,
)

COLORS = [(10, 20, 30), (200, 100, 0), (0, 160, 90)]


def a_row(height=28, width=56, **changes):
    """A picture whose size divides the panel's, so that each pixel becomes one square."""
    generator = np.random.default_rng(0)
    row = {
        "id": "frankfurt_000001",
        "image": generator.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "truth": generator.choice([0, 1, 255], (height, width)),
        "prediction": generator.integers(0, 2, (height, width)),
        "mean_iou": 0.5,
    }
    return PanelRow(**{**row, **changes})


def cells_of(path, row):
    """The four pictures cut out of the panel, one pixel per square."""
    canvas = np.asarray(Image.open(path).convert("RGB"))
    scale = drawing.ROW_HEIGHT // row.truth.shape[0]
    assert row.truth.shape[1] * scale == drawing.MAX_WIDTH
    top = drawing.MARGIN + drawing.LINE
    cells = []
    for index in range(len(COLUMNS)):
        left = drawing.MARGIN + drawing.CAPTION_WIDTH + index * (drawing.MAX_WIDTH + GAP)
        cell = canvas[top : top + drawing.ROW_HEIGHT, left : left + drawing.MAX_WIDTH]
        small = cell[scale // 2 :: scale, scale // 2 :: scale]
        np.testing.assert_array_equal(cell, small.repeat(scale, 0).repeat(scale, 1))
        cells.append(small)
    return cells


def test_panel_shows_each_pixel_as_it_is(tmp_path):
    row = a_row()
    panel([row], ["sky", "road", "sea"], COLORS, 255, tmp_path / "panel.png")
    image, truth, prediction, error = cells_of(tmp_path / "panel.png", row)
    np.testing.assert_array_equal(image, row.image)
    for label in (0, 1):
        assert (truth[row.truth == label] == COLORS[label]).all()
        assert (prediction[row.prediction == label] == COLORS[label]).all()
    ignored = row.truth == 255
    wrong = (row.prediction != row.truth) & ~ignored
    assert (truth[ignored] == IGNORED).all()
    np.testing.assert_array_equal((error == WRONG).all(-1), wrong)
    np.testing.assert_array_equal((error == IGNORED).all(-1) & ~wrong, ignored)
    right = error[~ignored & ~wrong]
    assert (right == right[:, :1]).all()  # grey
    assert right.max() < 170  # dimmed
    assert wrong.any()
    assert ignored.any()
    assert [p.name for p in tmp_path.iterdir()] == ["panel.png"]


def test_panel_takes_odd_sizes_and_names_only_what_occurs(tmp_path):
    rows = [
        a_row(300, 100, id="a/very/long/path/to/a/picture/with/a/name_000001_leftImg8bit.png"),
        a_row(7, 900, mean_iou=float("nan")),
        a_row(1, 1, truth=np.uint16([[65535]]), prediction=np.uint8([[2]])),
    ]
    panel(rows, ["sky", "road", "sea"], COLORS, 65535, tmp_path / "panel.png")
    assert Image.open(tmp_path / "panel.png").width < 4 * (drawing.MAX_WIDTH + GAP) + 300
    legend = dict(drawing._legend([rows[2]], ["sky", "road", "sea"], COLORS, 65535))
    assert legend == {"sea": COLORS[2], "ignored": IGNORED, "wrong": WRONG}


@pytest.mark.parametrize(("channels", "dtype"), [(1, "u1"), (2, "u2"), (4, "u1"), (6, "u2")])
def test_images_of_other_channels_are_shown(channels, dtype, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (30, 40, channels)).astype(dtype)
    shown = as_rgb(values)
    assert shown.shape == (30, 40, 3)
    first = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]
    if dtype == "u1":
        assert np.array_equal(shown, first)
    else:  # 255 of 65535 would be black
        assert np.ptp(shown) == 255
        assert np.corrcoef(shown.ravel(), first.ravel())[0, 1] > 0.99
    truth = np.zeros((30, 40), np.uint8)
    panel([PanelRow("x", values, truth, truth, 1.0)], ["a"], [(1, 2, 3)], 255, tmp_path / "p.png")
    assert (tmp_path / "p.png").is_file()


def test_an_overlay_is_two_fifths_image_and_three_fifths_class():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    ids = np.random.default_rng(1).integers(0, 4, (20, 30))  # 3 is no class
    palette = np.array([*COLORS, IGNORED])
    expected = 0.4 * image + 0.6 * palette[ids]
    np.testing.assert_allclose(overlay(image, ids, COLORS), expected, atol=0.51)


def test_a_legend_stands_below_the_picture():
    picture = np.full((30, 300, 3), 7, np.uint8)
    entries = [(f"class {i}", (10 * i, 200, 0)) for i in range(9)]
    canvas = np.asarray(with_legend(picture, entries))
    assert canvas.shape[1] == 300
    np.testing.assert_array_equal(canvas[:30], picture)
    below = {tuple(pixel) for pixel in canvas[30:].reshape(-1, 3)}
    assert {color for _, color in entries} <= below
    narrow = np.asarray(with_legend(picture[:, :20], entries[:1]))
    assert narrow.shape[1] > 40
    np.testing.assert_array_equal(narrow[:30, :20], picture[:, :20])


def test_heat_runs_from_dark_to_yellow():
    values = np.linspace(0, 4, 9).reshape(3, 3)
    shown = heat(values).astype(int)
    assert shown.shape == (3, 3, 3)
    assert shown[2, 2].tolist() == [253, 231, 37]  # viridis' last colour
    assert (np.diff(shown.reshape(9, 3) @ [0.299, 0.587, 0.114]) > 0).all()
    np.testing.assert_array_equal(heat(values, largest=8), heat(values / 2, largest=4))
    np.testing.assert_array_equal(heat(values, largest=2)[2], heat(values)[[2, 2, 2], [2, 2, 2]])
    assert len(np.unique(heat(np.zeros((2, 2))).reshape(4, 3), axis=0)) == 1


def test_a_sheet_shows_cells_as_squares():
    rng = np.random.default_rng(0)
    small, wide, large = (
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((4, 4), (2, 4), (160, 160))
    )
    canvas = np.asarray(
        sheet([[small, wide], [large, small]], ["a", "b\nc"], ["one", "two"], side=80)
    )
    for picture in (small.repeat(20, 0).repeat(20, 1), wide.repeat(20, 0).repeat(20, 1)):
        height, width = picture.shape[:2]
        found = [
            (y, x)
            for y, x in np.argwhere((canvas == picture[0, 0]).all(2))
            if np.array_equal(canvas[y : y + height, x : x + width], picture)
        ]
        assert len(found) == (2 if height == width else 1)
    halved = large.reshape(80, 2, 80, 2, 3).mean((1, 3))
    assert any(
        np.abs(canvas[y : y + 80, x : x + 80] - halved).max() <= 1
        for y, x in np.argwhere((np.abs(canvas - halved[0, 0]) <= 1).all(2))
        if canvas[y : y + 80, x : x + 80].shape == halved.shape
    )
