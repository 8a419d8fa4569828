"""The rules of the house that can be checked: who imports whom, and what a file may be called.

The sources are read with `ast` and never imported, so that imports inside functions count too, and
those that name a module in text: `import_module("finetune.train")`, `python -m finetune.train`.
"""

import ast
import functools
import itertools
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "finetune"
BENCHMARKS = TESTS.parent / "benchmarks"  # in a checkout only

# From the ground up. A room may import what stands in floors below its own, and on its own floor
# whatever leads to no circle. "" is finetune/__init__.py.
FLOORS = [
    ["", "segformer", "labels", "pictures", "disk", "errors", "machine"],
    ["recipe", "losses", "metrics", "optim", "augment"],
    ["data", "weights", "discover"],
    ["inference", "publish", "run"],
    ["trainers"],
    ["train", "programs"],
    ["benchmarks"],
    ["cli"],
]
# Where the tests of a module or folder are, if not in tests/<its path>/test_<its name>.py. What a
# folder's entry says goes for all of its modules that have neither an entry nor such a file.
TESTS_OF = {
    "benchmarks": "programs/test_benchmark.py",
    "cli": "test_cli.py",
    "data.annotations.coco": "data/sources/test_coco.py",
    "data.columns": "data/sources/test_hub.py",
    "data.annotations.cvat": "data/sources/test_cvat.py",
    "data.annotations.datumaro": "data/sources/test_datumaro.py",
    "data.faults": "labels/test_rules.py",
    "data.slots": "data/test_cache.py",
    "data.annotations.label_studio": "data/sources/test_label_studio.py",
    "data.annotations.labelme": "data/sources/test_labelme.py",
    "data.masks": "data/sources/test_folders.py",
    "data.named_files": "data/sources/test_coco.py",
    "data.order": "data/test_loader.py",
    "data.samples": "data/sources/test_folders.py",
    "data.shards": "data/test_stream.py",
    "data.sources.opening": "data/test_loader.py",
    "data.annotations.supervisely": "data/sources/test_supervisely.py",
    "data.threads": "programs/test_pack.py",
    "data.writers": "data/writers/test_forms.py",
    "data.annotations.via": "data/sources/test_via.py",
    "discover": "discover/test_recognise.py",
    "discover.channels": "pictures/test_channels.py",
    "discover.values.mask_values": "discover/labels/test_value_labels.py",
    "errors": "test_cli.py",
    "inference": "inference/test_segment.py",
    "inference.large": "programs/predict/test_geotiff.py",
    "inference.preprocessing": "inference/test_scores.py",
    "labels": "labels/test_translation.py",
    "machine": "run/test_processes.py",
    "pictures.arrays": "inference/test_segment.py",
    "pictures.encoding": "programs/predict/test_predict.py",
    "pictures.opening": "inference/test_segment.py",
    "pictures.resizing": "inference/test_scores.py",
    "pictures.references": "pictures/test_reading.py",
    "pictures.tiffs": "pictures/test_reading.py",
    "programs.benchmark": "programs/test_benchmark.py",
    "programs.demo": "programs/demo/test_mistakes.py",
    "programs.doctor": "programs/doctor/test_doctor.py",
    "programs.doctor.figures": "programs/doctor/test_counts.py",
    "programs.evaluate": "test_cli.py",
    "programs.export": "programs/export/test_export.py",
    "programs.export.comparison": "programs/export/test_table.py",
    "programs.export.quantise": "programs/export/test_table.py",
    "programs.export.web": "programs/export/test_page.py",
    "programs.predict": "programs/predict/test_predict.py",
    "programs.push": "programs/push/test_push.py",
    "programs.push.evidence": "programs/push/test_card.py",
    "programs.push.link": "programs/push/test_upload.py",
    "programs.review": "programs/review/test_review.py",
    "publish": "publish/test_folder.py",
    "publish.facts": "programs/push/test_card.py",
    "recipe": "recipe/test_recipe.py",
    "run.environment": "run/test_log.py",
    "run.folder": "test_train.py",
    "run.pages": "run/test_report.py",
    "run.screen": "run/test_log.py",
    "run.signals": "run/test_processes.py",
    "run.states": "test_train.py",
    "segformer": "segformer/test_modeling.py",
    "segformer.bands": "segformer/test_functional.py",
    "trainers": "test_train.py",
    "weights": "weights/test_reading.py",
}
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def name_of(path: Path) -> str:
    """`data.cache` for finetune/data/cache.py, `data` for finetune/data/__init__.py.

    The modules beside the package keep their full name: `benchmarks.memory`.
    """
    root = PACKAGE if path.is_relative_to(PACKAGE) else BENCHMARKS.parent
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = [*PACKAGE.rglob("*.py"), *BENCHMARKS.rglob("*.py")]
SOURCES = {name_of(path): path for path in sorted(FILES)}


