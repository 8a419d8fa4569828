"""Label sets by name: what `labels.preset` in a recipe stands for.

Each value of `PRESETS` holds keyword arguments of `finetune.labels.translation.Labels.build`.

Sources: ADE20K scene parsing, objectInfo150.txt (the first name of each row) and the colours
that mmsegmentation and the published demos use; Cityscapes, cityscapesScripts' labels.py (train
ids and the table of label ids); CamVid, the SegNet tutorial's 11 classes; Pascal VOC, its
development kit; COCO-Stuff, labels.txt of its repository. The shapes are this package's own.
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
}
