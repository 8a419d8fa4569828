"""Data sets that Label Studio exported as JSON or JSON-MIN, or as brush PNGs."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from finetune.data.annotations.coco import parsed
from finetune.data.annotations.label_studio import Export, is_brush_png, read_export
from finetune.data.faults import listed
from finetune.data.sources.label_studio import export_of
from finetune.discover.forms.annotations import by_own_names, images_of, split_pattern
from finetune.discover.layouts.layout import Layout, Tree, split_in, unused, with_splits
from finetune.errors import UserError

_NUM_TRIED = 20  # images of a file; some may be missing
_DRAWN = (b'"rle"', b'"points"', b'"radiusX"')


def label_studio_files(tree: Tree) -> Iterator[Layout]:
    """Layouts from exports, one file per split, and from brush PNGs.

    A file whose tasks have regions needs no PNGs: they show a part of these regions.

    Raises:
        UserError: A region cannot be used, images are in no folder, or PNGs lack their images.
    """
    brushes = [folder for folder, stems in tree.folders.items() if any(map(is_brush_png, stems))]
    found = [_export(file, bool(brushes)) for file in tree.json_files]
    exports = [own for own in found if isinstance(own, Export)]
    whole = [own for own in exports if any(task.regions for task in own.tasks)]
    groups: dict[tuple[str, str, str], dict[str, Export]] = defaultdict(dict)
    for own in whole or (exports if brushes else ()):
        relative = PurePosixPath(own.file.relative_to(tree.root).as_posix())
        split = split_in(relative.with_suffix(""))
        pngs = "" if whole else split_pattern(_one_folder(tree, brushes, split.name), split.name)
        tasks = [*own.tasks, *(() if whole else own.others)]
        names = [task.image for task in tasks[:_NUM_TRIED]]
        images = split_pattern(images_of(tree, own.file, names, split.name), split.name)
        groups[split.pattern + relative.suffix, images, pngs][split.name] = own
    for patterns, by_split in groups.items():
        yield _layout(tree, *patterns, by_split)
    if brushes and not exports:
        yield _of_names(tree, brushes)


def why_no_regions(tree: Tree) -> str:
    """A sentence about the first export that marks boxes alone; or ""."""
    found = (_export(file, False) for file in tree.json_files)
    return next((own for own in found if isinstance(own, str)), "")


def _export(file: Path, with_brushes: bool) -> Export | str | None:
    """The export in a file; what is wrong with it, if it has boxes alone; or None.

    Boxes may lie beside masks of another form, unless brush PNGs need the file.
    """
    try:
        content = parsed(file)
    except UserError:
        return None
    try:
        return read_export(file, content)
    except UserError as error:
        if with_brushes or any(key in file.read_bytes() for key in _DRAWN):
            raise
        return str(error)


def _one_folder(tree: Tree, brushes: list[PurePosixPath], split: str) -> PurePosixPath:
    """The folder of a split's brush PNGs."""
    own = [folder for folder in brushes if split_in(folder).name == split] or brushes
    if len(own) > 1:
        raise UserError(
            f"{tree.root}: {len(own)} folders hold brush PNGs of Label Studio: "
            f"{listed(list(map(str, own)))}. Keep those of one export in one folder."
        )
    return own[0]


def _layout(
    tree: Tree, pattern: str, images: str, brushes: str, by_split: Mapping[str, Export]
) -> Layout:
    data = {"source": "label-studio", "path": str(tree.root), "annotations": pattern}
    data["images"] = images
    if brushes:
        data["brushes"] = brushes
        assumed = ["where PNGs overlap, the smallest wins (data.overlap)"]
        texts = (images, pattern, brushes)
        by_split = {s: export_of(tree.root, *_of_split(texts, s)) for s in by_split}
    else:
        data["overlap"] = "order"  # as the tool draws them
        assumed = ["where regions overlap, the later one wins, as in the tool (data.overlap)"]
    assumed += [f"{own.file.name}: {line}" for own in by_split.values() for line in own.lines]
    names_of = {s: [task.image for task in own.tasks] for s, own in by_split.items()}
    files_of = {s: own.file for s, own in by_split.items()}
    assumed += by_own_names(tree, images, names_of, files_of)
    what = f"brush PNGs in {brushes}, joined by" if brushes else "regions in"
    found = f"{what} {pattern} of Label Studio, images in {images}"
    layout = Layout(data, (found,), tuple(assumed), classes=_classes(by_split))
    folders = [text for s in by_split for text in _of_split((images, brushes), s) if text]
    return unused(tree, with_splits(layout, by_split), folders)


def _of_split(texts: tuple[str, ...], split: str) -> tuple[str, ...]:
    return tuple(text.replace("{split}", split) for text in texts)


def _classes(by_split: Mapping[str, Export]) -> tuple[str, ...]:
    tasks = (task for own in by_split.values() for task in own.tasks)
    return tuple(sorted({region.label for task in tasks for region in task.regions}))


def _of_names(tree: Tree, brushes: list[PurePosixPath]) -> Layout:
    """Brush PNGs without a JSON file, whose images have the numbers of their tasks as names.

    Raises:
        UserError: They have not.
    """
    masks = _one_folder(tree, brushes, "")
    images = [f for f, stems in tree.folders.items() if not all(map(is_brush_png, stems))]
    data = {"source": "label-studio", "path": str(tree.root), "annotations": ""}
    data |= {"images": str(images[0] if len(images) == 1 else "."), "brushes": str(masks)}
    try:
        export = export_of(tree.root, data["images"], "", data["brushes"])
    except UserError as error:
        raise UserError(
            f"{tree.root / masks}: holds brush PNGs of Label Studio, whose names do not say to "
            f"which images they belong. {error}"
        ) from error
    assumed = (
        "images have the numbers of their tasks as names, or there is one of each",
        "where PNGs overlap, the smallest wins (data.overlap)",
    )
    found = f"brush PNGs of Label Studio in {masks}, images in {data['images']}"
    layout = Layout(data, (found,), assumed, classes=_classes({"": export}))
    return unused(tree, with_splits(layout, [""]), [data["images"], data["brushes"]])
