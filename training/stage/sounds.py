"""Procedural sounds of the sounding classes: seeded numpy synthesis, 44.1 kHz mono loops.

Each loop is periodic (its end meets its start) and no second of it is silent. They are this
project's own work (Apache-2.0; the rendered loops also CC0). A loop is a function of the class
name alone. Letters: L samples, t seconds, f hertz.
"""

import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

ENGINE_RATE_HZ = 44_100
MAX_CREST = 5.0  # peak over RMS after soft clipping, so that impulsive sounds carry far enough

Loop = NDArray[np.float64]


class Canvas:
    """A periodic stretch of sound with a random stream of its own.

    `starts` holds where its events begin, seconds and gain.
    """

    def __init__(self, name: str, duration_s: float) -> None:
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.num_samples = round(duration_s * ENGINE_RATE_HZ)
        self.duration_s = duration_s
        self.t = np.arange(self.num_samples) / ENGINE_RATE_HZ
        self.loop = np.zeros(self.num_samples)
        self.starts: list[tuple[float, float]] = []

    def noise(self, low_hz: float, high_hz: float, num_samples: int | None = None) -> Loop:
        """Periodic Gaussian noise of RMS 1 in a soft-edged band."""
        length = num_samples or self.num_samples
        f = np.fft.rfftfreq(length, 1 / ENGINE_RATE_HZ)
        gain = 1 / np.sqrt(1 + (low_hz / np.maximum(f, 1e-3)) ** 8)
        gain /= np.sqrt(1 + (f / high_hz) ** 8)
        phases = self.rng.uniform(0, 2 * np.pi, f.size)
        y = np.fft.irfft(gain * np.exp(1j * phases), length)
        return y / np.sqrt(np.mean(y**2))

    def event(self, start_s: float, sound: Loop, gain: float = 1.0) -> None:
        """Adds a short sound; what passes the end wraps to the start."""
        start = round(start_s * ENGINE_RATE_HZ)
        self.starts.append((start / ENGINE_RATE_HZ, gain))
        index = (start + np.arange(sound.size)) % self.num_samples
        np.add.at(self.loop, index, gain * sound)

    def slow(self, rate_hz: float) -> Loop:
        """A smooth periodic wander in 0..1 with about `rate_hz` changes per second."""
        f = np.fft.rfftfreq(self.num_samples, 1 / ENGINE_RATE_HZ)
        spectrum = (f > 0) * (f <= rate_hz) * np.exp(1j * self.rng.uniform(0, 2 * np.pi, f.size))
        y = np.fft.irfft(spectrum, self.num_samples)
        return (y - y.min()) / max(np.ptp(y), 1e-9)


def _time(duration_s: float, rate_hz: int = ENGINE_RATE_HZ) -> Loop:
    return np.arange(round(duration_s * rate_hz)) / rate_hz


def ring(
    partials: list[tuple[float, float, float]], duration_s: float, *, rate_hz: int = ENGINE_RATE_HZ
) -> Loop:
    """A struck body: (frequency, gain, decay seconds) partials."""
    t = _time(duration_s, rate_hz)
    body = sum(g * np.exp(-t / d) * np.sin(2 * np.pi * f * t) for f, g, d in partials)
    return body * np.minimum(1, t / 0.001)


def _harmonics(phase: Loop, gains: dict[int, float]) -> Loop:
    return sum(g * np.sin(k * phase) for k, g in gains.items())


def formants(
    f0_hz: Loop, centres: list[Loop | float], width_hz: float, *, rate_hz: int = ENGINE_RATE_HZ
) -> Loop:
    """Harmonics of a moving pitch weighted by resonances (centres in hertz)."""
    phase = 2 * np.pi * np.cumsum(f0_hz) / rate_hz
    y = np.zeros_like(phase)
    for k in range(1, 40):
        f = k * f0_hz
        weight = sum(1 / (1 + ((f - c) / width_hz) ** 2) for c in centres)
        y += weight * np.sin(phase * k) * (f < 9_000)
    return y


def footstep(c: Canvas) -> Loop:
    """One footstep on gravel, about 0.16 s."""
    t = _time(0.16)
    thud = np.sin(2 * np.pi * (170 + 120 * np.exp(-t / 0.02)) * t) * np.exp(-t / 0.03)
    crunch = c.noise(700, 4_500, t.size) * np.exp(-t / 0.045) * (0.4 + c.rng.random(t.size))
    return (thud + 0.8 * crunch) * np.minimum(1, t / 0.002)


def _footsteps(c: Canvas) -> None:
    for i in range(8):
        c.event(0.4 * i + c.rng.uniform(-0.015, 0.015) + 0.02, footstep(c), 0.8 + 0.2 * (i % 2))


