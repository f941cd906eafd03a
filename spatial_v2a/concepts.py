"""The concept bank: what a thing that is seen sounds like, whatever detector gave it its name.

    find_concept("Sports Car").name    # "car"
    find_concept("hot dog")            # None: silent

A detector's class names become concepts here, by name or by their words, and nowhere else. A
concept that today's generator has no sound for (`sound` None) is silent until one learns it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from spatial_v2a.errors import UserError

Clock = Literal["steps", "revolutions", "strokes", "none"]
# What an override and the list of sounds call the absence of a concept.
SILENT = "silent"


@dataclass(frozen=True)
class Concept:
    """One thing that sounds.

    Attributes:
        name: unique, one word or joined by underscores.
        sound: class of the generator that it is heard as, or None where there is none yet.
        height_m: usual height, from which its distance is read; 0 where it has no usual one.
        level_db: usual level against a person's steps at the same distance, dB.
        sounds_at_rest: whether it is heard without moving.
        clock: what its events follow.
        synonyms: other names, lower case.
        variants: manners that can be asked for (`footsteps:gravel`).
    """

    name: str
    sound: str | None
    height_m: float
    level_db: float
    sounds_at_rest: bool
    clock: Clock
    synonyms: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


def _row(
    name: str,
    sound: str | None,
    height_m: float,
    level_db: float,
    clock: Clock,
    synonyms: str,
    *,
    rest: bool = False,
    variants: tuple[str, ...] = (),
) -> Concept:
    words = tuple(word.strip() for word in synonyms.split(",") if word.strip())
    return Concept(name, sound, height_m, level_db, rest, clock, words, variants)


# A trained generator counts on the order: append, never reorder or remove.
# fmt: off
CONCEPTS: tuple[Concept, ...] = (
    # On foot.
    _row("footsteps", "footsteps", 1.7, 0, "steps",
         "person, pedestrian, man, woman, boy, girl, child, people, human, player, soldier, guard,"
         " walker, walking, policeman, worker, zombie, monster, enemy, character, steps",
         variants=("gravel",)),
    _row("running", "footsteps", 1.7, 6, "steps", "runner, jogger, running, sprinter"),
    _row("crowd", "footsteps", 1.7, 8, "steps", "crowd, audience, group of people"),
    # On wheels and rails.
    _row("bicycle", None, 1.1, -6, "revolutions", "bike, cyclist, tricycle, cycling"),
    _row("scooter", None, 1.0, -6, "revolutions", "kick scooter, hoverboard, wheelchair, stroller"),
    _row("skateboard", None, 0.15, 6, "revolutions", "skateboarder, roller skates"),
    _row("car", "engine", 1.5, 14, "revolutions",
         "suv, van, sports car, taxi, sedan, pickup truck, pickup, formula 1, race car, minivan,"
         " jeep, automobile, police car, vehicle, kart, buggy"),
    _row("motorcycle", "engine", 1.3, 18, "revolutions",
         "motorbike, moped, motor scooter, rickshaw, quad bike"),
    _row("bus", "engine", 3.0, 18, "revolutions", "coach bus, minibus, double decker"),
    _row("truck", "engine", 3.2, 20, "revolutions", "heavy truck, lorry, trailer truck, tank"),
    _row("fire_truck", "siren", 3.2, 30, "none", "fire truck, fire engine, ambulance"),
    _row("train", "machinery", 3.8, 26, "revolutions", "locomotive, subway, metro, railway"),
    _row("tram", "machinery", 3.5, 20, "revolutions", "streetcar, trolleybus, cable car"),
    _row("carriage", "footsteps", 2.2, 8, "steps", "cart, horse cart, horse carriage"),
    _row("tractor", "engine", 2.6, 20, "revolutions",
         "excavator, bulldozer, machinery vehicle, forklift, digger, crane, combine harvester"),
    # In the air and on the water.
    _row("aeroplane", "engine", 4.0, 34, "revolutions", "airplane, plane, aircraft, propeller"),
    _row("jet", None, 5.0, 40, "none", "fighter jet, airliner, rocket, spaceship"),
    _row("helicopter", "helicopter", 3.5, 34, "revolutions", "chopper, drone, quadcopter",
         rest=True),
    _row("boat", "engine", 2.0, 14, "revolutions", "ship, motorboat, speedboat, ferry, jet ski"),
    _row("sailing_boat", "water", 6.0, 4, "none", "sailboat, rowing boat, canoe, kayak, surfboard"),
    # Animals.
    _row("dog", "dog", 0.6, 12, "none", "puppy, wolf, hound"),
    _row("cat", None, 0.3, 2, "none", "kitten"),
    _row("horse", "footsteps", 2.0, 10, "steps",
         "pony, donkey, zebra, mule, camel, deer, antelope"),
    _row("cow", None, 1.5, 12, "none", "cattle, bull, ox, yak, buffalo"),
    _row("sheep", None, 1.0, 8, "none", "goat, lamb"),
    _row("pig", None, 0.8, 8, "none", "boar, hog"),
    _row("bird", None, 0.25, 2, "none",
         "wild bird, pigeon, parrot, sparrow, gull, swan, duck, goose, chicken, hen, rooster,"
         " penguin, owl"),
    _row("crow", "crow", 0.4, 8, "none", "raven, magpie"),
    _row("frog", "frog", 0.1, 2, "none", "toad", rest=True),
    _row("large_animal", "footsteps", 2.5, 12, "steps",
         "elephant, giraffe, bear, rhino, hippo, lion, tiger, dinosaur, dragon, gorilla"),
    _row("monkey", None, 0.9, 8, "none", "ape, chimpanzee"),
    _row("insect", None, 0.02, -10, "none", "bee, fly, wasp, mosquito, butterfly"),
    # Play and sport.
    _row("ball", None, 0.22, 6, "none",
         "sports ball, soccer, football, basketball, volleyball, tennis ball, other balls,"
         " baseball, golf ball, american football, table tennis, tennis"),
    _row("racket", None, 0.7, 4, "strokes", "tennis racket, table tennis paddle, baseball bat"),
    # About the house and the street.
    _row("door", None, 2.0, 6, "none", "gate, garage door"),
    _row("clock", "clock", 0.3, -10, "none", "wall clock, grandfather clock", rest=True),
    _row("phone", None, 0.15, 0, "none", "telephone, cell phone, mobile phone, smartphone"),
    _row("siren", "siren", 0.5, 28, "none", "warning light", rest=True),
    _row("alarm", "alarm", 0.3, 22, "none", "alarm clock, smoke detector, fire alarm", rest=True),
    _row("bell", "bell", 0.6, 20, "strokes", "church bell, gong, cymbal", rest=True),
    _row("horn", "horn", 0.5, 24, "none", "foghorn, car horn, megaphone, trumpet, tuba, trombone"),
    _row("fire", "fire", 1.0, 4, "none", "campfire, bonfire, fireplace, flame, burning, torch",
         rest=True),
    _row("water", "water", 1.5, 6, "none",
         "fountain, waterfall, river, stream, sea, ocean, wave, faucet, showerhead, tap",
         rest=True),
    _row("rain", None, 0, 6, "none", "rainfall, storm", rest=True),
    _row("wind", None, 0, 4, "none", "wind turbine, windmill, gust", rest=True),
    _row("steam", "steam", 1.0, 10, "none", "kettle, geyser, steam vent, steam pipe", rest=True),
    _row("electricity", "electric", 1.0, 6, "none",
         "electric, spark, transformer, power line, tesla coil, lightning", rest=True),
    _row("drill", "drill", 0.3, 22, "revolutions", "electric drill, jackhammer, pneumatic drill",
         rest=True),
    _row("saw", "saw", 0.4, 24, "revolutions", "chainsaw, circular saw", rest=True),
    _row("machinery", "machinery", 1.5, 16, "revolutions",
         "generator, pump, conveyor, washing machine, drying machine, factory", rest=True),
    _row("engine", "engine", 1.0, 14, "revolutions", "motor, lawn mower, compressor", rest=True),
    _row("hammer", None, 0.3, 14, "strokes", "anvil, mallet"),
    _row("fan", None, 0.4, 0, "revolutions", "air conditioner, ventilator, hair dryer, hair drier"),
    # Voices, music, weapons.
    _row("voice", "voice", 1.7, 6, "none", "singer, speaker person, ghost", rest=True),
    _row("music_box", "music_box", 0.3, 4, "strokes", "jukebox, gramophone", rest=True),
    _row("drum", None, 0.6, 20, "strokes", "drum kit, drummer"),
    _row("instrument", None, 0.8, 12, "strokes",
         "musical instrument, guitar, piano, violin, cello, saxophone, flute, harp"),
    _row("gunshot", None, 0.3, 40, "none", "gun, rifle, pistol, cannon, turret, shotgun"),
    _row("explosion", None, 2.0, 46, "none", "blast, fireball, bomb, grenade"),
    _row("impact", None, 0.5, 16, "none", "crash, collision, breaking glass"),
)
# fmt: on

# Names whose words would mislead: things that are no animal, no fire, no vehicle, or only a part.
_SILENT_NAMES = frozenset(
    name.strip()
    for name in (
        "hot dog, teddy bear, stuffed toy, toy car, toy, fire hydrant, fire extinguisher, mouse,"
        " computer mouse, stop sign, hot-air balloon, hot air balloon, speaker, french fries, wine"
        " glass, speed limit sign, crosswalk sign, traffic sign, street lights, traffic light,"
        " parking meter, water bottle, water glass, bell pepper, horse saddle, bird cage, dog bed,"
        " cat tree, car wheel, car seat, car door, boat paddle, clock tower, gun holster,"
        " surveillance camera, gas stove, phone booth, head phone, french horn, cd player, record"
        " player, fish tank, water tank, storage tank, home plate, champagne flute, garden gate"
    ).split(",")
)
# A phrase names its thing before one of these: "man with dog" is a man.
_JOINING_WORDS = r"\b(?:with|of|in|on|at|near|by|holding|wearing|riding|carrying|behind|from)\b"


def concept(name: str) -> Concept:
    """The concept of that name.

    Raises:
        UserError: there is none; the line lists those that begin alike, or how to list all.
    """
    found = _by_name().get(name)
    if found is None:
        raise UserError(f"no concept {name!r}; `spatial-v2a sounds` lists all of them")
    return found


@cache
def _by_name() -> dict[str, Concept]:
    return {each.name: each for each in CONCEPTS}


@cache
def _by_phrase() -> dict[str, Concept]:
    """Concepts by their names and synonyms, as `_words` spells them."""
    phrases: dict[str, Concept] = {}
    for each in CONCEPTS:
        for phrase in (each.name, *each.synonyms):
            other = phrases.setdefault(" ".join(_words(phrase)), each)
            assert other is each, f"{phrase!r} stands for {other.name} and for {each.name}"
    return phrases


@cache
def find_concept(name: str) -> Concept | None:
    """What a visual name of any detector sounds like; None is silence.

    The whole name is looked up first, then its last words: the thing itself, which the words before
    it describe ("police car" is a car, "dog food" silent). A slash separates alternatives.

    Args:
        name: of a class of a detector, in any case, with any separators.
    """
    whole = " ".join(_words(name))
    if whole in _by_phrase():
        return _by_phrase()[whole]
    alternatives = [re.split(_JOINING_WORDS, part)[0] for part in name.lower().split("/")]
    spelled = [_words(part) for part in alternatives]
    for num_cut in range(max(map(len, spelled))):
        for words in spelled:
            phrase = " ".join(words[num_cut:])
            if phrase in _silent_phrases():
                return None
            if phrase in _by_phrase():
                return _by_phrase()[phrase]
    return None


def _words(text: str) -> list[str]:
    """Lower-case words of a name, each in the singular."""
    return [_singular(word) for word in re.split(r"[\W_]+", text.lower()) if word]


@cache
def _silent_phrases() -> frozenset[str]:
    return frozenset(" ".join(_words(name)) for name in _SILENT_NAMES)


def _singular(word: str) -> str:
    if word in ("bus", "ss") or len(word) < 4 or word.endswith(("ss", "us")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


class SoundMap:
    """What the class names of one detector sound like, with a user's overrides.

    Args:
        names: the detector's class names, in the order of its indices.
        overrides: result of `parse_sounds`.

    Attributes:
        concepts: the concept of every index, None where it is silent.

    Raises:
        UserError: an override names what the detector does not know.
    """

    def __init__(
        self, names: tuple[str, ...], overrides: Mapping[str, Concept | None] | None = None
    ) -> None:
        overrides = overrides or {}
        found = [(name, find_concept(name)) for name in names]
        for key in overrides:
            if not any(_is_meant(key, name, known) for name, known in found):
                raise UserError(
                    f"--sound {key}=...: the detector sees no {key!r}; it knows"
                    f" {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
                )
        self.concepts = tuple(_overridden(name, known, overrides) for name, known in found)


def _is_meant(key: str, name: str, known: Concept | None) -> bool:
    """Whether an override's key means a class: by its visual name, or by the concept it has."""
    return _words(key) == _words(name) or (known is not None and key == known.name)


