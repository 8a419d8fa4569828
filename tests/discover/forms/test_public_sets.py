"""Public data sets as they unpack, drawn small: read under the sets' own names, pixel by pixel.

Names, values and colours are written here anew from the sets' pages. Each set has a twin with the
same folders and other values, which must keep its own classes.
"""

import json
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources.opening import open_split
from finetune.discover.forms.public_table import SETS as ROWS
from finetune.discover.labels.known_labels import with_preset
from finetune.errors import UserError
from finetune.labels.presets import PRESETS
from finetune.labels.translation import Labels
from finetune.programs.init import draft
from finetune.recipe.data import read_data

SIZE = 48


def listed(text: str) -> list[str]:
    return text.split(", ")


CITY = listed(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
    "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle"
)
CITY_COLORS = "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c"
CITY_COLORS += " ff0000 00008e 000046 003c64 005064 0000e6 770b20"
ISPRS = {
    "ffffff": "impervious surfaces",
    "0000ff": "building",
    "00ffff": "low vegetation",
    "00ff00": "tree",
    "ffff00": "car",
    "ff0000": "clutter",
}


def color(text: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text))


@dataclass
class Set:
    """A set: patterns of files with {split} and {n}, and what its values mean (None: ignored)."""

    images: str
    masks: str
    classes: dict
    splits: tuple = ("",)
    other: dict = field(default_factory=dict)
    """Further files: name -> text."""
    names: tuple = ()
    """What {n} stands for; numbers without it."""
    root: str = "data"


CITY_IDS = dict(enumerate(CITY)) | {255: None}
CITY_RGB = dict(zip(CITY_COLORS.split(), CITY, strict=True))
BDD = ("0000f77c-6257be58", "0000f77c-62c2a288", "0004974f-05e1c285", "00054602-3bf57337")
LEVEL3 = {
    0: "road",
    1: "drivable fallback",
    3: "non-drivable fallback",
    8: "autorickshaw",
    12: "vehicle fallback",
    13: "curb",
    17: "billboard",
    21: "obs-str-bar-fallback",
    22: "building",
    25: "sky",
    255: None,
}
IDD = {0: "road", 1: "parking", 11: "autorickshaw", 29: "building", 33: "sky", 39: None}
VISTAS = {
    "version": 2,
    "labels": [
        {"name": "animal--bird", "readable": "Bird", "color": [165, 42, 42], "evaluate": True},
        {"name": "a--curb", "readable": "Curb", "color": [196, 196, 196], "evaluate": True},
        {"name": "a--road", "readable": "Road", "color": [128, 64, 128], "evaluate": True},
        {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0], "evaluate": False},
    ],
}
CONFIGS = {"config.json", "config_v1.2.json", "config_v2.0.json"}
VISTAS_IDS = {0: "Bird", 1: "Curb", 2: "Road", 3: None}
SUIM = {
    "000000": "background waterbody",
    "0000ff": "human divers",
    "00ff00": "plants and sea-grass",
    "00ffff": "wrecks and ruins",
    "ff0000": "robots and instruments",
    "ff00ff": "reefs and invertebrates",
    "ffff00": "fish and vertebrates",
    "ffffff": "sand and sea-floor",
}
LAND = {
    "00ffff": "urban_land",
    "ffff00": "agriculture_land",
    "ff00ff": "rangeland",
    "00ff00": "forest_land",
    "0000ff": "water",
    "ffffff": "barren_land",
    "000000": None,
}
UAVID = {
    "000000": "background clutter",
    "800000": "building",
    "804080": "road",
    "008000": "tree",
    "808000": "low vegetation",
    "400080": "moving car",
    "c000c0": "static car",
    "404000": "human",
}
ISAID = {
    "000000": "background",
    "00003f": "ship",
    "003f3f": "storage tank",
    "003f00": "baseball diamond",
    "003f7f": "tennis court",
    "007f7f": "large vehicle",
    "00007f": "small vehicle",
    "007fff": "plane",
    "00649b": "harbor",
}
LOVEDA = ["background", "building", "road", "water", "barren", "forest", "agriculture"]
FLOODNET = listed(
    "background, building-flooded, building-non-flooded, road-flooded, road-non-flooded, water, "
    "tree, vehicle, pool, grass"
)
PETS = [f"{breed}_{i}" for breed in ("Abyssinian", "american_bulldog") for i in range(1, 5)]
THING = {0: "background", 255: "thing"}
TRAIN_VAL = ("train", "val")
VAIHINGEN = "ISPRS_semantic_labeling_Vaihingen"

