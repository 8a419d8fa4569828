"""`05_inside_segformer`, run with models of a few steps: what must hold of any model holds."""

import re

import pytest

from .execution import NOTEBOOKS, execute, outputs, text

SMALL = {
    **{"steps": 3, "side": 64, "size": 96, "pictures": 4},
    **{"variants": ["b0"], "sides": [32, 64]},
}


def numbers(line: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+\.?\d*(?:e-?\d+)?", line)]


@pytest.mark.slow
def test_what_the_figures_say_of_any_model(tmp_path):
    done = execute(NOTEBOOKS / "05_inside_segformer.ipynb", SMALL, tmp_path)
    seen = text(done)
    lines = {line.strip()[:28].strip(): line for line in seen.splitlines()}

    assert sum("image/png" in found.get("data", {}) for found in outputs(done)) == 7
    # 7 pixels, then 2 strides more at each stage: 4, 8 and 16; nearly half are the neighbour's too.
    for stage, width in enumerate((7, 15, 31, 63), 1):
        assert f"overlapping  stage {stage}: {width:2} pixels wide, {width // 2:2} of them" in seen
        assert f"separate     stage {stage}: {2 ** (stage + 1):2} pixels wide,  0 of them" in seen
    assert {"windows of 64 x 64", "whole, 96 x 96"} <= lines.keys()
    # Full attention grows by 16, and so does the reduced.
    assert re.findall(r"at twice the side: (\S+) times", seen) == ["16.0", "16.0"]
    assert "stage 1    16384    256       537     34360" in seen  # 2 blocks of 2 N M C, C = 32
    # Zeros tell positions apart, in either place; without them nothing does.
    for name in ("zeros in both, as trained", "zeros in Mix-FFN only"):
        assert min(numbers(lines[name])) > 1e-3
    assert max(numbers(lines["no zeros"])) < 1e-5
    # The published size of B0, and stock's logits.
    found = numbers(next(line for line in seen.splitlines() if line.startswith("B0 ")))
    assert found[:4] == [0, 3.75, 8.4, 4.1]
    assert found[4] < 1e-5
