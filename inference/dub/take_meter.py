"""What is kept of one take while it streams by: enough to score and to draw it.

Legend: L samples, C audio channels, T ticks, E energies (left^2, right^2, product).
"""

import numpy as np

from spatial_v2a.audio.onsets import OnsetMeter
from spatial_v2a.audio.stereo import SILENT_DBFS, StereoMeter, level_dbfs
from spatial_v2a.inference.dub.take_faults import FaultMeter


class TakeMeter:
    """Measures one take tick by tick; about 35 bytes a tick and 2.4 seconds of sound.

    Attributes:
        faults: clicks, clipped samples and cuts.
        onsets: when sounds begin, and how strongly.
    """

    def __init__(self) -> None:
        self._stereo = StereoMeter()
        self.faults = FaultMeter()
        self.onsets = OnsetMeter()

    def add(self, audio_LC: np.ndarray) -> None:
        """Adds one tick of sound, float [L, 2], full scale 1."""
        self._stereo.add(audio_LC)
        self.faults.add(audio_LC)
        self.onsets.add(audio_LC)

    @property
    def energies_TE(self) -> np.ndarray:
        """Stereo energies of each tick [T, 3], as in `spatial_v2a.audio.stereo`."""
        return self._stereo.energies_TE

    @property
    def is_audible_T(self) -> np.ndarray:
        """Ticks above SILENT_DBFS."""
        return level_dbfs(self.energies_TE) > SILENT_DBFS