SETS = {
    "pets": Set(
        "images/{n}.jpg",
        "annotations/trimaps/{n}.png",
        {1: "foreground", 2: "background", 3: "not classified"},
        other={
            "annotations/list.txt": "\n".join(f"{name} 1 1 1" for name in PETS),
            "annotations/trainval.txt": "\n".join(f"{name} 1 1 1" for name in PETS[:5]),
            "annotations/test.txt": "\n".join(f"{name} 1 1 1" for name in PETS[5:]),
            "annotations/trimaps/._Abyssinian_1.png": "Mac OS X",
        },
        names=tuple(PETS),
    ),
    "vistas-2.0": Set(
        "{split}/images/{n}.jpg",
        "{split}/v2.0/labels/{n}.png",
        VISTAS_IDS,
        ("training", "validation"),
        {"config_v2.0.json": json.dumps(VISTAS)},
    ),
    "vistas-1.2": Set(
        "{split}/images/{n}.jpg",
        "{split}/v1.2/labels/{n}.png",
        VISTAS_IDS,
        ("training", "validation"),
        {"config_v1.2.json": json.dumps(VISTAS)},
    ),
    "vistas-1.1": Set(
        "{split}/images/{n}.jpg",
        "{split}/labels/{n}.png",
        VISTAS_IDS,
        ("training", "validation"),
        {"config.json": json.dumps(VISTAS)},
    ),
    "bdd100k": Set(
        "images/10k/{split}/{n}.jpg",
        "labels/sem_seg/masks/{split}/{n}.png",
        CITY_IDS,
        TRAIN_VAL,
        names=BDD,
        root="bdd100k",
    ),
    "bdd100k-colormaps": Set(
        "images/10k/{split}/{n}.jpg",
        "labels/sem_seg/colormaps/{split}/{n}.png",
        CITY_RGB | {"000000": None},
        TRAIN_VAL,
        names=BDD,
    ),
    "bdd100k-seg": Set(
        "seg/images/{split}/{n}.jpg",
        "seg/labels/{split}/{n}_train_id.png",
        CITY_IDS,
        TRAIN_VAL,
        names=BDD,
    ),
    "bdd100k-drivable": Set(
        "images/100k/{split}/{n}.jpg",
        "labels/drivable/masks/{split}/{n}.png",
        {0: "direct", 1: "alternative", 2: "background"},
        TRAIN_VAL,
        names=BDD,
    ),
    "idd-level3": Set(
        "leftImg8bit/{split}/0/frame{n}_leftImg8bit.jpg",
        "gtFine/{split}/0/frame{n}_gtFine_labellevel3Ids.png",
        LEVEL3,
        TRAIN_VAL,
    ),
    "idd-ids": Set(
        "leftImg8bit/{split}/7/{n}_leftImg8bit.png",
        "gtFine/{split}/7/{n}_gtFine_labelids.png",
        IDD,
        TRAIN_VAL,
    ),
    "idd-city": Set(
        "leftImg8bit/{split}/7/{n}_leftImg8bit.png",
        "gtFine/{split}/7/{n}_gtFine_labelcsTrainIds.png",
        CITY_IDS,
        TRAIN_VAL,
    ),
    "idd-lite": Set(
        "leftImg8bit/{split}/0/{n}_image.jpg",
        "gtFine/{split}/0/{n}_label.png",
        {0: "drivable", 1: "non-drivable", 2: "living things", 3: "vehicles", 6: "sky", 255: None},
        TRAIN_VAL,
        root="idd20k_lite",
    ),
    "loveda": Set(
        "{split}/Urban/images_png/{n}.png",
        "{split}/Urban/masks_png/{n}.png",
        {0: None, **{i + 1: name for i, name in enumerate(LOVEDA)}},
        ("Train", "Val"),
    ),
    "uavid": Set(
        "uavid_{split}/seq1/Images/{n}.png",
        "uavid_{split}/seq1/Labels/{n}.png",
        UAVID,
        TRAIN_VAL,
        names=("000000", "000100"),
        root="uavid_v1.5_official_release_image",
    ),
    "floodnet": Set(
        "{split}/{split}-org-img/{n}.jpg",
        "{split}/{split}-label-img/{n}_lab.png",
        dict(enumerate(FLOODNET)),
        ("train", "val", "test"),
        names=("6279", "10165"),
        root="FloodNet-Supervised_v1.0",
    ),
    "suim": Set(
        "{split}/images/{n}.jpg",
        "{split}/masks/{n}.bmp",
        SUIM,
        ("train_val", "TEST"),
        names=("d_r_122_", "f_r_1090_", "w_r_24_"),
    ),
    "isic-2016": Set(
        "ISBI2016_ISIC_Part1_{split}_Data/ISIC_000000{n}.jpg",
        "ISBI2016_ISIC_Part1_{split}_GroundTruth/ISIC_000000{n}_Segmentation.png",
        {0: "background", 255: "lesion"},
        ("Training", "Test"),
    ),
    "isic-2017": Set(
        "ISIC-2017_{split}_Data/ISIC_000000{n}.jpg",
        "ISIC-2017_{split}_Part1_GroundTruth/ISIC_000000{n}_segmentation.png",
        {0: "background", 255: "lesion"},
        ("Training", "Validation", "Test_v2"),
    ),
    "isic-2018": Set(
        "ISIC2018_Task1-2_{split}_Input/ISIC_000000{n}.jpg",
        "ISIC2018_Task1_{split}_GroundTruth/ISIC_000000{n}_segmentation.png",
        {0: "background", 255: "lesion"},
        ("Training", "Validation"),
    ),
    "kvasir": Set(
        "images/{n}.jpg",
        "masks/{n}.jpg",
        {"000000": "background", "ffffff": "polyp"},
        other={"kavsir_bboxes.json": "{}"},
        names=("cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4"),
        root="Kvasir-SEG",
    ),
    "carvana": Set(
        "train/{n}.jpg",
        "train_masks/{n}_mask.gif",
        {0: "background", 1: "car"},
        names=("0cdf5b5d0ce1_01", "0cdf5b5d0ce1_02"),
    ),
    "deepglobe-land": Set(
        "{split}/{n}_sat.jpg",
        "{split}/{n}_mask.png",
        LAND,
        ("train",),
        {  # at Kaggle
            "class_dict.csv": "name,r,g,b\n"
            + "".join(f"{n or 'unknown'},{','.join(map(str, color(c)))}\n" for c, n in LAND.items())
        },
    ),
    "deepglobe-roads": Set(
        "{split}/{n}_sat.jpg",
        "{split}/{n}_mask.png",
        {"000000": "background", "ffffff": "road"},
        ("train",),
        root="road-train-2",
    ),
    "isaid": Set(
        "{split}/images/P000{n}.png",
        "{split}/Semantic_masks/images/P000{n}_instance_color_RGB.png",
        ISAID,
        TRAIN_VAL,
    ),
    "potsdam": Set(
        "2_Ortho_RGB/top_potsdam_2_1{n}_RGB.tif",
        "5_Labels_all/top_potsdam_2_1{n}_label.tif",
        ISPRS,
    ),
    "potsdam-no-boundary": Set(
        "3_Ortho_IRRG/top_potsdam_2_1{n}_IRRG.tif",
        "5_Labels_all_noBoundary/top_potsdam_2_1{n}_label_noBoundary.tif",
        ISPRS | {"000000": None},
    ),
    "vaihingen": Set(
        "top/top_mosaic_09cm_area{n}.tif", "gts_for_participants/top_mosaic_09cm_area{n}.tif", ISPRS
    ),
    "vaihingen-eroded": Set(
        f"{VAIHINGEN}/top/top_mosaic_09cm_area{{n}}.tif",
        f"{VAIHINGEN}_ground_truth_eroded_COMPLETE/top_mosaic_09cm_area{{n}}_noBoundary.tif",
        ISPRS | {"000000": None},
    ),
}


