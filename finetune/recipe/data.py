"""The section `data`: a class for each source, selected by the key `source`.

A new source is a class here, a member of `AnySource`, and an opener in
`finetune/data/sources/opening.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, TypeAdapter

from finetune.recipe.errors import did_you_mean
from finetune.recipe.section import PositiveInt, Section, Size

Overlap = Annotated[
    Literal["area", "order"],
    Field(description="where objects overlap: area, the smallest wins; order, the last wins"),
]
ImageFolder = Annotated[str, Field(description="folder of the images, below path")]
MaskFolder = Annotated[
    str,
    Field(description="folder of the masks, below path; with {class}, one file a class"),
]
WithoutMask = Annotated[
    Literal["error", "skip"],
    Field(description="images without a mask: an error, or left out, also of split_list"),
]
AnnotationFile = Annotated[
    str,
    Field(
        description="the file of objects or segments, below path: JSON, kaggle-rle CSV, cvat XML"
    ),
]


class DataSection(Section):
    """The keys of every source of images and masks."""

    is_drawn: ClassVar[bool] = False
    """Whether the source draws its images, so that there are no files to check, cache or pack."""

    source: str
    train_split: str = Field("train", description="what to train on")
    val_split: str = Field("val", description="what to evaluate on")
    image_mean: list[float] = Field(
        [0.485, 0.456, 0.406], description="mean per channel, of values in 0..1"
    )
    image_std: list[PositiveFloat] = Field(
        [0.229, 0.224, 0.225], description="standard deviation per channel, of values in 0..1"
    )
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        2,
        description="loader processes per training process; never changes what is loaded (of a "
        "stream, the order)",
    )
    cache: Literal["auto", "disk", "none"] = Field(
        "auto",
        description="keep decoded files on disk ($FINETUNE_CACHE or ~/.cache/finetune/decoded): "
        "auto, if they fit; disk, whatever they take; none; never changes what is loaded",
    )

    @property
    def is_streamed(self) -> bool:
        """Whether samples are read in order, without access by index."""
        return False

    @property
    def held_back(self) -> float | None:
        """The share of `train_split` for the evaluation, in place of `val_split`."""
        return None

    def _problems(self) -> Iterator[str]:
        for key in ("image_mean", "image_std"):
            values = getattr(self, key)
            if values and (min(values) < 0 or max(values) > 1):
                yield (
                    f".{key}: {values} are not in 0..1; divide by 255, or by 65535 if the images "
                    "have 16 bit"
                )


class ShapesData(DataSection):
    """Procedural shapes."""

    is_drawn = True

    source: Literal["shapes"]
    train_samples: PositiveInt = Field(4000, description="number of training pictures")
    val_samples: PositiveInt = Field(200, description="number of validation pictures")
    size: Size = Field((96, 96), description="height and width of the pictures")


class StoredData(DataSection):
    """A source that reads stored images."""

    path: str = Field(
        description="the data set's folder; hub: also an id, owner/name, or an address such as "
        "s3://bucket/set"
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of train_split to evaluate on, instead of val_split"
    )
    folds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        None,
        description="number of parts of train_split for cross-validation, instead of val_split",
    )
    fold: Annotated[int, Field(ge=0, le=999)] = Field(
        0, description="with folds: the part to evaluate on, from 0"
    )
    split_seed: int = Field(0, description="with val_fraction or folds: seed of the random cut")
    split_group: str | None = Field(
        None,
        description="with val_fraction or folds: regular expression in ids; samples with equal "
        "matches stay together",
    )

    @property
    def held_back(self) -> float | None:
        """The key `val_fraction`, or the share of a fold."""
        return self.val_fraction if self.folds is None else 1 / self.folds

    @property
    def _cut(self) -> str | None:
        """The key by which the training split is cut in two."""
        return next((key for key in ("val_fraction", "folds") if getattr(self, key)), None)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self._cut is None:
            for key, default in (("split_seed", 0), ("split_group", None)):
                if getattr(self, key) != default:
                    yield f".{key}: needs .val_fraction or .folds"
        elif self.val_split == self.train_split:
            yield (
                f".val_split: the training uses {self.val_split!r}; with .{self._cut}, give the "
                "part that is held back another name"
            )
        if self.folds is not None and self.val_fraction is not None:
            yield ".folds: .val_fraction cuts the training split too; give one of them"
        if self.fold >= (self.folds or 1):
            yield f".fold: {self.fold} needs .folds of at least {self.fold + 1}; folds count from 0"


class FileData(StoredData):
    """A source that reads files below a folder."""

    patterns: ClassVar[tuple[str, ...]] = ()
    """The keys in which `{split}` selects files; empty if the source finds splits by itself."""

    split_list: str | None = Field(
        None, description="text file of a split's ids, below path, such as {split}.txt"
    )

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.val_fraction is not None and self.split_list is not None:
            yield ".val_fraction: a share is drawn, but .split_list names files; give one of them"
        if not self.patterns or self._cut is not None or self.train_split == self.val_split:
            return
        texts = [*(getattr(self, key) for key in self.patterns), self.split_list or ""]
        if not any("{split}" in text for text in texts):
            where = " and ".join(f".{key}" for key in self.patterns)
            yield (
                f".val_split: {self.val_split!r} would be the same images as "
                f"{self.train_split!r}: there is no {{split}} in {where}, nor in .split_list. "
                "Write {split} where the splits differ, or hold a share back by .val_fraction, "
                "such as 0.2. For scores of the training images, set .val_split to .train_split"
            )


class FolderData(FileData):
    """Two folders; the default source."""

    patterns = ("images", "masks")

    source: Literal["folder"] = "folder"
    images: ImageFolder = "images/{split}"
    masks: MaskFolder = "masks/{split}"
    image_suffix: str = Field("", description="end of image names, e.g. _image")
    mask_suffix: str = Field(
        "", description="end of mask names, e.g. _mask; with {class}, one file a class"
    )
    without_mask: WithoutMask = "error"


class HubData(StoredData):
    """The Hub, or Parquet and Arrow files."""

    source: Literal["hub"]
    revision: str | None = Field(None, description="branch, tag or commit of the repository")
    subset: str | None = Field(None, description="subset, if the repository has several")
    image_column: str = Field("image", description="the column of images")
    mask_column: str = Field("mask", description="the column of masks")
    id_column: str | None = Field(None, description="the column of the samples' names")
    streaming: bool = Field(
        False, description="read Parquet files where they are, from front to back; keeps none"
    )

    @property
    def is_streamed(self) -> bool:
        """The key `streaming`."""
        return self.streaming

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        for key in ("val_fraction", "folds", "cache") if self.streaming else ():
            value = getattr(self, key)
            if value not in (None, "auto", "none"):
                yield f".{key}: {value} needs all samples at hand; remove it, or .streaming"


class CocoData(FileData):
    """Objects in COCO's JSON format."""

    patterns = ("annotations",)

    source: Literal["coco"]
    images: ImageFolder = "images/{split}"
    annotations: AnnotationFile = "annotations/{split}.json"
    overlap: Overlap = "area"