def _overridden(
    name: str, known: Concept | None, overrides: Mapping[str, Concept | None]
) -> Concept | None:
    # A visual name says more than a concept, whatever order they come in.
    for key, value in overrides.items():
        if _words(key) == _words(name):
            return value
    if known is not None and known.name in overrides:
        return overrides[known.name]
    return known


def parse_sounds(text: str) -> dict[str, Concept | None]:
    """Overrides from a command line's words: `car=engine,person=footsteps:gravel,tv=silent`.

    Args:
        text: pairs NAME=SOUND, separated by commas. NAME is a class name of the detector or a
            concept; SOUND a concept or a synonym of one, `silent`, or `concept:variant`.

    Raises:
        UserError: a pair is not NAME=SOUND, a name comes twice, or a sound is unknown or has none.
    """
    overrides: dict[str, Concept | None] = {}
    for pair in text.split(","):
        key, equals, value = (part.strip().lower() for part in pair.partition("="))
        if not (key and equals and value):
            raise UserError(f"--sound {pair.strip()!r} is not NAME=SOUND; write car=engine, say")
        if key in overrides:
            raise UserError(f"--sound {key} is given twice; leave one of them out")
        overrides[key] = _asked_for(value)
    return overrides


def _asked_for(text: str) -> Concept | None:
    if text == SILENT:
        return None
    name, colon, variant = (part.strip() for part in text.partition(":"))
    found = _by_name().get(name) or _by_phrase().get(" ".join(_words(name)))
    if found is None:
        raise UserError(
            f"--sound {text}: no such sound; `spatial-v2a sounds` lists them, or write {SILENT}"
        )
    if found.sound is None:
        raise UserError(
            f"--sound {text}: {found.name} has no sound in this checkpoint yet;"
            " `spatial-v2a sounds` lists those that have"
        )
    if colon and variant not in found.variants:
        known = ", ".join(f"{found.name}:{each}" for each in found.variants) or "none"
        raise UserError(f"--sound {text}: {found.name} has no variant {variant!r}; known: {known}")
    return found


