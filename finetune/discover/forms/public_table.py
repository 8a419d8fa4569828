"""The table of public data sets: their folders as the archives unpack, and their labels.

Sources: the sets' own pages and tools (those that `finetune.labels.presets` names; for Mapillary
Vistas the `demo.py` and `config_*.json` of its archive; for ISIC challenge.isic-archive.com/data;
for Kvasir-SEG datasets.simula.no/kvasir-seg; for Carvana its page at Kaggle), and the page on
preparing data of mmsegmentation's documentation.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublicSet:
    """A public set in one of its layouts."""

    name: str
    images: str
    """As `data.images`; `{split}` may stand in it several times."""
    masks: str
    image_suffix: str = ""
    mask_suffix: str = ""
    known: tuple[dict[str, Any], ...] = ()
    """The `labels:` blocks that it may have, see `Layout.known`."""
    files: str = ".+"
    """Expression for the names of masks, without suffix."""
    called: str = ""
    """Expression in the name of the folder or of a file in it, for sets with common names."""
    beside: str = ""
    """A file that must exist."""
    config: str = ""
    """A JSON file with the labels, as in Mapillary Vistas."""


def _preset(name: str, **more: Any) -> tuple[dict[str, Any], ...]:
    return ({"preset": name, **more},)


def _thing(name: str) -> tuple[dict[str, Any], ...]:
    """The names of the lower and the higher value of binary masks."""
    return ({"names": ["background", name]},)


_BDD = "[0-9a-f]{8}-[0-9a-f]{8}"
_AREA = r"top_mosaic_09cm_area\d+"
_IDD = {
    "_gtFine_labellevel3Ids": _preset("idd-level3"),
    "_gtFine_labelids": _preset("idd"),
    "_gtFine_labelcsTrainIds": _preset("cityscapes"),
}
_VISTAS = {
    "{split}/v2.0/labels": "config_v2.0.json",
    "{split}/v1.2/labels": "config_v1.2.json",
    "{split}/labels": "config.json",
}
_POTSDAM = {"2_Ortho_RGB": "_RGB", "3_Ortho_IRRG": "_IRRG", "4_Ortho_RGBIR": "_RGBIR"}
_POTSDAM_LABELS = {
    "5_Labels_all": "_label",
    "5_Labels_for_participants": "_label",
    "5_Labels_all_noBoundary": "_label_noBoundary",
}
_VAIHINGEN = "ISPRS_semantic_labeling_Vaihingen"
_VAIHINGEN_LABELS = {
    "gts_for_participants": "",
    f"{_VAIHINGEN}/gts_for_participants": "",
    f"{_VAIHINGEN}_ground_truth_COMPLETE": "",
    "gts_eroded_for_participants": "_noBoundary",
    f"{_VAIHINGEN}_ground_truth_eroded_COMPLETE": "_noBoundary",
    f"{_VAIHINGEN}_ground_truth_eroded_for_participants": "_noBoundary",
}

SETS = (
    PublicSet(
        *("Oxford-IIIT Pet", "images", "annotations/trimaps"),
        known=_preset("oxford-pets"),
        files=r"[A-Za-z]+(_[A-Za-z]+)*_\d+",
        beside="annotations/trainval.txt",
    ),
    *(
        PublicSet("Mapillary Vistas", "{split}/images", masks, config=config)
        for masks, config in _VISTAS.items()
    ),
    PublicSet(
        *("BDD100K", "images/10k/{split}", "labels/sem_seg/masks/{split}"),
        known=_preset("cityscapes"),
        files=_BDD,
    ),
    PublicSet(
        *("BDD100K, colour maps", "images/10k/{split}", "labels/sem_seg/colormaps/{split}"),
        known=_preset("cityscapes", kind="colors", ignore=["#000000"]),
        files=_BDD,
    ),
    PublicSet(
        *("BDD100K", "seg/images/{split}", "seg/labels/{split}", "", "_train_id"),
        known=_preset("cityscapes"),
        files=_BDD,
    ),
    PublicSet(
        *("BDD100K, drivable area", "images/100k/{split}", "labels/drivable/masks/{split}"),
        known=_preset("bdd100k-drivable"),
        files=_BDD,
    ),
    *(
        PublicSet("IDD", "leftImg8bit/{split}", "gtFine/{split}", "_leftImg8bit", suffix, known)
        for suffix, known in _IDD.items()
    ),
    PublicSet(
        *("IDD Lite", "leftImg8bit/{split}", "gtFine/{split}", "_image", "_label"),
        known=_preset("idd-lite"),
        called="idd",
    ),
    PublicSet(
        *("LoveDA", "{split}/*/images_png", "{split}/*/masks_png"),
        known=_preset("loveda"),
        files=r"\d+",
    ),
    PublicSet(
        *("UAVid", "uavid_{split}/*/Images", "uavid_{split}/*/Labels"),
        known=_preset("uavid"),
        files=r"\d{6}",
    ),
    *(  # RescueNet has the same folders, and other classes
        PublicSet(
            *(name, "{split}/{split}-org-img", "{split}/{split}-label-img", "", "_lab"),
            known=known,
            called=called,
        )
        for name, known, called in (
            ("FloodNet or RescueNet", (), ""),
            ("FloodNet", _preset("floodnet"), "floodnet"),
        )
    ),
    PublicSet(
        *("SUIM", "{split}/images", "{split}/masks"),
        known=_preset("suim"),
        files=r"[a-z]_[a-z]_\d+_?",
    ),
    *(
        PublicSet(
            *("ISIC", f"{own[0]}_{{split}}_{own[1]}", f"{own[2]}_{{split}}_{own[3]}", "", own[4]),
            known=_thing("lesion"),
            files=r"ISIC_\d{7}",
        )
        for own in (
            ("ISBI2016_ISIC_Part1", "Data", "ISBI2016_ISIC_Part1", "GroundTruth", "_Segmentation"),
            ("ISIC-2017", "Data", "ISIC-2017", "Part1_GroundTruth", "_segmentation"),
            ("ISIC2018_Task1-2", "Input", "ISIC2018_Task1", "GroundTruth", "_segmentation"),
        )
    ),
    PublicSet(
        "Kvasir-SEG", "images", "masks", known=_thing("polyp"), called="kvasir.?seg|kavsir_bboxes"
    ),
    PublicSet(
        *("Carvana", "train", "train_masks", "", "_mask"),
        known=_thing("car"),
        files=r"[0-9a-f]{12}_\d\d",
    ),
    *(
        PublicSet(
            *(f"DeepGlobe, {track}", "{split}", "{split}", "_sat", "_mask"),
            known=known,
            files=r"\d+",
            called=called,
        )
        for track, known, called in (
            ("land cover", _preset("deepglobe-land-cover"), ""),
            ("roads", _thing("road"), "deepglobe.road|road.(train|extraction)"),
        )
    ),
    *(
        PublicSet(
            *("iSAID", images, "{split}/Semantic_masks/images", "", "_instance_color_RGB"),
            known=_preset("isaid"),
            files=r"P\d{4}",
        )
        for images in ("{split}/images/images", "{split}/images")
    ),
    *(
        PublicSet(
            "Potsdam",
            images,
            masks,
            image_suffix,
            suffix,
            _preset("potsdam"),
            r"top_potsdam_\d+_\d+",
        )
        for images, image_suffix in _POTSDAM.items()
        for masks, suffix in _POTSDAM_LABELS.items()
    ),
    *(
        PublicSet("Vaihingen", images, masks, "", suffix, _preset("vaihingen"), _AREA)
        for images in ("top", f"{_VAIHINGEN}/top")
        for masks, suffix in _VAIHINGEN_LABELS.items()
    ),
)