def room_of(module: str) -> str:
    return module.split(".")[0]


def program_of(module: str) -> str:
    """`programs.doctor` for each file of that folder."""
    return ".".join(module.split(".")[:2])


def imports(module: str, *, lazy: bool = True) -> set[str]:
    """The modules that `module` imports, in full; with lazy=False those of its top level only."""
    return imported_by(SOURCES[module], PACKAGE.parent, lazy=lazy)


def imported_by(path: Path, root: Path, *, lazy: bool = True) -> set[str]:
    tree = ast.parse(path.read_text())
    parents = path.relative_to(root).parent.parts
    found = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else ()
            source = ".".join([*base, *filter(None, [node.module])])
            # `from finetune.run import checkpoint` imports a module, and not the room itself.
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {n if n.removeprefix("finetune.") in SOURCES else source for n in names}
        elif lazy:
            found |= named_in(node)
    return found


def named_in(node: ast.AST) -> set[str]:
    """The modules that a call or a command names in text: `import_module("x")`, `-m x`."""
    texts: list[ast.expr] = []
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ("import_module", "__import__", "run_module"):
            named = [word.value for word in node.keywords if word.arg in ("name", "mod_name")]
            texts = [*node.args[:1], *named]
    words = getattr(node, "elts", getattr(node, "args", None))
    for option, text in itertools.pairwise(words if isinstance(words, list) else ()):
        if isinstance(option, ast.Constant) and option.value == "-m":
            texts.append(text)
            # `python -m` runs a package's __main__, and imports the package for it.
            if isinstance(text, ast.Constant):
                texts.append(ast.Constant(f"{text.value}.__main__"))
    return {name for text in texts for name in named_by(text)}


def named_by(text: ast.expr) -> list[str]:
    """The module; all modules whose names begin as f"benchmarks.{name}" does."""
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return [text.value]
    if isinstance(text, ast.JoinedStr) and isinstance(text.values[0], ast.Constant):
        start = text.values[0].value
        full = [m if room_of(m) == "benchmarks" else f"finetune.{m}".strip(".") for m in SOURCES]
        return [name for name in full if name.startswith(start)]
    return []


def ours(names: set[str]) -> set[str]:
    found = {n.removeprefix("finetune").strip(".") for n in names if room_of(n) == "finetune"}
    found |= {n for n in names if room_of(n) == "benchmarks"}
    return {n for n in found if n in SOURCES or not n.endswith(".__main__")}


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    return {module: ours(imports(module)) for module in SOURCES}


