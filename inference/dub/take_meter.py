"""What is kept of a take while it streams by, to score and draw it: faults, onsets, energies.

Legend: L samples, C audio channels, N differences, T ticks, H hops,
E energies (left^2, right^2, product).
"""

from array import array

import numpy as np

from spatial_v2a.audio.onsets import OnsetMeter
from spatial_v2a.audio.stereo import MIN_CLIP_RUN, SILENT_DBFS, StereoMeter, level_dbfs
from spatial_v2a.timing import TIMING

# A click is a jump that its own past cannot foretell and that leaves nothing behind. The residual
# of the fixed polynomial predictor of order 3 (Robinson 1994, "Shorten") is compared with its
# neighbourhood, as click detectors do with autoregressive residuals (Godsill and Rayner 1998,
# chapter 5). An attack goes on for more than 1.5 ms, a click does not. Largest ratio on 40 game
# sounds: 8, and 28 for a frog whose recording jumps; a click of 0.1 reads 100 to 270, in loud
# steam, which hides it, 7.
PREDICTOR_ORDER = 3
SKIP_SAMPLES = 4
REACH_SAMPLES = 72
CLICK_RATIO = 12.0
# Added to the neighbourhood: a jump below about -50 dBFS is no click even in silence.
CLICK_FLOOR = 1e-3

# 16-bit full scale; what lies beyond is cut off when the file is written.
FULL_SCALE = 32767 / 32768

# A cut is a fall by this much within 8 ms. Sounds begin suddenly but die away: of 40 game sounds
# only the alarms fall as fast, gated tones in a steady rhythm, which no fault keeps.
CUT_DB = 30.0
HOPS_PER_TICK = 8
HOP_SAMPLES = TIMING.samples_per_tick // HOPS_PER_TICK
CUT_HOPS = 2
CUT_FLOOR_POWER = 1e-7
RHYTHM_REACH = 8
RHYTHM_TOLERANCE_S = 2.5 * HOP_SAMPLES / TIMING.sample_rate_hz