def paint(root: Path, own: Set, values: dict) -> dict[Path, np.ndarray]:
    """Writes a set; the names of the classes of each image's pixels, "" where they are ignored."""
    truth, meanings = {}, np.array([name or "" for name in values.values()], object)
    rng = np.random.default_rng(len(own.masks))
    for split in own.splits:
        for n in own.names or range(1, 5):
            blocks = rng.permutation(np.resize(np.arange(len(values)), (SIZE // 8) ** 2))
            scene = np.kron(blocks.reshape(SIZE // 8, -1), np.ones((8, 8), int))
            image, mask = (
                root / text.replace("{split}", split).replace("{n}", str(n))
                for text in (own.images, own.masks)
            )
            photo = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            first = next(iter(values))
            table = [color(v) for v in values] if isinstance(first, str) else [*values]
            for file, array in ((image, photo), (mask, np.array(table, np.uint8)[scene])):
                file.parent.mkdir(parents=True, exist_ok=True)
                stored = Image.fromarray(array)
                if file == mask and own.other.keys() & CONFIGS:
                    stored.putpalette([c for row in VISTAS["labels"] for c in row["color"]])
                stored.save(file)
            if split in own.splits[:2]:
                truth[image] = meanings[scene]
    for name, text in own.other.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return truth


def first(layouts):
    assert len(layouts) == 1
    return layouts[0]


def opened(root: Path, choose=first) -> dict[Path, np.ndarray]:
    """What `finetune init` reads: the names of the classes of each image's pixels."""
    recipe = draft(root, root.parent / "recipe.yaml", choose).recipe
    labels = recipe.labels.build()
    names = np.array([*labels.names, *[""] * 70000], object)
    found = {}
    for split in (recipe.data.train_split, recipe.data.val_split):
        samples = open_split(recipe.data, labels, split)
        images = samples.with_format(None)["image"]
        for image, sample in zip(images, samples, strict=True):
            found[Path(image)] = names[sample["mask"]]
    return found


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_read_under_its_own_names(tmp_path, name):
    own = SETS[name]
    truth = paint(tmp_path / own.root, own, own.classes)
    found = opened(tmp_path / own.root)
    assert found.keys() == truth.keys()
    for image, names in found.items():
        np.testing.assert_array_equal(names, truth[image])


def test_every_set_of_the_table_is_drawn_here():
    drawn = {
        row.name
        for row in ROWS
        for own in SETS.values()
        if fnmatch(own.masks, f"{row.masks}/*{row.mask_suffix}.*")
    }
    assert drawn == {row.name for row in ROWS}
    assert len(drawn) > 15


def of_other_values(values: dict) -> dict:
    """Other ids or colours, of as many classes as before or, where two were, three."""
    if isinstance(next(iter(values)), str):
        return {f"{int(v, 16) ^ 0x321832:06x}": v for v in values} | {"5a3c96": "another"}
    count = len(values) + 1
    last = max(v for v in values if v < 255) + 1  # one that the set lacks
    return {raw: f"x{raw}" for raw in range(max(0, last - count + 1), max(count, last + 1))}


def partition(classes: np.ndarray, truth: np.ndarray) -> None:
    """Each class is one that was painted."""
    pairs = {*zip(classes.ravel().tolist(), truth.ravel().tolist(), strict=True)}
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


@pytest.mark.parametrize("name", [name for name in SETS if "vistas" not in name])
def test_a_folder_that_only_looks_like_a_set_keeps_its_classes(tmp_path, name):
    own = SETS[name]
    if own.masks.endswith((".jpg", ".gif")):
        own = replace(own, masks=own.masks[:-3] + "png")
    values = of_other_values(own.classes)
    truth = paint(tmp_path / own.root, replace(own, other={}), values)
    found = opened(tmp_path / own.root)
    assert found.keys() == truth.keys()
    official = {name for name in own.classes.values() if name} - {"background"}
    names = set()
    for image, classes in found.items():
        partition(classes, truth[image])
        names |= {*classes.ravel().tolist()}
    assert not names & official
    assert len(names) == len(values)


@pytest.mark.parametrize("name", ["pets", "loveda", "floodnet", "bdd100k", "isic-2018", "kvasir"])
def test_a_list_of_other_classes_beside_the_masks_wins(tmp_path, name):
    own = SETS[name]
    own = replace(own, masks=own.masks.replace(".jpg", ".png"))
    values = {k: v for k, v in own.classes.items() if v}
    own_names = {k: f"mine {'abcdefghijklmnopqrstu'[i]}" for i, k in enumerate(values)}
    truth = paint(tmp_path / own.root, own, own_names)
    if isinstance(next(iter(values)), str):
        lines = [f"{name} {' '.join(map(str, color(k)))}" for k, name in own_names.items()]
    else:
        lines = [f"{k}: {name}" for k, name in own_names.items()]
    (tmp_path / own.root / "classes.txt").write_text("\n".join(lines))
    for image, classes in opened(tmp_path / own.root).items():
        np.testing.assert_array_equal(classes, truth[image])


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("floodnet", "RescueNet"),
        ("kvasir", "kvasir-instrument"),
        ("deepglobe-roads", "houses"),
        ("pets", "pets"),
    ],
)
def test_common_folders_need_the_name_or_a_file_of_the_set(tmp_path, name, root):
    own = replace(SETS[name], root=root, other={})
    truth = paint(tmp_path / root, own, own.classes)
    found = opened(tmp_path / root)
    assert found.keys() == truth.keys()
    names = {str(name) for classes in found.values() for name in classes.ravel()}
    assert not names & ({*own.classes.values()} - {"background"})


def test_vistas_config_in_another_form_gives_no_names(tmp_path):
    own = replace(SETS["vistas-2.0"], other={"config_v2.0.json": '{"labels": 3}'})
    paint(tmp_path / own.root, own, own.classes)
    names = {str(n) for c in opened(tmp_path / own.root).values() for n in c.ravel()}
    assert names == {"class_0", "class_1", "class_2", "class_3"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("vistas-2.0", "vistas-1.2"),
        ("potsdam", "potsdam-no-boundary"),
        ("idd-ids", "idd-city"),
        ("bdd100k", "bdd100k-colormaps"),
    ],
)
def test_two_kinds_of_masks_are_a_question(tmp_path, one, other):
    sets = [replace(SETS[name], root="data") for name in (one, other)]
    if one == "potsdam":
        sets[1] = replace(sets[1], images=sets[0].images)
    truths = [paint(tmp_path / "data", own, own.classes) for own in sets]
    for own, truth in zip(sets, truths, strict=True):
        (tmp_path / "recipe.yaml").unlink(missing_ok=True)

        def choose(layouts, masks=own.masks):
            assert len(layouts) == 2
            patterns = [
                f"{layout.data['masks']}/*{layout.data.get('mask_suffix', '')}.*"
                for layout in layouts
            ]
            (place,) = [i for i, pattern in enumerate(patterns) if fnmatch(masks, pattern)]
            return layouts[place]

        found = opened(tmp_path / "data", choose)
        assert found.keys() == truth.keys()
        for image, names in found.items():
            np.testing.assert_array_equal(names, truth[image])


def test_two_terrains_of_loveda_and_two_flights_of_uavid(tmp_path):
    """Files of one name in two folders are two samples, each with the mask beside it."""
    for name, word, twin in (("loveda", "Urban", "Rural"), ("uavid", "seq1", "seq27")):
        root = tmp_path / name / SETS[name].root
        truth = paint(root, SETS[name], SETS[name].classes)
        own = replace(
            SETS[name],
            images=SETS[name].images.replace(word, twin),
            masks=SETS[name].masks.replace(word, twin),
            classes=dict(reversed(SETS[name].classes.items())),
        )
        truth |= paint(root, own, own.classes)
        found = opened(root)
        assert found.keys() == truth.keys()
        for image, names in found.items():
            np.testing.assert_array_equal(names, truth[image])


def test_pictures_beside_the_images_are_left_out_and_named(tmp_path):
    """ISIC 2017 has superpixels beside its images; SUIM's test masks are also kept one a class."""
    own = SETS["isic-2017"]
    truth = paint(tmp_path / "isic", own, own.classes)
    for image in truth:
        superpixels = image.with_name(image.stem + "_superpixels.png")
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(superpixels)
    assert opened(tmp_path / "isic").keys() == truth.keys()
    assert "ISIC_0000001_superpixels" in (tmp_path / "recipe.yaml").read_text()

    own = SETS["suim"]
    truth = paint(tmp_path / "suim/data", own, own.classes)
    (tmp_path / "suim/data/TEST/masks/RO").mkdir()
    alone = Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8))
    alone.save(tmp_path / "suim/data/TEST/masks/RO/d_r_122_.bmp")
    found = opened(tmp_path / "suim/data")
    assert found.keys() == {image for image in truth if "train_val" in str(image)}
    assert "TEST is not used" in (tmp_path / "suim/recipe.yaml").read_text()


