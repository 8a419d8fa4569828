"""Label sets by name: what `labels.preset` in a recipe stands for.

Each value of `PRESETS` holds keyword arguments of `finetune.labels.translation.Labels.build`.

Sources: ADE20K scene parsing, objectInfo150.txt (the first name of each row) and the colours
that mmsegmentation and the published demos use; Cityscapes, cityscapesScripts' labels.py (train
ids and the table of label ids); CamVid, the SegNet tutorial's 11 classes; Pascal VOC, its
development kit; COCO-Stuff, labels.txt of its repository; Oxford-IIIT Pet, the README of its
annotations; BDD100K, its `label.py`; IDD, `anue_labels.py` of AutoNUE/public-code; LoveDA and
iSAID, mmsegmentation's data sets, after the sets' own pages; UAVid, its paper and tool kit;
FloodNet, the README of its repository; SUIM, `data_utils.py` of xahidbuffon/SUIM; CelebAMask-HQ,
`g_mask.py` of its repository, whose order decides where parts overlap; DeepGlobe, the class_dict of
its land cover track; Potsdam and Vaihingen, the pages of ISPRS. The shapes are this package's own.
"""

from collections.abc import Sequence
from typing import Any

from finetune.labels.colors import RGB


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.replace("\n", " ").split(",")]


SYNONYMS = {"television receiver": "television"}
"""Class names in published models -> those of the official lists, which the presets follow."""


def official_names(names: Sequence[str]) -> list[str]:
    """Class names of a model as the presets write them."""
    return [SYNONYMS.get(name, name) for name in names]


def _colors(text: str) -> list[RGB]:
    return [(c[0], c[1], c[2]) for c in map(bytes.fromhex, text.split())]


_ADE20K_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade
machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
television, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming
pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step,
tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture,
hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin
board, shower, radiator, glass, clock, flag
"""

_ADE20K_COLORS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d
787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0
0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06
ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00
ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70
00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99
ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52
000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00
08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff
9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8
005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""

_CITYSCAPES_NAMES = _names(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
    "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle"
)
_CITYSCAPES_COLORS = _colors(
    "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 "
    "00008e 000046 003c64 005064 0000e6 770b20"
)
_CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)

_COCO_STUFF_NAMES = _names(
    """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball
bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife,
spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair,
couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone,
microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""
)
_COCO_STUFF_UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
_COCO_STUFF_VALUES = [value for value in range(182) if value not in _COCO_STUFF_UNUSED]


def _voc_colors(count: int) -> list[RGB]:
    """VOC's colour map: the bits of a class, three at a time, from the top of each channel down."""

    def level(value: int, channel: int) -> int:
        return sum((value >> (3 * place + channel) & 1) << (7 - place) for place in range(8))

    return [(level(value, 0), level(value, 1), level(value, 2)) for value in range(count)]


_IDD_NAMES = _names(
    "road, parking, drivable fallback, sidewalk, rail track, non-drivable fallback, person, "
    "animal, rider, motorcycle, bicycle, autorickshaw, car, truck, bus, caravan, trailer, train, "
    "vehicle fallback, curb, wall, fence, guard rail, billboard, traffic sign, traffic light, "
    "pole, polegroup, obs-str-bar-fallback, building, bridge, tunnel, vegetation, sky, "
    "fallback background"
)
_IDD_COLORS = _colors(
    "804080 faaaa0 510051 f423e8 e6968c 98fb98 dc143c f6c691 ff0000 0000e6 770b20 ffcc36 00008e "
    "000046 003c64 00005a 00006e 005064 888f99 dcbe28 66669c be9999 b4a5b4 ae4043 dcdc00 faaa1e "
    "999999 999999 a9bbd6 464646 966464 96785a 6b8e23 4682b4 a9bbd6"
)
_IDD_LEVEL3 = (0, 2, 3, 5, 6, *range(8, 15), 18, *range(19, 27), 28, 29, 30, 32, 33)
"""The id that names each class of level 3; the other ids belong to the class of a neighbour."""
_ISPRS = {
    "kind": "colors",
    "names": _names("impervious surfaces, building, low vegetation, tree, car, clutter"),
    "colors": _colors("ffffff 0000ff 00ffff 00ff00 ffff00 ff0000"),
    "ignore": ["#000000"],  # the border of objects, in the files noBoundary
}