def find_clicks(audio_LC: np.ndarray) -> np.ndarray:
    """Samples at which a click stands out of its neighbourhood, ascending.

    Args:
        audio_LC: sound [L, C], full scale 1.

    Returns:
        Sample indices; the first and last REACH_SAMPLES have no full neighbourhood and no click.
    """
    from scipy.ndimage import maximum_filter1d

    residual_NC = np.abs(np.diff(audio_LC.astype(np.float32), n=PREDICTOR_ORDER, axis=0))
    count = len(residual_NC) - 2 * REACH_SAMPLES
    if count <= 0:
        return np.zeros(0, dtype=int)
    width = REACH_SAMPLES - SKIP_SAMPLES
    # The filter is centred: the maximum of [i, i + width) stands at i + width // 2.
    maximum_NC = maximum_filter1d(residual_NC, width, axis=0)[width // 2 :]
    before = maximum_NC[:count]
    first_after = REACH_SAMPLES + SKIP_SAMPLES + 1
    after = maximum_NC[first_after : first_after + count]
    limit = CLICK_RATIO * (np.maximum(before, after) + CLICK_FLOOR)
    middle = residual_NC[REACH_SAMPLES : REACH_SAMPLES + count]
    found = np.flatnonzero((middle > limit).any(axis=1)) + REACH_SAMPLES
    # One jump makes several large differences.
    return found[np.diff(found, prepend=-REACH_SAMPLES) > SKIP_SAMPLES]


def hop_levels_db(audio_LC: np.ndarray) -> np.ndarray:
    """Level of whole hops of about 4 ms over both channels, floored at -70 dBFS [H]."""
    num_hops = len(audio_LC) // HOP_SAMPLES
    hops = audio_LC[: num_hops * HOP_SAMPLES].astype(np.float64).reshape(num_hops, -1)
    return 10 * np.log10((hops**2).mean(axis=1) + CUT_FLOOR_POWER)


def outside_rhythm(times_s_N: np.ndarray) -> np.ndarray:
    """True for the times that keep no steady rhythm with their neighbours [N].

    An interval is steady when two of the RHYTHM_REACH intervals on either side are as long, or
    half or twice as long (a beat was missed); both its ends then keep the rhythm.
    """
    intervals = np.diff(times_s_N)
    num_alike = np.zeros(len(intervals), dtype=int)
    for lag in range(1, min(RHYTHM_REACH, len(intervals) - 1) + 1):
        first, second = intervals[:-lag], intervals[lag:]
        distances = [np.abs(first - second), np.abs(first - 2 * second), np.abs(2 * first - second)]
        is_alike = np.min(distances, axis=0) <= RHYTHM_TOLERANCE_S
        num_alike[:-lag] += is_alike
        num_alike[lag:] += is_alike
    is_steady = num_alike >= 2
    return ~(np.append(is_steady, False) | np.append(False, is_steady))[: len(times_s_N)]


class FaultMeter:
    """Counts faults per tick; 4 bytes a tick, 8 a cut.

    A click is known 1.5 ms after it happened and stands in the tick in which it was known.
    """

    def __init__(self) -> None:
        self._clicks, self._clipped, self._cuts_s = array("H"), array("H"), array("d")
        self._tail_LC = np.zeros((0, TIMING.num_channels), np.float32)
        self._levels_H = np.zeros(0)
        self._was_falling = False

    def add(self, audio_LC: np.ndarray) -> None:
        """Adds one tick of sound [L, 2]."""
        recent_LC = np.concatenate([self._tail_LC, audio_LC])
        self._clicks.append(len(find_clicks(recent_LC)))
        # So long that every sample is in the middle, between its neighbours, exactly once.
        self._tail_LC = recent_LC[-(2 * REACH_SAMPLES + PREDICTOR_ORDER) :].copy()
        self._clipped.append(int((np.abs(audio_LC) >= FULL_SCALE).any(axis=1).sum()))
        self._note_cuts(audio_LC)

    def _note_cuts(self, audio_LC: np.ndarray) -> None:
        new_H = hop_levels_db(audio_LC)
        levels_H = np.append(self._levels_H, new_H)
        self._levels_H = levels_H[-CUT_HOPS:]
        is_falling_H = levels_H[:-CUT_HOPS] - levels_H[CUT_HOPS:] >= CUT_DB
        was_falling_H = np.append(self._was_falling, is_falling_H)[:-1]
        # Where the fallen level stands, counted back from the end of the tick.
        hops_left_H = np.arange(len(is_falling_H))[::-1]
        end_s = len(self._clicks) / TIMING.tick_hz
        for hops_left in hops_left_H[is_falling_H & ~was_falling_H]:
            self._cuts_s.append(end_s - (hops_left + 0.5) * HOP_SAMPLES / TIMING.sample_rate_hz)
        if len(is_falling_H):
            self._was_falling = bool(is_falling_H[-1])

    @property
    def clicks_T(self) -> np.ndarray:
        """Clicks in each tick."""
        return np.array(self._clicks, dtype=int)

    @property
    def clipped_T(self) -> np.ndarray:
        """Clipped samples in each tick (either channel)."""
        return np.array(self._clipped, dtype=int)

    @property
    def cuts_T(self) -> np.ndarray:
        """Cuts in each tick, those of a steady rhythm left out."""
        cuts_s = np.array(self._cuts_s)
        ticks = (cuts_s[outside_rhythm(cuts_s)] * TIMING.tick_hz).astype(int)
        return np.bincount(ticks, minlength=len(self._clicks))

    @property
    def is_damaged_T(self) -> np.ndarray:
        """Ticks with a click, a cut or at least MIN_CLIP_RUN clipped samples."""
        return (self.clicks_T > 0) | (self.cuts_T > 0) | (self.clipped_T >= MIN_CLIP_RUN)


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