@pytest.mark.parametrize("name", ["suim", "deepglobe-land"])
def test_channels_are_cut_at_a_half(tmp_path, name):
    own = SETS[name]
    truth = paint(tmp_path / own.root, own, own.classes)
    masks = sorted(file for file in (tmp_path / own.root).rglob("*") if "mask" in str(file))
    rng = np.random.default_rng(0)
    for file in filter(Path.is_file, masks):
        pixels = np.array(Image.open(file))
        where = rng.random((SIZE, SIZE)) < 0.02
        off = rng.integers(0, 120, (SIZE, SIZE, 3))
        pixels[where] = np.where(pixels > 127, 255 - off, off)[where]
        Image.fromarray(pixels).save(file)
    for image, names in opened(tmp_path / own.root).items():
        np.testing.assert_array_equal(names, truth[image])


PARTS = ("skin", "l_brow", "r_brow", "u_lip", "hair", "cloth")


def faces(root: Path, parts=PARTS, times=2) -> dict[Path, np.ndarray]:
    """CelebAMask-HQ, with masks of half the images' size; the names of pixels of each image."""
    truth = {}
    rng = np.random.default_rng(0)
    for n in (*range(5), 2000, 2001):
        image = root / f"CelebA-HQ-img/{n}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        photo = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(photo).save(image)
        names = np.full((SIZE // times, SIZE // times), "background", object)
        for place, part in enumerate(parts):
            if place and place == n:
                continue  # this face lacks it
            own = np.zeros(names.shape, np.uint8)
            own[2 * place : 2 * place + 8, n % 7 : n % 7 + 9] = 255
            names[own > 0] = part
            file = root / f"CelebAMask-HQ-mask-anno/{n // 2000}/{n:05d}_{part}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([own] * 3, -1)).save(file)
        truth[image] = names.repeat(times, 0).repeat(times, 1)
    return truth


@pytest.mark.parametrize("times", [1, 2])
def test_faces_have_a_file_for_each_part(tmp_path, times):
    truth = faces(tmp_path / "CelebAMask-HQ", times=times)
    found = opened(tmp_path / "CelebAMask-HQ")
    assert found.keys() == truth.keys()
    for image, names in found.items():
        np.testing.assert_array_equal(names, truth[image])


def test_parts_of_other_things_are_no_faces(tmp_path):
    faces(tmp_path / "data", parts=("wheel", "door", "hair"))
    with pytest.raises(UserError, match="no pairs of images and masks found"):
        opened(tmp_path / "data")


def test_faces_without_parts_and_parts_without_faces(tmp_path):
    faces(tmp_path)
    (tmp_path / "CelebA-HQ-img/3.jpg").unlink()
    (tmp_path / "CelebAMask-HQ-mask-anno/0/00001_skin.png").rename(
        tmp_path / "CelebAMask-HQ-mask-anno/0/00001_tail.png"
    )
    data = read_data({"source": "celebamask-hq", "path": str(tmp_path), "val_fraction": 0.2})
    labels = Labels.build(**PRESETS["celebamask-hq"])
    with pytest.raises(UserError, match="5 parts have no image, and 1 have no class"):
        open_split(data, labels, "train")
    faults = []
    whole = open_split(data, labels, "train", faults=faults)
    assert len(whole)
    assert {fault.kind for fault in faults} == {"mask-without-image", "mask-of-no-class"}


def test_each_preset_of_the_table_exists():
    blocks = [block for row in ROWS for block in row.known]
    assert len(blocks) > 20
    for block in blocks:
        assert with_preset(block)["names"]
        assert "preset" not in block or block["preset"] in PRESETS