PRESETS: dict[str, dict[str, Any]] = {
    "shapes": {
        "names": ["background", "disc", "square", "triangle", "star", "ring"],
        "colors": _colors("464646 e6554b 468ce6 f5c83c 5fb95f aa5fcd"),
    },
    # Raw 0 is "other objects" and not a class; 1..150 become 0..149.
    "ade20k": {
        "names": _names(_ADE20K_NAMES),
        "colors": _colors(_ADE20K_COLORS),
        "reduce_zero": True,
    },
    # Raw values are train ids (*_labelTrainIds.png), not the 34 label ids.
    "cityscapes": {"names": _CITYSCAPES_NAMES, "colors": _CITYSCAPES_COLORS, "ignore": [255]},
    # Raw values are the 34 label ids (*_labelIds.png), translated by the official table.
    "cityscapes-label-ids": {
        "names": _CITYSCAPES_NAMES,
        "colors": _CITYSCAPES_COLORS,
        "map": {
            **dict.fromkeys([-1, *range(7), 9, 10, 14, 15, 16, 18, 29, 30]),
            **{raw: i for i, raw in enumerate(_CITYSCAPES_LABEL_IDS)},
        },
        "ignore": [],
    },
    "voc": {
        "names": _names(
            "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, "
            "diningtable, dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
        ),
        "colors": _voc_colors(21),
        "ignore": [255],  # the border of objects
    },
    # Raw values are those of stuffthingmaps: category ids of 1 to 182 less one, 11 of them unused.
    "coco-stuff": {
        "names": _COCO_STUFF_NAMES,
        "map": {raw: i for i, raw in enumerate(_COCO_STUFF_VALUES)},
        "ignore": [255],
    },
    "camvid": {
        "names": _names(
            "sky, building, pole, road, pavement, tree, sign symbol, fence, car, pedestrian, "
            "bicyclist"
        ),
        "colors": _colors(
            "808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"
        ),
        "ignore": [11],  # unlabelled
    },
    "oxford-pets": {
        "names": ["foreground", "background", "not classified"],
        "map": {1: 0, 2: 1, 3: 2},
    },
    "bdd100k-drivable": {"names": ["direct", "alternative", "background"]},
    "idd": {
        "names": _IDD_NAMES,
        "colors": _IDD_COLORS,
        "ignore": [*range(35, 40), 255],  # unlabeled, ego vehicle, ..., license plate
    },
    "idd-level3": {
        "names": [_IDD_NAMES[i] for i in _IDD_LEVEL3],
        "colors": [_IDD_COLORS[i] for i in _IDD_LEVEL3],
    },
    "idd-lite": {
        "names": _names(
            "drivable, non-drivable, living things, vehicles, roadside objects, far objects, sky"
        ),
    },
    # Raw 0 is "no data" and not a class.
    "loveda": {
        "names": _names("background, building, road, water, barren, forest, agriculture"),
        "colors": _colors("ffffff ff0000 ffff00 0000ff 9f81b7 00ff00 ffc380"),
        "reduce_zero": True,
    },
    "uavid": {
        "kind": "colors",
        "names": _names(
            "background clutter, building, road, tree, low vegetation, moving car, static car, "
            "human"
        ),
        "colors": _colors("000000 800000 804080 008000 808000 400080 c000c0 404000"),
    },
    "floodnet": {
        "names": _names(
            "background, building-flooded, building-non-flooded, road-flooded, road-non-flooded, "
            "water, tree, vehicle, pool, grass"
        ),
    },
    # Each channel means 0 or 1, below or above a half.
    "suim": {
        "kind": "colors",
        "names": _names(
            "background waterbody, human divers, plants and sea-grass, wrecks and ruins, robots "
            "and instruments, reefs and invertebrates, fish and vertebrates, sand and sea-floor"
        ),
        "colors": _colors("000000 0000ff 00ff00 00ffff ff0000 ff00ff ffff00 ffffff"),
        "tolerance": 127,
    },
    "celebamask-hq": {
        "names": _names(
            "background, skin, nose, eye_g, l_eye, r_eye, l_brow, r_brow, l_ear, r_ear, mouth, "
            "u_lip, l_lip, hair, hat, ear_r, neck_l, neck, cloth"
        ),
        "background": "background",
        "ignore": [],
    },
    # Each channel means 0 or 1, below or from 128 on.
    "deepglobe-land-cover": {
        "kind": "colors",
        "names": _names("urban_land, agriculture_land, rangeland, forest_land, water, barren_land"),
        "colors": _colors("00ffff ffff00 ff00ff 00ff00 0000ff ffffff"),
        "ignore": ["#000000"],  # unknown
        "tolerance": 127,
    },
    "isaid": {
        "kind": "colors",
        "names": _names(
            "background, ship, storage tank, baseball diamond, tennis court, basketball court, "
            "ground track field, bridge, large vehicle, small vehicle, helicopter, swimming pool, "
            "roundabout, soccer ball field, plane, harbor"
        ),
        "colors": _colors(
            "000000 00003f 003f3f 003f00 003f7f 003fbf 003fff 007f3f 007f7f 00007f 0000bf 0000ff "
            "00bf7f 007fbf 007fff 00649b"
        ),
    },
    "potsdam": _ISPRS,
    "vaihingen": _ISPRS,
}
