"""The scenes of the shapes world: one sprite that moves over a background, drawn with a caption.

A clip has 16 frames of 32 x 32 pixels at 8 frames per second. Its attributes are known exactly
because it is drawn here; `evaluation/probes.py` reads them from the pixels of generated clips.
"""

import hashlib
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

FRAMES, SIZE, FPS = 16, 32, 8
SPRITE = 12  # pixels, each side
REACH = SIZE - SPRITE  # largest coordinate of a sprite's top left corner

_BITMAPS = {  # '#' body, 'o' eye, '.' nothing
    "circle": """
        ....####....
        ..########..
        .##########.
        .##########.
        ###oo##oo###
        ###oo##oo###
        ############
        ############
        .##########.
        .##########.
        ..########..
        ....####....""",
    "square": """
        ############
        ############
        ############
        ############
        ###oo##oo###
        ###oo##oo###
        ############
        ############
        ############
        ############
        ############
        ############""",
    "triangle": """
        .....##.....
        .....##.....
        ....####....
        ....####....
        ...######...
        ...######...
        ..#oo##oo#..
        ..#oo##oo#..
        .##########.
        .##########.
        ############
        ############""",
    "star": """
        .....##.....
        .....##.....
        ....####....
        ############
        .##oo##oo##.
        ..#oo##oo#..
        ...######...
        ..########..
        ..########..
        .####..####.
        .##......##.
        ............""",
    "heart": """
        ............
        ..###..###..
        .####..####.
        ############
        ###oo##oo###
        ###oo##oo###
        .##########.
        ..########..
        ...######...
        ....####....
        .....##.....
        ............""",
    "ghost": """
        ...######...
        ..########..
        .##########.
        .##########.
        ###oo##oo###
        ###oo##oo###
        ############
        ############
        ############
        ############
        ##..####..##
        #....##....#""",
}
SPRITES = {
    name: np.array([list(row.strip()) for row in bitmap.split()])
    for name, bitmap in _BITMAPS.items()
}
EYE = (25, 20, 35)
COLOURS = {
    "red": (225, 40, 45),
    "orange": (250, 140, 30),
    "yellow": (250, 220, 60),
    "green": (45, 170, 70),
    "blue": (50, 90, 235),
    "purple": (155, 60, 205),
}
BACKGROUNDS = {  # name: (top, bottom strip of 6 rows, words)
    "black": ((12, 12, 14), (12, 12, 14), "on a black background"),
    "white": ((245, 245, 242), (245, 245, 242), "on a white background"),
    "night": ((28, 30, 78), (28, 30, 78), "in the night sky"),
    "meadow": ((160, 215, 245), (110, 195, 95), "over a meadow"),
    "desert": ((250, 225, 180), (220, 178, 115), "in the desert"),
}
STARS = ((2, 5), (4, 24), (9, 14), (13, 29), (17, 3), (21, 20), (26, 9), (29, 27))  # row, column
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "jumping",
    "circling",
    "blinking",
    "standing still",
)
TEMPLATES = (
    "a {colour} {shape} {motion} {place}",
    "a {colour} {shape} is {motion} {place}",
    "{place}, a {colour} {shape} {motion}",
)

WORDS: dict[str, tuple[str, ...]] = {  # of each attribute
    "colour": tuple(COLOURS),
    "shape": tuple(SPRITES),
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
}


@dataclass(frozen=True)
class Scene:
    """The four attributes that a caption names."""

    colour: str
    shape: str
    motion: str
    background: str

    def caption(self, template: str = TEMPLATES[0]) -> str:
        """Return the caption in one of the wordings."""
        place = BACKGROUNDS[self.background][2]
        words = {"colour": self.colour, "shape": self.shape, "motion": self.motion}
        return template.format(place=place, **words).replace("a orange", "an orange")

    @property
    def is_held_out(self) -> bool:
        """Whether no model is trained on this scene: about one in seven, chosen by a hash."""
        return hashlib.sha256(repr(self).encode()).digest()[0] < 36


SCENES = tuple(Scene(*words) for words in product(COLOURS, SPRITES, MOTIONS, BACKGROUNDS))
TRAIN_SCENES = tuple(scene for scene in SCENES if not scene.is_held_out)
HELD_OUT_SCENES = tuple(scene for scene in SCENES if scene.is_held_out)