def _engine(c: Canvas) -> None:
    phase = 2 * np.pi * 85 * c.t + 0.15 * np.sin(2 * np.pi * 5 * c.t)
    gains = {k: 1 / k**0.7 for k in range(2, 22)}
    idle = 0.6 + 0.4 * np.maximum(0, np.sin(2 * np.pi * 14 * c.t))
    c.loop += _harmonics(phase, gains) * idle + 0.5 * c.noise(150, 700) * idle


def _water(c: Canvas) -> None:
    c.loop += 0.35 * c.noise(500, 2_500) * (0.6 + 0.4 * c.slow(6))
    for _ in range(120):
        f, t = c.rng.uniform(500, 2_200), _time(c.rng.uniform(0.02, 0.06))
        chirp = np.sin(2 * np.pi * f * (t + 6 * t**2)) * np.sin(np.pi * t / t[-1]) ** 2
        c.event(c.rng.uniform(0, c.duration_s), chirp, c.rng.uniform(0.4, 1.6))


def _fire(c: Canvas) -> None:
    c.loop += 0.3 * c.noise(150, 450) * (0.5 + c.slow(5))
    t = _time(0.012)
    for _ in range(110):
        crack = c.noise(1_500, 9_000, t.size) * np.exp(-t / c.rng.uniform(0.001, 0.004))
        c.event(c.rng.uniform(0, c.duration_s), crack, c.rng.uniform(0.3, 2.5) ** 1.5)


def _siren(c: Canvas) -> None:
    sweep = np.abs(2 * ((c.t * 1.0) % 1.0) - 1)
    phase = 2 * np.pi * np.cumsum(650 + 800 * sweep) / ENGINE_RATE_HZ
    c.loop += _harmonics(phase, {1: 1.0, 2: 0.3, 3: 0.25})


def _bell(c: Canvas) -> None:
    partials = [(392, 0.7, 0.5), (784, 1.0, 0.35), (941, 0.7, 0.3), (1_176, 0.6, 0.25)]
    partials += [(1_568, 0.7, 0.2), (2_117, 0.5, 0.15), (3_332, 0.3, 0.08)]
    for i in range(6):
        c.event(0.5 * i, ring(partials, 1.2))


def _dog(c: Canvas) -> None:
    t = _time(0.17)
    for i in range(8):
        f0 = 420 * np.exp(-t / 0.25) * c.rng.uniform(0.95, 1.05)
        bark = formants(f0, [900.0, 1_700.0], 350) + 1.2 * c.noise(500, 2_500, t.size)
        start = 0.8 * (i // 2) + 0.26 * (i % 2)
        c.event(start, bark * np.sin(np.pi * (t / t[-1]) ** 0.5) ** 2)


def _crow(c: Canvas) -> None:
    t = _time(0.3)
    for i in range(8):
        f0 = 560 + 90 * np.sin(np.pi * t / t[-1]) + c.rng.uniform(-20, 20)
        caw = formants(f0, [1_500.0, 2_600.0], 500)
        rough = 0.5 + 0.5 * np.sin(2 * np.pi * 75 * t)
        c.event(0.4 * i, caw * rough * np.sin(np.pi * t / t[-1]) ** 0.6)


VOWELS_HZ = [(730, 1_090), (270, 2_290), (570, 840), (530, 1_840), (300, 870), (660, 1_720)]


def _voice(c: Canvas) -> None:
    order = c.rng.permutation(12) % 6
    position = c.t / c.duration_s * 12
    index, glide = position.astype(int) % 12, np.clip((position % 1 - 0.7) / 0.3, 0, 1)
    vowels = np.array([VOWELS_HZ[v] for v in order], float)
    now, after = vowels[index], vowels[(index + 1) % 12]
    centres = now + (after - now) * glide[:, None]
    f0 = np.round(130 * c.duration_s) / c.duration_s + 18 * np.sin(2 * np.pi * c.t * 2 / 3)
    level = 0.35 + 0.65 * np.sin(np.pi * (position % 1)) ** 0.7
    c.loop += formants(f0, [centres[:, 0], centres[:, 1]], 110) * level


def _electric(c: Canvas) -> None:
    buzz = _harmonics(2 * np.pi * 100 * c.t, {k: 1 / k**0.2 for k in range(3, 60, 2)})
    gate = (c.slow(9) > 0.5) * 0.8 + 0.2
    c.loop += buzz * gate
    t = _time(0.04)
    for _ in range(24):
        zap = c.noise(3_500, 10_000, t.size) * np.exp(-t / 0.012)
        c.event(c.rng.uniform(0, c.duration_s), zap, 6)


def _drill(c: Canvas) -> None:
    t = _time(0.04)
    for i in range(75):
        hit = c.noise(300, 3_500, t.size) * np.exp(-t / 0.009)
        c.event(i * 0.04, hit, c.rng.uniform(0.8, 1.1))


def _steam(c: Canvas) -> None:
    puff = np.clip(1.3 * np.abs(np.sin(np.pi * 1.5 * c.t)), 0.12, 1)
    c.loop += c.noise(4_000, 10_000) * puff


def _clock(c: Canvas) -> None:
    for i in range(12):
        f = 2_600 if i % 2 else 1_900
        tick = ring([(f, 1, 0.012), (f * 1.51, 0.6, 0.008), (f * 2.3, 0.4, 0.005)], 0.1)
        c.event(0.25 * i, tick)


def _helicopter(c: Canvas) -> None:
    blade = np.maximum(0, np.sin(2 * np.pi * 11 * c.t)) ** 3
    c.loop += c.noise(150, 420) * blade + 0.15 * c.noise(1_000, 2_200) * np.roll(blade, 900)


def _machinery(c: Canvas) -> None:
    grind = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * c.t)
    c.loop += 0.5 * c.noise(250, 900) * grind
    partials = [(640, 0.6, 0.05), (1_130, 1, 0.06), (1_890, 0.8, 0.05), (3_170, 0.7, 0.03)]
    for i in range(9):
        c.event(i / 3, ring(partials, 0.3), 3.0 if i % 3 == 0 else 2.0)


