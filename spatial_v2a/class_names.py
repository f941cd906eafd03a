"""The sounding classes: what can be seen to make a sound; the order is the class index."""

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