class RleData(CocoData):
    """Kaggle's tables of run lengths (`annotations`, a CSV file)."""

    source: Literal["kaggle-rle"]  # type: ignore[assignment]


class CvatData(FileData):
    """CVAT's XML for images (`annotations`); a file without {split} has splits as subsets."""

    patterns = ("images", "annotations")

    source: Literal["cvat"]
    images: ImageFolder = "images/{split}"
    annotations: AnnotationFile = "annotations/{split}.json"


class PanopticData(FileData):
    """COCO's panoptic PNGs, and their JSON."""

    patterns = ("annotations",)

    source: Literal["coco-panoptic"]
    images: ImageFolder = "images/{split}"
    masks: MaskFolder = "masks/{split}"
    annotations: AnnotationFile = "annotations/{split}.json"


class LabelmeData(FileData):
    """labelme's JSON files (`masks`), one for each image."""

    patterns = ("images", "masks")

    source: Literal["labelme"]
    images: ImageFolder = "images/{split}"
    masks: MaskFolder = "masks/{split}"
    overlap: Overlap = "area"
    without_mask: WithoutMask = "error"


class LabelStudioData(FileData):
    """Label Studio's JSON or JSON-MIN (`annotations`), and perhaps brush PNGs (`brushes`)."""

    patterns = ("annotations", "brushes")

    source: Literal["label-studio"]
    images: ImageFolder = "images/{split}"
    annotations: AnnotationFile = "annotations/{split}.json"
    brushes: str = Field(
        "",
        description="folder of Label Studio's brush PNGs, below path, in place of the regions in "
        "annotations; with annotations '', images are named by the numbers of their tasks",
    )
    overlap: Overlap = "area"