def _alarm(c: Canvas) -> None:
    gate = np.clip(np.sin(2 * np.pi * 4 * c.t) * 30, 0, 1)
    c.loop += _harmonics(2 * np.pi * 2_800 * c.t, {1: 1.0, 3: 0.3}) * gate


def _frog(c: Canvas) -> None:
    t = _time(0.24)
    for i in range(9):
        pulses = np.exp(-((t * 45) % 1) / 45 / 0.006)
        croak = np.sin(2 * np.pi * 780 * t) + 0.6 * np.sin(2 * np.pi * 1_250 * t)
        c.event(i / 3, croak * pulses * np.sin(np.pi * t / t[-1]))


def _music_box(c: Canvas) -> None:
    scale = [1_047, 1_175, 1_319, 1_568, 1_760, 2_093, 2_349]
    for i in range(18):
        f = scale[c.rng.integers(len(scale))]
        c.event(i / 6, ring([(f, 1, 0.16), (f * 2, 0.3, 0.08), (f * 5.4, 0.1, 0.02)], 0.8))


def _saw(c: Canvas) -> None:
    stroke = np.abs(np.sin(2 * np.pi * 1.25 * c.t)) ** 1.5
    teeth = 0.4 + 0.6 * ((c.t * 130) % 1 < 0.4)
    c.loop += c.noise(1_400, 5_500) * stroke * teeth


def _horn(c: Canvas) -> None:
    tremolo = 0.75 + 0.25 * np.sin(2 * np.pi * 3 * c.t)
    gains = {k: np.exp(-k / 5) for k in range(1, 16)}
    for f in (180, 227, 270):
        c.loop += _harmonics(2 * np.pi * f * c.t, gains) * tremolo


SYNTHESISERS: dict[str, tuple[float, Callable[[Canvas], None]]] = {
    "footsteps": (3.2, _footsteps),
    "engine": (3.0, _engine),
    "water": (3.0, _water),
    "fire": (3.0, _fire),
    "siren": (3.0, _siren),
    "bell": (3.0, _bell),
    "dog": (3.2, _dog),
    "crow": (3.2, _crow),
    "voice": (3.0, _voice),
    "electric": (3.0, _electric),
    "drill": (3.0, _drill),
    "steam": (2.0, _steam),
    "clock": (3.0, _clock),
    "helicopter": (2.0, _helicopter),
    "machinery": (3.0, _machinery),
    "alarm": (2.0, _alarm),
    "frog": (3.0, _frog),
    "music_box": (3.0, _music_box),
    "saw": (2.4, _saw),
    "horn": (3.0, _horn),
}


def _full_scale(y: Loop) -> Loop:
    """Peak 1 with the crest factor held at MAX_CREST by a soft clip."""
    y = y - y.mean()
    limit = MAX_CREST * np.sqrt(np.mean(y**2))
    y = limit * np.tanh(y / limit)
    return y / np.abs(y).max()


@cache
def loop_for(name: str) -> Loop:
    """The loop of a sounding class: float64 [L] at 44.1 kHz, peak 1; read-only."""
    duration_s, synthesise = SYNTHESISERS[name]
    canvas = Canvas(name, duration_s)
    synthesise(canvas)
    loop = _full_scale(canvas.loop)
    loop.setflags(write=False)
    return loop


def single_footstep(index: int) -> Loop:
    """One step of the third-person walker, peak 1."""
    return _full_scale(footstep(Canvas(f"step{index}", 1.0)))