def sound_index(found: Concept) -> int | None:
    """Index in CLASS_NAMES of a concept's sound; None where it has none."""
    return None if found.sound is None else CLASS_NAMES.index(found.sound)


# Appending is safe; reordering or removing a name breaks every trained checkpoint.
CLASS_NAMES: tuple[str, ...] = (
    "footsteps",
    "engine",
    "water",
    "fire",
    "siren",
    "bell",
    "dog",
    "crow",
    "voice",
    "electric",
    "drill",
    "steam",
    "clock",
    "helicopter",
    "machinery",
    "alarm",
    "frog",
    "music_box",
    "saw",
    "horn",
)
NUM_CLASSES = len(CLASS_NAMES)


def class_index(name: str) -> int:
    """Index of a class name in CLASS_NAMES; an unknown name is a ValueError."""
    try:
        return CLASS_NAMES.index(name)
    except ValueError:
        raise ValueError(f"unknown class {name!r}; choose from {', '.join(CLASS_NAMES)}") from None


# Names that `--detector` takes besides those of detectors: which fits the video, and the
# checkpoint's own.
AUTO, STAGE = "auto", "stage"
# The 80 classes of COCO 2017, in the order published YOLO11 weights use.
_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)


def vocabulary_names(vocabulary: Literal["stage", "coco"]) -> tuple[str, ...]:
    """Names of a vocabulary in index order."""
    return CLASS_NAMES if vocabulary == "stage" else tuple(_COCO_NAMES.split(","))
