"""Builds the PK3 that turns the engine into a sound stage: actors, sounds, scripts, sprites."""

import io
import struct
import zipfile

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.training.stage.acs import assemble
from spatial_v2a.training.stage.cast import LOOKS, actor_name, decorate, lump_name, sndinfo
from spatial_v2a.training.stage.sounds import ENGINE_RATE_HZ, loop_for, single_footstep
from spatial_v2a.training.stage.wad import Wad

_PAD_BYTES = 16


def dmx_lump(loop_L: NDArray[np.float64]) -> bytes:
    """A DMX sound lump: 8-bit unsigned PCM at 44.1 kHz, the one format this engine build plays."""
    pcm = np.clip(np.round(127.5 + 127 * loop_L), 0, 255).astype(np.uint8).tobytes()
    pad = b"\x80" * _PAD_BYTES
    header = struct.pack("<HHI", 3, ENGINE_RATE_HZ, len(pcm) + 2 * _PAD_BYTES)
    return header + pad + pcm + pad


def _silence(num_samples: int) -> bytes:
    return dmx_lump(np.full(num_samples, 0.5 / 127))


def _sounds(sounding: set[str] | None) -> dict[str, bytes]:
    """Sound lumps; classes outside `sounding` (None: all sound) are replaced by silence."""
    lumps = {}
    for name in CLASS_NAMES:
        loop = loop_for(name)
        heard = sounding is None or name in sounding
        lumps[f"sounds/{lump_name(name)}.lmp"] = dmx_lump(loop) if heard else _silence(loop.size)
    for index in range(2):
        step = single_footstep(index)
        heard = sounding is None or "footsteps" in sounding
        lumps[f"sounds/SNDSTEP{index}.lmp"] = dmx_lump(step) if heard else _silence(step.size)
    return lumps


def _borrowed_sprites(iwad: Wad, donor: Wad) -> dict[str, bytes]:
    """Sprites of the cast that the loaded game file lacks, taken from the other Freedoom file."""
    wanted = {look.sprite for look in LOOKS.values()}
    wanted -= {name[:4] for name in iwad.sprite_names()}
    names = [n for n in donor.sprite_names() if n[:4] in wanted]
    # A backslash cannot stand in a file name of an archive; the engine reads ^ for it.
    return {f"sprites/{n.replace(chr(92), '^')}.lmp": donor.lump(n) for n in names}


def build_mod(
    iwad: Wad,
    donor: Wad,
    *,
    has_steps: bool,
    has_lookalikes: bool = False,
    sounding: set[str] | None = None,
) -> bytes:
    """The PK3 as bytes; same arguments, same bytes.

    Args:
        iwad: the game file it is loaded with.
        donor: the other Freedoom file, for sprites that `iwad` lacks.
        has_steps: whether the player's own steps sound.
        has_lookalikes: whether the maps' own things of a look of the cast stay.
        sounding: only these classes are heard; None is all of them.
    """
    actors = decorate(has_steps=has_steps, has_lookalikes=has_lookalikes)
    entries: dict[str, bytes] = {
        "DECORATE.txt": actors.encode("ascii"),
        "SNDINFO.txt": sndinfo().encode("ascii"),
        "LOADACS.txt": b"STAGEACS\n",
        "acs/STAGEACS.o": assemble([actor_name(n) for n in CLASS_NAMES]),
        "MAPINFO.txt": b'gameinfo\n{\n  playerclasses = "stage_player"\n}\n',
    }
    entries |= _sounds(sounding)
    entries |= _borrowed_sprites(iwad, donor)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()
