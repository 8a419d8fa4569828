"""The rules of the house that can be checked: who imports whom, and what a file may be called.

The sources are read with `ast` and never imported, so that imports inside functions count too.
"""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "finetune"

# Imports go down to a lower layer; the modules of layers 0 and 1 may also import their equals.
# "" is finetune/__init__.py; FOLDERS are of one layer with all that is in them.
LAYERS = {
    0: [
        *["", "segformer", "errors", "recipe", "parallel", "losses", "metrics", "optim", "augment"],
        *["data.classes", "data.faults", "data.labels", "data.presets", "data.shapes"],
        *["data.threads", "data.tiffs"],
    ],
    1: [
        *["checkpoint", "tracking", "inference", "drawing", "locks", "report", "publish"],
        *["timing", "weights", "background"],
        *["data.arrays", "data.cache", "data.files", "data.masks"],
        *["data.samples", "data.folders", "data.layouts", "data.coco"],
        *["data.splits", "data.inspection", "data.duplicates", "data.channels"],
        *["data.recognise", "data.recognise.annotated", "data.recognise.glances"],
        *["data.recognise.layout", "data.recognise.official", "data.recognise.pairs"],
        "data.recognise.tables",
        *["data.tables", "data.shards", "data.stream", "data.hub"],
    ],
    2: ["data", "data.loader", "data.sources", "run_folder"],
    3: ["trainers", "data.guess"],
    4: [
        *["train", "cli", "evaluation", "benchmark", "init", "pack", "doctor", "predict"],
        *["convert", "export", "demo", "push"],
    ],
}
FOLDERS = (
    *("segformer", "weights", "inference", "publish", "trainers"),
    *("benchmark", "cli", "doctor", "predict", "export", "demo", "push"),
)
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
PROGRAMS = max(LAYERS)
# Programs that run other programs.
STARTERS = ("cli", "benchmark.training", "benchmark.predicting", "push")


def name_of(path: Path) -> str:
    """`data.labels` for finetune/data/labels.py, `data` for finetune/data/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def entry_of(module: str) -> str:
    folder = module.split(".")[0]
    return folder if folder in FOLDERS else module


def imports(module: str, *, lazy: bool = True) -> set[str]:
    """The modules that `module` imports, in full; with lazy=False those of its top level only."""
    tree = ast.parse(SOURCES[module].read_text())
    parents = SOURCES[module].relative_to(PACKAGE.parent).parent.parts
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else ()
            source = ".".join([*base, *filter(None, [node.module])])
            # `from finetune.data import folders` imports a module, and not data itself.
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {n if n.removeprefix("finetune.") in SOURCES else source for n in names}
    return found


def ours(names: set[str]) -> set[str]:
    return {n.removeprefix("finetune").strip(".") for n in names if n.split(".")[0] == "finetune"}


def test_the_sources_are_found_and_read():
    assert {"", "augment", "data", "data.labels", "segformer.modeling"} <= SOURCES.keys()
    assert imports("segformer.modeling") >= {"torch", "finetune.segformer.functional"}
    assert ours(imports("")) == {"segformer"}
    assert sum(len(ours(imports(module))) for module in SOURCES) > len(SOURCES) / 2


def test_every_module_has_one_layer():
    assert len(LAYER_OF) == sum(map(len, LAYERS.values()))
    unknown = [module for module in SOURCES if entry_of(module) not in LAYER_OF]
    assert not unknown, "enter these in the table of layers"


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module):
    layer = LAYER_OF[entry_of(module)]
    for other in ours(imports(module)):
        below = LAYER_OF[entry_of(other)] < layer
        equals = LAYER_OF[entry_of(other)] == layer and layer < 2
        same_folder = entry_of(other) == entry_of(module)
        starts_it = {module, entry_of(module)} & {*STARTERS} and LAYER_OF[
            entry_of(other)
        ] == PROGRAMS
        assert below or equals or same_folder or starts_it, f"{module} imports {other}"


def test_the_command_line_imports_programs_lazily():
    modules = [module for module in SOURCES if entry_of(module) == "cli"]
    assert len(modules) > 4
    for module in modules:
        eager = {entry_of(other) for other in ours(imports(module, lazy=False))} - {"cli"}
        assert not [other for other in eager if LAYER_OF[other] == PROGRAMS], module


def test_the_model_travels_alone():
    modules = [module for module in SOURCES if entry_of(module) == "segformer"]
    assert len(modules) > 3
    for module in modules:
        names = imports(module)
        assert {entry_of(other) for other in ours(names)} <= {"segformer"}, module
        roots = {name.split(".")[0] for name in names} - sys.stdlib_module_names
        assert roots <= {"torch", "transformers", "triton", "finetune"}, module


def test_services_and_leaves_see_no_recipe():
    for module in SOURCES:
        if LAYER_OF[entry_of(module)] < 2:
            assert "recipe" not in ours(imports(module)), module


def test_importing_a_source_of_data_imports_no_other():
    assert imports("data") == set()


def test_some_dependencies_have_one_place_or_none():
    roots = {m: {name.split(".")[0] for name in imports(m)} for m in SOURCES}
    assert [m for m in roots if "albumentations" in roots[m]] == ["augment", "benchmark.pictures"]
    # No torchvision is built for every torch, and with the wrong one transformers fails to import.
    assert not [m for m in roots if roots[m] & {"torchvision", "timm"}]


def test_no_module_shadows_another_or_has_a_name_that_says_nothing():
    # `accelerate launch finetune/train.py` puts finetune/ itself first on the path.
    names = {module.split(".")[0] for module in SOURCES} - {""}
    taken = sys.stdlib_module_names | packages_distributions().keys()
    assert {"logging", "datasets", "evaluate"} <= taken
    assert not names & taken
    assert not [
        *PACKAGE.parent.glob("finetune/**/utils.py"),
        *PACKAGE.parent.glob("tests/**/utils.py"),
    ]