def between_folders(edges: dict[str, set[str]], depth: int) -> dict[str, set[str]]:
    """The same between folders: `data.sources` at depth 2, `data` at depth 1."""

    def folder(module: str) -> str:
        path = SOURCES.get(module)
        parts = module.split(".") if path is None or path.name == "__init__.py" else None
        parts = parts or module.split(".")[:-1] or [module]
        return ".".join(parts[:depth])

    found: dict[str, set[str]] = {}
    for module, others in edges.items():
        own = folder(module)
        found.setdefault(own, set()).update(folder(other) for other in others)
    return {own: others - {own} for own, others in found.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of the graph, [] if there is none."""
    done: set[str] = set()

    def walk(node: str, above: list[str]) -> list[str]:
        if node in above:
            return [*above[above.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := walk(other, [*above, node]):
                return found
        done.add(node)
        return []

    return next(filter(None, (walk(node, []) for node in sorted(edges))), [])


def test_the_sources_are_found_and_read():
    assert {"", "augment", "data", "labels.translation", "segformer.modeling"} <= SOURCES.keys()
    assert {"benchmarks", "benchmarks.memory", "programs.benchmark.cases"} <= SOURCES.keys()
    assert imports("segformer.modeling") >= {"torch", "finetune.segformer.functional"}
    assert ours(imports("")) == {"segformer"}
    assert sum(len(others) for others in graph().values()) > 2 * len(SOURCES)


def where_tested(module: str) -> Path:
    """The test file of its name, or that of the longest entry of `TESTS_OF` above it."""
    *folders, name = module.split(".")
    own = TESTS.joinpath(*folders, f"test_{name}.py")
    parts = module.split(".")
    above = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    entry = next((TESTS_OF[key] for key in above if key in TESTS_OF), None)
    return own if entry is None or (own.is_file() and module not in TESTS_OF) else TESTS / entry


def reached(module_names: set[str]) -> set[str]:
    """These modules and all that they import, directly or not."""
    found, left = set(), set(module_names)
    while left:
        module = left.pop()
        found.add(module)
        left |= graph().get(module, set()) - found
    return found


def test_every_module_has_tests_that_are_found():
    modules = [m for m, path in SOURCES.items() if not path.name.startswith("__")]
    assert len(modules) > 100
    unknown = [m for m in modules if not where_tested(m).is_file()]
    assert not unknown, "name a test file like the module, or enter the module in TESTS_OF"
    imported = {file: ours(imported_by(file, TESTS.parent)) for file in map(where_tested, modules)}
    astray = {
        m: where_tested(m).name for m in modules if m not in reached(imported[where_tested(m)])
    }
    assert not astray, "these tests do not import what they are said to test"


def test_the_table_of_tests_has_no_stale_entry():
    folders = {".".join(m.split(".")[:n]) for m in SOURCES for n in range(1, m.count(".") + 1)}
    for key, file in TESTS_OF.items():
        assert key in SOURCES or key in folders, f"{key} is no module"
        own = TESTS.joinpath(*key.split(".")[:-1], f"test_{key.split('.')[-1]}.py")
        assert key in folders or not own.is_file(), f"{key} has {own.name}"
        assert (TESTS / file).is_file(), key


def test_every_room_has_one_floor():
    assert len(FLOOR_OF) == sum(map(len, FLOORS))
    differing = {room_of(module) for module in SOURCES} ^ FLOOR_OF.keys()
    assert not differing, "enter these in the table of floors, or take them out"


def upward(module: str, others: set[str]) -> set[str]:
    """Those of `others` that are on a floor above that of `module`."""
    return {other for other in others if FLOOR_OF[room_of(other)] > FLOOR_OF[room_of(module)]}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module):
    up = upward(module, graph()[module])
    assert not up, f"{module} imports {up}, from a floor above it"


def imports_with(module: str, text: str, root: Path) -> set[str]:
    """What `module` would import if `text` were written under it; `root` is a temporary folder."""
    path = root / SOURCES[module].relative_to(TESTS.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SOURCES[module].read_text() + text)
    return ours(imported_by(path, root))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("import finetune.train", "train"),
        ("from .. import train", "train"),
        ("def late():\n    from finetune.cli import app", "cli.app"),
        ("import importlib\nimportlib.import_module('finetune.train')", "train"),
        ("from importlib import import_module\nimport_module(name='finetune.train')", "train"),
        ("__import__('finetune.train')", "train"),
        ("run_module('finetune.train')", "train"),
        ("COMMAND = [sys.executable, '-m', 'finetune.train', *arguments]", "train"),
        ("start(folder, '-m', 'finetune.programs.push')", "programs.push.__main__"),
        ("import_module(f'benchmarks.{name}')", "benchmarks.memory"),
        ("import_module(f'finetune.programs.{name}')", "programs.pack"),
        ("from benchmarks import memory", "benchmarks.memory"),
    ],
)
def test_an_import_from_a_floor_above_is_seen_however_it_is_written(text, seen, tmp_path):
    assert not upward("labels.presets", imports_with("labels.presets", "", tmp_path))
    assert seen in upward("labels.presets", imports_with("labels.presets", text, tmp_path))


def test_text_that_imports_nothing_is_no_import(tmp_path):
    text = "say('finetune.train'); import_module(name); ['-m', name]; ['finetune', '-m']"
    found = imports_with("labels.presets", text, tmp_path)
    assert found == graph()["labels.presets"]


def test_no_module_and_no_folder_is_in_a_circle():
    edges = graph()
    assert not circle(edges)
    for depth in (1, 2, 3):
        folders = between_folders(edges, depth)
        assert len(folders) > 10
        assert not circle(folders), f"folders {depth} deep"


def test_a_circle_is_seen_between_folders_where_no_file_is_in_one():
    # pictures -> labels is allowed, and labels -> pictures too, but not both.
    edges = {**graph()}
    edges["labels.presets"] = {"pictures.drawing"}
    edges["pictures.tiffs"] = {"labels.translation"}
    assert not circle(edges)
    assert circle(between_folders(edges, 1)) == ["labels", "pictures", "labels"]


@pytest.mark.parametrize(
    ("module", "text", "folders"),
    [
        (  # the verb hands the modules of benchmarks/ down; they import the program
            "programs.benchmark.benchmark",
            "import_module(f'benchmarks.{name}')",
            {"benchmarks", "programs"},
        ),
        ("programs.push.__main__", "__import__('finetune.train')", {"programs", "train"}),
        ("segformer.costs", "import_module('finetune.labels.rules')", set()),  # goes one way
    ],
)
def test_a_circle_of_folders_is_seen_however_it_is_written(module, text, folders, tmp_path):
    edges = {**graph(), module: imports_with(module, text, tmp_path)}
    assert edges[module] > graph()[module]
    assert set(circle(between_folders(edges, 1))) == folders


def test_programs_do_not_import_each_other():
    programs = {module for module in SOURCES if room_of(module) == "programs"}
    assert len(programs) > 20
    for module in programs - {"programs"}:
        others = {program_of(other) for other in graph()[module] if room_of(other) == "programs"}
        assert others <= {program_of(module)}, module


def test_the_command_line_imports_programs_lazily():
    modules = [module for module in SOURCES if room_of(module) == "cli"]
    assert len(modules) > 4
    for module in modules:
        eager = {room_of(other) for other in ours(imports(module, lazy=False))}
        assert not eager & {"programs", "train", "benchmarks"}, module


def test_the_model_travels_alone():
    modules = [module for module in SOURCES if room_of(module) == "segformer"]
    assert len(modules) > 3
    for module in modules:
        names = imports(module)
        assert {room_of(other) for other in ours(names)} <= {"segformer"}, module
        roots = {name.split(".")[0] for name in names} - sys.stdlib_module_names
        assert roots <= {"torch", "transformers", "triton", "finetune"}, module


def test_importing_a_room_of_sources_imports_none():
    for room in ("data", "data.sources", "labels", "pictures", "discover", "run", "programs"):
        assert imports(room) == set(), room


def test_some_dependencies_have_one_place_or_none():
    shipped = [m for m in SOURCES if room_of(m) != "benchmarks"]
    roots = {m: {name.split(".")[0] for name in imports(m)} for m in shipped}
    assert [m for m in roots if "albumentations" in roots[m]] == ["augment"]
    # No torchvision is built for every torch, and with the wrong one transformers fails to import.
    assert not [m for m in roots if roots[m] & {"torchvision", "timm"}]


def test_a_file_past_400_lines_says_why():
    long = [m for m, path in SOURCES.items() if path.read_text().count("\n") > 400]
    assert "segformer.modeling" in long
    for module in long:
        said = ast.get_docstring(ast.parse(SOURCES[module].read_text())) or ""
        assert "one file" in " ".join(said.split()), f"{module}: split it, or say why not"


def test_no_module_shadows_another_or_has_a_name_that_says_nothing():
    # `accelerate launch finetune/train.py` puts finetune/ itself first on the path.
    names = {room_of(module) for module in SOURCES} - {"", "benchmarks"}
    taken = sys.stdlib_module_names | packages_distributions().keys()
    assert {"logging", "datasets", "evaluate"} <= taken
    assert not names & taken
    assert not [
        *PACKAGE.parent.glob("finetune/**/utils.py"),
        *PACKAGE.parent.glob("tests/**/utils.py"),
    ]
