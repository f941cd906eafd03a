"""Building blocks of the bank's sounds: noise in a band, tones of a moving pitch, struck bodies.

All of it is mono at the project's sample rate, and all chance comes from the generator handed in.
Legend: L samples, N events.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.timing import TIMING
from spatial_v2a.training.stage import sounds as stage

RATE_HZ = TIMING.sample_rate_hz
_CYCLE = 2048  # samples of one cycle of a tone

Samples = NDArray[np.float32]


def num_of(duration_s: float) -> int:
    """Samples of a duration."""
    return round(duration_s * RATE_HZ)


def seconds(duration_s: float) -> NDArray:
    """Times of the samples of a short sound, seconds [L]."""
    return np.arange(num_of(duration_s)) / RATE_HZ


def noise(rng: np.random.Generator, num: int, low_hz: float, high_hz: float) -> Samples:
    """Gaussian noise [L] of RMS 1 between two frequencies, with soft edges."""
    spectrum = np.fft.rfft(rng.standard_normal(num, np.float32))
    f = np.maximum(np.arange(spectrum.size) * (RATE_HZ / num), 1e-3)
    gain = 1 / np.sqrt((1 + (low_hz / f) ** 6) * (1 + (f / high_hz) ** 6))
    y = np.fft.irfft(spectrum * gain, num).astype(np.float32)
    return y / max(float(np.sqrt(np.mean(y**2))), 1e-9)


def wander(rng: np.random.Generator, num: int, rate_hz: float) -> Samples:
    """A slow curve [L] in 0..1 that turns about `rate_hz` times a second."""
    points = rng.random(2 + int(np.ceil(num / RATE_HZ * rate_hz)))
    at = np.linspace(0, len(points) - 1, num)
    return np.interp(at, np.arange(len(points)), points).astype(np.float32)


def harmonics(rng: np.random.Generator, gains: Sequence[float]) -> Samples:
    """One cycle of a tone whose k-th harmonic has `gains[k - 1]`, with phases by chance."""
    phase = np.arange(_CYCLE) * (2 * np.pi / _CYCLE)
    cycle = sum(
        gain * np.sin(k * phase + rng.uniform(0, 2 * np.pi)) for k, gain in enumerate(gains, 1)
    )
    return np.asarray(cycle / max(np.abs(cycle).max(), 1e-9), np.float32)


def sawtooth(rng: np.random.Generator, num_harmonics: int, slope: float) -> Samples:
    """One cycle whose k-th harmonic falls as 1 / k^slope."""
    return harmonics(rng, [1 / k**slope for k in range(1, num_harmonics + 1)])


def tone(cycle_L: Samples, pitch_hz_L: NDArray | float, num: int) -> Samples:
    """Plays a cycle [L] at a pitch that may move."""
    step = np.broadcast_to(np.asarray(pitch_hz_L, np.float64) / RATE_HZ, num)
    at = np.cumsum(step) % 1.0 * _CYCLE
    low = at.astype(np.int32)
    share = (at - low).astype(np.float32)
    low %= _CYCLE
    return cycle_L[low] * (1 - share) + cycle_L[(low + 1) % _CYCLE] * share


def struck(partials: list[tuple[float, float, float]], duration_s: float) -> Samples:
    """A struck body from (frequency, gain, decay in seconds)."""
    return stage.ring(partials, duration_s, rate_hz=RATE_HZ).astype(np.float32)


def spoken(pitch_hz_L: NDArray, centres_hz: list, width_hz: float) -> Samples:
    """Harmonics of a moving pitch through the resonances of a throat."""
    return stage.formants(pitch_hz_L, centres_hz, width_hz, rate_hz=RATE_HZ).astype(np.float32)


def burst(
    rng: np.random.Generator, duration_s: float, low_hz: float, high_hz: float, decay_s: float
) -> Samples:
    """A sudden noise that dies away."""
    t = seconds(duration_s)
    return noise(rng, t.size, low_hz, high_hz) * np.exp(-t / decay_s).astype(np.float32)


def swelling(duration_s: float, sharpness: float = 0.5) -> Samples:
    """An envelope from 0 over 1 back to 0; a smaller sharpness rises sooner."""
    t = seconds(duration_s)
    return (np.sin(np.pi * (t / t[-1]) ** sharpness) ** 1.5).astype(np.float32)


def place(num: int, starts_s: Sequence[float], make: Callable[[int], Samples]) -> Samples:
    """Adds the sound of each event where it begins; what passes the end is cut.

    Args:
        num: samples of the result.
        starts_s: where the events begin, seconds.
        make: gives the sound of the n-th event.
    """
    out = np.zeros(num, np.float32)
    for index, start_s in enumerate(starts_s):
        start = num_of(start_s)
        if start < 0 or start >= num:
            continue
        sound = make(index)[: num - start]
        out[start : start + len(sound)] += sound
    return out


def regular(
    rng: np.random.Generator, duration_s: float, period_s: float, jitter: float = 0.04
) -> NDArray[np.float64]:
    """Times [N] about `period_s` apart, each off by a share of it; the first in half a second."""
    first = rng.uniform(0.02, min(period_s, 0.5))
    times = np.arange(first, duration_s, period_s)
    return np.sort(np.maximum(times + rng.normal(0, jitter * period_s, len(times)), 0.0))


def scattered(rng: np.random.Generator, duration_s: float, rate_hz: float) -> NDArray[np.float64]:
    """Times [N] without any order, `rate_hz` of them a second."""
    return np.sort(rng.uniform(0, duration_s, rng.poisson(rate_hz * duration_s)))


def stage_loop(
    name: str, rng: np.random.Generator, num: int
) -> tuple[Samples, NDArray[np.float64]]:
    """The Stage's sound of a class, with a chance, speed and pitch of its own, from anywhere in it.

    Returns:
        Sound [L], and where its events begin, seconds [N].
    """
    duration_s, synthesise = stage.SYNTHESISERS[name]
    canvas = stage.Canvas(f"{name}-{rng.integers(2**31)}", duration_s)
    synthesise(canvas)
    speed = 2.0 ** rng.uniform(-0.35, 0.35)
    offset_s = rng.uniform(0, duration_s)
    step = speed * stage.ENGINE_RATE_HZ / RATE_HZ
    at = (offset_s * stage.ENGINE_RATE_HZ + step * np.arange(num)) % canvas.num_samples
    loop = np.append(canvas.loop, canvas.loop[0])
    audio = np.interp(at, np.arange(len(loop)), loop).astype(np.float32)
    starts = [start_s for start_s, gain in canvas.starts]
    laps = np.arange(-1, int(np.ceil(num / RATE_HZ * speed / duration_s)) + 1)
    found = (np.add.outer(laps * duration_s, starts).ravel() - offset_s) / speed
    return audio, np.sort(found[(found >= 0) & (found < num / RATE_HZ)])