class SuperviselyData(FileData):
    """A project of Supervisely; `images` holds one or several of its data sets."""

    patterns = ("images",)

    source: Literal["supervisely"]
    images: ImageFolder = "images/{split}"
    overlap: Overlap = "area"
    without_mask: WithoutMask = "error"


class UltralyticsData(FileData):
    """Ultralytics' data.yaml."""

    source: Literal["ultralytics"]
    overlap: Overlap = "area"


class ViaData(FileData):
    """VIA's projects and exports in JSON (`annotations`)."""

    patterns = ("annotations",)

    source: Literal["via"]
    images: ImageFolder = "images/{split}"
    annotations: AnnotationFile = "annotations/{split}.json"
    attribute: str = Field(
        "", description="the attribute of regions that names the class; empty, there is one class"
    )
    overlap: Overlap = "area"


class OfficialData(FileData):
    """A known data set in its official folders."""

    source: Literal["camvid", "ade20k", "cityscapes", "voc", "coco-stuff", "celebamask-hq"]


AnySource = (
    ShapesData
    | FolderData
    | HubData
    | CocoData
    | CvatData
    | RleData
    | PanopticData
    | LabelmeData
    | LabelStudioData
    | SuperviselyData
    | UltralyticsData
    | ViaData
    | OfficialData
)
SOURCE_CLASSES: tuple[type[DataSection], ...] = get_args(AnySource)
SOURCES: dict[str, type[DataSection]] = {
    source: section
    for section in SOURCE_CLASSES
    for source in get_args(section.model_fields["source"].annotation)
}
READ_BY: dict[str, tuple[str, ...]] = {
    key: tuple(source for source, section in SOURCES.items() if key in section.model_fields)
    for one in SOURCE_CLASSES
    for key in one.model_fields
}
"""Key -> the sources that read it."""


def _of_its_source(values: Any) -> Any:
    """Adds the source, and removes keys of other sources that are at their default.

    Earlier versions wrote the keys of all sources into the recipes of run and model folders, those
    of other sources always at their default. Such recipes stay readable.
    """
    if not isinstance(values, Mapping):
        return values
    values = {"source": "folder", **values}
    source = str(values["source"])
    if source not in SOURCES:
        hint = did_you_mean(source, SOURCES)
        raise ValueError(f".source: {source!r} is none of {', '.join(SOURCES)}{hint}")
    own = SOURCES[source].model_fields
    if "path" in own and values.get("path") is None:
        raise ValueError(f".path: missing; the source {source} needs the data set's folder")
    return {
        key: value
        for key, value in values.items()
        if key in own or key not in READ_BY or _plain(value) != default_of(key)
    }


def default_of(key: str) -> Any:
    """The default of a key, the same in all sources that read it; None without a default."""
    field = SOURCES[READ_BY[key][0]].model_fields[key]
    return None if field.is_required() else _plain(field.default)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


Data = Annotated[
    Annotated[AnySource, Field(discriminator="source")], BeforeValidator(_of_its_source)
]
_ADAPTER: TypeAdapter[DataSection] = TypeAdapter(Data)


def read_data(values: Mapping[str, Any]) -> DataSection:
    """The section for keys that the package itself has found."""
    return _ADAPTER.validate_python(values)