def reword(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """Return the scene with another word for one attribute. A training scene remains one."""
    words = (word for word in WORDS[attribute] if word != getattr(scene, attribute))
    others = [replace(scene, **{attribute: word}) for word in words]
    if not scene.is_held_out:
        others = [other for other in others if not other.is_held_out]
    return others[rng.integers(len(others))]


def draw_background(name: str) -> np.ndarray:
    """Return the background, uint8 (SIZE, SIZE, 3)."""
    sky, ground, _ = BACKGROUNDS[name]
    image = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    image[:], image[-6:] = sky, ground
    if name == "night":
        for row, column in STARS:
            image[row, column] = (235, 235, 190)
    return image


def draw_track(motion: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the track of the sprite.

    Coordinates are even, so that a sprite has few positions relative to the latent grid and a small
    network learns to draw it sharply.

    Returns:
        top left corners (FRAMES, 2) as (row, column), in pixels; visible (FRAMES,).
    """
    frame = np.arange(FRAMES)
    start = 4 * rng.integers(0, REACH // 4 + 1, size=2)
    track = np.tile(start, (FRAMES, 1))
    visible = np.ones(FRAMES, dtype=bool)
    run = 2 * (frame // 2)  # 14 pixels in all
    near = 4 * rng.integers(0, 2)
    match motion:
        case "moving left":
            track[:, 1] = REACH - near - run
        case "moving right":
            track[:, 1] = near + run
        case "moving up":
            track[:, 0] = REACH - near - run
        case "moving down":
            track[:, 0] = near + run
        case "jumping":
            track[:, 0] = REACH - np.array([0, 6, 10, 12, 12, 10, 6, 0])[frame % 8]
        case "circling":
            angle = 2 * np.pi * frame / FRAMES
            centre = 4 * rng.integers(2, 4, size=2)
            spin = np.stack([np.sin(angle), np.cos(angle)], axis=1)
            track = centre + 2 * np.round(3.6 * spin).astype(int)
        case "blinking":
            visible = frame % 8 < 4
        case "standing still":
            pass
        case _:
            raise ValueError(f"Expected one of {MOTIONS}, got {motion!r}.")
    return track, visible


def draw_clip(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a clean clip, uint8 (FRAMES, SIZE, SIZE, 3)."""
    bitmap = SPRITES[scene.shape]
    clip = np.tile(draw_background(scene.background), (FRAMES, 1, 1, 1))
    track, visible = draw_track(scene.motion, rng)
    for image, (row, column), shown in zip(clip, track, visible, strict=True):
        if shown:
            window = image[row : row + SPRITE, column : column + SPRITE]
            window[bitmap == "#"] = COLOURS[scene.colour]
            window[bitmap == "o"] = EYE
    return clip


@dataclass(frozen=True)
class Defects:
    """Probabilities of the defects of scraped web video, as in WebVid, in [0, 1]."""

    watermark: float = 0.25
    washed_out: float = 0.2
    noise: float = 0.15
    wrong_caption: float = 0.08


WATERMARK = np.array(
    [
        list("#.#.#.###.#.#.###.###.#.#"),
        list("#.#.#.#.#.##..#.#.#...##."),
        list("#.#.#.###.#.#.###.#...#.#"),
    ]
)  # in place of the name of a stock footage site
WATERMARK_AT = (15, 4)  # row, column
WATERMARK_GREY = 200
WASH_OUT, WASH_OUT_GREY = 0.45, 170  # remaining contrast, and the grey that it fades to


def corrupt_clip(clip: np.ndarray, defects: Defects, rng: np.random.Generator) -> np.ndarray:
    """Add randomly chosen image defects to a clip, uint8."""
    pixels = clip.astype(np.float32)
    if rng.random() < defects.washed_out:
        pixels = WASH_OUT * pixels + (1 - WASH_OUT) * WASH_OUT_GREY
    if rng.random() < defects.watermark:
        (row, column), (height, width) = WATERMARK_AT, WATERMARK.shape
        window = pixels[:, row : row + height, column : column + width]
        window[:, WATERMARK == "#"] = 0.35 * window[:, WATERMARK == "#"] + 0.65 * WATERMARK_GREY
    if rng.random() < defects.noise:
        pixels += rng.normal(0, 18, pixels.shape)
    return pixels.clip(0, 255).round().astype(np.uint8)


def draw_caption(scene: Scene, defects: Defects, rng: np.random.Generator) -> str:
    """Draw a caption of the scene, sometimes with one wrong attribute as in web captions."""
    if rng.random() < defects.wrong_caption:
        scene = reword(scene, str(rng.choice([*WORDS])), rng)
    return scene.caption(TEMPLATES[rng.integers(len(TEMPLATES))])


def draw_example(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Draw one training example: (clip uint8 (FRAMES, SIZE, SIZE, 3), caption)."""
    scene, defects = TRAIN_SCENES[rng.integers(len(TRAIN_SCENES))], Defects()
    return corrupt_clip(draw_clip(scene, rng), defects, rng), draw_caption(scene, defects, rng)
