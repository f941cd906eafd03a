"""What each concept of the bank sounds like: one short function or table row a concept.

A maker gets chance, a length, the times of its events and how fast its clock runs, and gives the
sound with the times at which something is really heard to begin. Legend: L samples, N events.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.training.sounds.synthesis import (
    RATE_HZ,
    Samples,
    burst,
    harmonics,
    noise,
    num_of,
    place,
    regular,
    sawtooth,
    scattered,
    seconds,
    spoken,
    stage_loop,
    struck,
    swelling,
    tone,
    wander,
)

NO_EVENTS = np.zeros(0)


@dataclass(frozen=True)
class Ask:
    """What a maker is asked for.

    Attributes:
        rng: source of all chance.
        num: samples.
        events_s: times of the events, or None: a pattern of its own.
        drive_L: how fast its clock runs in every sample, 0 (as slow as it goes) .. 1.
    """

    rng: np.random.Generator
    num: int
    events_s: NDArray[np.float64] | None
    drive_L: Samples

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num / RATE_HZ

    def times(self, period_s: float, jitter: float = 0.04) -> NDArray[np.float64]:
        """The times asked for, or such a pattern."""
        if self.events_s is not None:
            return self.events_s
        return regular(self.rng, self.duration_s, period_s, jitter)

    def between(self, low: float, high: float) -> float:
        """A number by chance; one of the sound's own settings."""
        return float(self.rng.uniform(low, high))


Made = tuple[Samples, NDArray[np.float64]]
Maker = Callable[[Ask], Made]


# On foot: (lowest and highest frequency of the crunch, its decay, gain; pitch of the thud).
GROUNDS = {
    "gravel": (900, 6_000, 0.045, 1.0, 120),
    "stone": (1_800, 9_000, 0.012, 0.8, 210),
    "wood": (300, 1_800, 0.03, 0.6, 150),
    "grass": (500, 3_000, 0.07, 0.5, 90),
    "snow": (1_200, 5_000, 0.09, 1.0, 80),
    "metal": (2_000, 8_000, 0.02, 0.6, 260),
}


def _step(a: Ask, ground: str, weight: float) -> Samples:
    low, high, decay_s, crunch, pitch = GROUNDS[ground]
    t = seconds(0.18)
    pitch *= a.between(0.92, 1.08)
    thud = np.sin(2 * np.pi * (pitch + 0.7 * pitch * np.exp(-t / 0.015)) * t) * np.exp(-t / 0.03)
    grit = burst(a.rng, 0.18, low, high, decay_s * a.between(0.8, 1.2))
    step = weight * thud + crunch * 0.6 * grit
    if ground in ("metal", "wood"):
        step += 0.3 * struck([(pitch * r, 1 / r, 0.04) for r in (3.1, 4.7, 7.9)], 0.18)
    return (step * a.between(0.75, 1.0)).astype(np.float32)


def footsteps(a: Ask) -> Made:
    ground = str(a.rng.choice(list(GROUNDS)))
    weight = a.between(0.7, 1.2)
    times = a.times(a.between(0.46, 0.62))
    return place(a.num, times, lambda _: _step(a, ground, weight)), times


def running(a: Ask) -> Made:
    """Quicker and harder than a walk, with breath between."""
    ground = str(a.rng.choice(list(GROUNDS)))
    times = a.times(a.between(0.28, 0.36))
    audio = place(a.num, times, lambda _: _step(a, ground, 2.0))
    breath = burst(a.rng, 0.3, 900, 3_500, 0.12) * swelling(0.3)
    return audio + place(a.num, times[::3] + 0.1, lambda _: 0.35 * breath), times


def crowd(a: Ask) -> Made:
    """Many feet, and talk without words."""
    starts = scattered(a.rng, a.duration_s, a.between(8, 16))
    feet = place(a.num, starts, lambda n: _step(a, "stone" if n % 3 else "gravel", 0.8))
    talk = sum(
        noise(a.rng, a.num, f, 1.5 * f) * wander(a.rng, a.num, a.between(4, 7)) ** 2
        for f in (250, 480, 900, 1_500)
    )
    return 0.35 * feet + 0.5 * talk, NO_EVENTS


def horse(a: Ask) -> Made:
    pitch = a.between(650, 1_050)
    if a.events_s is None:
        gap = a.between(0.1, 0.14)
        beats = regular(a.rng, a.duration_s, a.between(0.42, 0.6), 0.02)
        times = np.sort(np.concatenate([beats + k * gap for k in range(3)]))
    else:
        times = a.events_s

    def hoof(n: int) -> Samples:
        f = pitch * (1.0, 1.12, 0.94, 1.06)[n % 4]
        clop = struck([(f, 1, 0.02), (1.7 * f, 0.6, 0.012), (0.31 * f, 0.9, 0.03)], 0.12)
        return clop + 0.3 * burst(a.rng, 0.12, 300, 2_500, 0.01)

    return place(a.num, times, hoof), times


def carriage(a: Ask) -> Made:
    """Hoofs before rattling wheels."""
    hoofs, times = horse(a)
    speed = 0.3 + 0.7 * a.drive_L
    rattle = noise(a.rng, a.num, 150, 1_100) * (0.3 + wander(a.rng, a.num, 14)) * speed
    creak = tone(sawtooth(a.rng, 12, 0.6), 180 + 160 * wander(a.rng, a.num, 2), a.num)
    creak *= wander(a.rng, a.num, 3) ** 4
    return 0.7 * hoofs + 0.45 * rattle + 0.25 * creak, times


def large_animal(a: Ask) -> Made:
    pitch = a.between(38, 62)
    times = a.times(a.between(0.8, 1.3))

    def tread(_: int) -> Samples:
        t = seconds(0.5)
        boom = np.sin(2 * np.pi * (pitch + 50 * np.exp(-t / 0.02)) * t) * np.exp(-t / 0.16)
        return (boom + 0.35 * burst(a.rng, 0.5, 60, 500, 0.06)).astype(np.float32)

    t = seconds(1.1)
    f0 = a.between(55, 85) * (1 + 0.15 * np.sin(2 * np.pi * 1.1 * t))
    growl = spoken(f0, [280.0, 620.0], 160) * swelling(1.1, 0.8)
    growl /= np.abs(growl).max()
    roars = place(a.num, times[1::3] + 0.35, lambda _: 0.7 * growl)
    return place(a.num, times, tread) + roars, times


# On wheels, in the air, on the water: what beats, how it falls off, and what rustles beside it.
@dataclass(frozen=True)
class Motor:
    """An engine: pulses a second at rest and at full speed (lowest and highest of each), how fast
    harmonics fall, uneven pulses, clatter at every pulse, noise of the way (band and share).
    """

    rest_hz: tuple[float, float]
    full_hz: tuple[float, float]
    slope: float
    uneven: float = 0.0
    clatter: float = 0.0
    way_hz: tuple[float, float] = (100, 1_000)
    way: float = 0.2


MOTORS = {
    "car": Motor((26, 40), (110, 150), 1.0, way_hz=(400, 2_600), way=0.25),
    "motorcycle": Motor((34, 55), (190, 270), 0.45, uneven=0.5, way=0.05),
    "bus": Motor((20, 26), (56, 72), 1.3, clatter=0.1, way_hz=(150, 900), way=0.5),
    "truck": Motor((13, 18), (38, 50), 0.8, clatter=0.5, way_hz=(60, 450), way=0.5),
    "tractor": Motor((7, 11), (15, 22), 0.45, clatter=1.3, way=0.1),
    "aeroplane": Motor((62, 85), (95, 125), 0.35, uneven=0.25, way_hz=(200, 1_500), way=0.5),
    "engine": Motor((44, 60), (44, 60), 0.7, clatter=0.7, way_hz=(2_000, 6_000), way=0.15),
}


def _motor(a: Ask, motor: Motor) -> Samples:
    rest, full = a.between(*motor.rest_hz), a.between(*motor.full_hz)
    pulses_hz = (rest + (full - rest) * a.drive_L) * (1 + 0.03 * wander(a.rng, a.num, 3))
    cycle = sawtooth(a.rng, 36, motor.slope * a.between(0.85, 1.15))
    load = 0.45 + 0.55 * a.drive_L
    audio = tone(cycle, pulses_hz, a.num)
    if motor.uneven:
        audio = audio * (1 - motor.uneven * (tone(cycle, pulses_hz / 2, a.num) > 0))
    audio = audio * load
    if motor.clatter:
        pulse = np.exp(-8 * (np.cumsum(pulses_hz) / RATE_HZ % 1.0)).astype(np.float32)
        audio += motor.clatter * 0.5 * pulse * noise(a.rng, a.num, 900, 4_500)
    way = noise(a.rng, a.num, *motor.way_hz) * (0.15 + 0.85 * a.drive_L)
    return audio + motor.way * way


def motor_of(name: str) -> Maker:
    return lambda a: (_motor(a, MOTORS[name]), NO_EVENTS)


def boat(a: Ask) -> Made:
    puffing = _motor(a, Motor((12, 18), (30, 45), 0.9, way=0.0))
    wash = noise(a.rng, a.num, 350, 2_600) * (0.4 + 0.6 * wander(a.rng, a.num, 1.2))
    return 0.7 * puffing + 0.55 * wash, NO_EVENTS


def fire_truck(a: Ask) -> Made:
    """The two tones of its horn over a heavy engine."""
    low, period_s = a.between(400, 470), a.between(0.45, 0.7)
    is_high = (np.arange(a.num) / RATE_HZ / period_s + a.rng.random()) % 2 < 1
    horn = tone(
        harmonics(a.rng, [1, 0.8, 0.6, 0.5, 0.3]), np.where(is_high, low * 4 / 3, low), a.num
    )
    return horn + 0.35 * _motor(a, MOTORS["truck"]), NO_EVENTS


def train(a: Ask) -> Made:
    """Rumble, and the two clacks of a bogie at every joint of the rails."""
    rumble = noise(a.rng, a.num, 35, 260) * (0.5 + 0.5 * a.drive_L)
    hiss = noise(a.rng, a.num, 1_500, 5_000) * (0.1 + 0.2 * a.drive_L)
    speed = float(a.drive_L.mean())
    joints = a.times(a.between(0.9, 1.1) / (0.4 + 1.2 * speed), 0.01)
    gap_s = 0.12 / (0.5 + speed)

    def clack(_: int) -> Samples:
        one = burst(a.rng, 0.09, 250, 2_200, 0.018)
        one = one + struck([(410, 1, 0.03), (930, 0.6, 0.02)], 0.09)
        both = np.zeros(num_of(gap_s) + len(one), np.float32)
        both[: len(one)] += one
        both[-len(one) :] += 0.8 * one
        return 1.6 * both

    return rumble + hiss + place(a.num, joints, clack), joints


def tram(a: Ask) -> Made:
    """The whine of electric motors over rails."""
    whine_hz = a.between(260, 380) + a.between(500, 800) * a.drive_L
    whine = tone(harmonics(a.rng, [1, 0.5, 0.7, 0.2, 0.3]), whine_hz, a.num)
    rails = noise(a.rng, a.num, 90, 700) * (0.3 + 0.5 * a.drive_L)
    return 0.8 * whine * (0.5 + 0.5 * a.drive_L) + 0.5 * rails, NO_EVENTS


def bicycle(a: Ask) -> Made:
    """The ticking of its free wheel."""
    rate_hz = a.between(9, 14) + a.between(10, 16) * a.drive_L
    turns = np.cumsum(rate_hz) / RATE_HZ
    times = np.searchsorted(turns, np.arange(1, int(turns[-1]) + 1)) / RATE_HZ
    f = a.between(3_200, 5_500)
    tick = struck([(f, 1, 0.004), (1.43 * f, 0.6, 0.003)], 0.03)
    tyres = noise(a.rng, a.num, 500, 2_500) * (0.03 + 0.06 * a.drive_L)
    return place(a.num, times, lambda n: tick * (1.0, 0.7)[n % 2]) + tyres, NO_EVENTS


def _rolling(a: Ask, low_hz: float, high_hz: float, grain_hz: float) -> Samples:
    grains = 0.5 + wander(a.rng, a.num, grain_hz) ** 2
    return noise(a.rng, a.num, low_hz, high_hz) * grains * (0.25 + 0.75 * a.drive_L)


def scooter(a: Ask) -> Made:
    """Small hard wheels, and the hum of their bearings."""
    hum = tone(sawtooth(a.rng, 8, 1.2), a.between(700, 900) * (0.5 + 0.6 * a.drive_L), a.num)
    return 0.8 * _rolling(a, 1_800, 6_500, 40) + 0.25 * hum * (0.3 + 0.7 * a.drive_L), NO_EVENTS


def skateboard(a: Ask) -> Made:
    times = a.times(a.between(0.5, 0.9), 0.15)
    hit = burst(a.rng, 0.12, 500, 5_000, 0.012) + struck([(520, 1, 0.03), (1_260, 0.7, 0.02)], 0.12)
    return 0.5 * _rolling(a, 140, 1_100, 60) + place(a.num, times, lambda _: 1.5 * hit), times


def jet(a: Ask) -> Made:
    roar = noise(a.rng, a.num, 80, 2_500) * (0.7 + 0.3 * wander(a.rng, a.num, 6))
    whine_hz = a.between(2_200, 3_400) * (0.8 + 0.25 * a.drive_L)
    whine = tone(harmonics(a.rng, [1, 0.3, 0.2]), whine_hz, a.num)
    return roar + 0.3 * whine + 0.3 * noise(a.rng, a.num, 3_000, 9_000), NO_EVENTS


def sailing_boat(a: Ask) -> Made:
    """Slow lapping, and wood that creaks."""
    laps = wander(a.rng, a.num, 1.6) ** 2
    water = noise(a.rng, a.num, 250, 900) * laps + 0.3 * noise(a.rng, a.num, 900, 2_500) * laps**2
    t = seconds(0.5)
    times = a.times(a.between(1.4, 2.4), 0.2)

    def creak(_: int) -> Samples:
        pitch = a.between(70, 110) * (1 + 0.5 * t)
        return 0.6 * tone(sawtooth(a.rng, 30, 0.2), pitch, t.size) * swelling(0.5, 0.7)

    return water + place(a.num, times, creak), NO_EVENTS


def fan(a: Ask) -> Made:
    hum = tone(harmonics(a.rng, [1, 0.6, 0.3, 0.2]), a.between(96, 125), a.num)
    blades = 0.8 + 0.2 * tone(harmonics(a.rng, [1]), a.between(18, 32), a.num)
    return 0.8 * noise(a.rng, a.num, 180, 1_400) * blades + 0.45 * hum, NO_EVENTS


# Animals that call: pitch over the call, resonances, roughness.
def _calls(a: Ask, period_s: float, one: Callable[[], Samples]) -> Made:
    times = a.times(period_s, 0.15)
    return place(a.num, times, lambda _: one() * a.between(0.7, 1.0)), times


def cat(a: Ask) -> Made:
    base, size = a.between(480, 700), a.between(0.9, 1.1)

    def meow() -> Samples:
        duration_s = a.between(0.45, 0.75)
        share = np.linspace(0, 1, num_of(duration_s))
        f0 = base * (1 + 0.35 * np.sin(np.pi * share) - 0.2 * share)
        opening = 900 + 1_100 * np.sin(np.pi * share)
        return spoken(f0, [size * opening, size * 2_600.0], 350) * swelling(duration_s, 0.6)

    return _calls(a, a.between(0.9, 1.4), meow)


def cow(a: Ask) -> Made:
    base = a.between(110, 160)

    def moo() -> Samples:
        duration_s = a.between(1.0, 1.5)
        share = np.linspace(0, 1, num_of(duration_s))
        f0 = base * (0.85 + 0.3 * np.sin(np.pi * share**0.7))
        return spoken(f0, [260 + 250 * share, 750.0], 130) * swelling(duration_s, 0.6)

    return _calls(a, a.between(1.7, 2.4), moo)


def sheep(a: Ask) -> Made:
    base, shake_hz = a.between(290, 420), a.between(8, 12)

    def baa() -> Samples:
        duration_s = a.between(0.6, 0.9)
        t = seconds(duration_s)
        shake = np.sin(2 * np.pi * shake_hz * t)
        voice = spoken(base * (1 + 0.05 * shake), [780.0, 1_650.0, 2_900.0], 260)
        return (voice * (0.6 + 0.4 * shake) * swelling(duration_s, 0.5)).astype(np.float32)

    return _calls(a, a.between(1.1, 1.6), baa)


def pig(a: Ask) -> Made:
    rate_hz = a.between(24, 38)

    def grunt() -> Samples:
        duration_s = a.between(0.15, 0.3)
        t = seconds(duration_s)
        pulses = np.exp(-((t * rate_hz) % 1) * 5)
        snort = noise(a.rng, t.size, 200, 1_100) * pulses
        return (snort * swelling(duration_s, 0.7)).astype(np.float32)

    return _calls(a, a.between(0.35, 0.6), grunt)


def bird(a: Ask) -> Made:
    base, bend = a.between(2_600, 5_200), a.between(-0.3, 0.4)

    def chirp() -> Samples:
        duration_s = a.between(0.05, 0.14)
        share = np.linspace(0, 1, num_of(duration_s))
        f = base * a.between(0.85, 1.2) * (1 + bend * share)
        return tone(harmonics(a.rng, [1, 0.15]), f, share.size) * swelling(duration_s, 0.7)

    return _calls(a, a.between(0.16, 0.3), chirp)


def monkey(a: Ask) -> Made:
    base = a.between(330, 460)
    count = iter(range(10**6))

    def hoot() -> Samples:
        is_high = next(count) % 4 == 3
        duration_s = 0.35 if is_high else 0.2
        share = np.linspace(0, 1, num_of(duration_s))
        f0 = base * (2.2 if is_high else 1.0) * (0.8 + 0.4 * share)
        return tone(harmonics(a.rng, [1, 0.5, 0.2]), f0, share.size) * swelling(duration_s, 0.8)

    return _calls(a, a.between(0.3, 0.42), hoot)


def insect(a: Ask) -> Made:
    pitch = a.between(150, 320) * (0.9 + 0.25 * wander(a.rng, a.num, 5))
    buzz = tone(sawtooth(a.rng, 40, 0.55), pitch, a.num)
    return buzz * (0.35 + 0.65 * wander(a.rng, a.num, 8)), NO_EVENTS


# Blows, strokes and bangs.
def ball(a: Ask) -> Made:
    pitch = a.between(170, 420)
    times = a.times(a.between(0.45, 0.8), 0.1)
    bounce = struck([(pitch, 1, 0.05), (2.1 * pitch, 0.5, 0.02), (3.6 * pitch, 0.4, 0.012)], 0.25)
    slap = burst(a.rng, 0.25, 700, 3_000, 0.006)
    return place(a.num, times, lambda _: (bounce + 0.3 * slap) * a.between(0.7, 1)), times


def racket(a: Ask) -> Made:
    pitch = a.between(1_100, 1_900)
    times = a.times(a.between(0.9, 1.4), 0.1)
    pock = struck([(pitch, 1, 0.012), (0.47 * pitch, 0.8, 0.018), (2.3 * pitch, 0.4, 0.006)], 0.1)
    return place(a.num, times, lambda _: pock), times


def hammer(a: Ask) -> Made:
    pitch = a.between(1_900, 3_200)
    times = a.times(a.between(0.5, 0.8), 0.06)
    partials = [
        (pitch * r, 1 / (1 + k), 0.16 / (1 + k)) for k, r in enumerate((1, 1.58, 2.24, 2.9))
    ]
    blow = struck([*partials, (210, 1.2, 0.02)], 0.5)
    return place(a.num, times, lambda _: blow * a.between(0.75, 1)), times


def door(a: Ask) -> Made:
    """A slam with its latch; what creaks before it is quiet."""
    times = a.times(a.between(1.6, 2.4), 0.1)
    boom = a.between(70, 110)

    def slam(_: int) -> Samples:
        body = burst(a.rng, 0.5, 60, 700, 0.06) + struck([(boom, 1.6, 0.1)], 0.5)
        latch = struck([(1_500, 1, 0.01), (2_700, 0.7, 0.008)], 0.5)
        return body + 0.5 * latch + 0.5 * np.roll(latch, num_of(0.06))

    creak_s = 0.7
    share = np.linspace(0, 1, num_of(creak_s))
    creak = tone(sawtooth(a.rng, 45, 0.1), a.between(28, 45) * (1 + share), share.size)
    creak *= swelling(creak_s, 1.0)
    before = place(a.num, np.maximum(times - creak_s - 0.1, 0), lambda _: 0.16 * creak)
    return place(a.num, times, slam) + before, times


def gunshot(a: Ask) -> Made:
    times = a.times(a.between(0.5, 1.3), 0.2)
    decay_s, top_hz = a.between(0.02, 0.05), a.between(5_000, 11_000)

    def shot(_: int) -> Samples:
        crack = burst(a.rng, 0.7, 150, top_hz, decay_s)
        return 2.0 * crack + 0.5 * burst(a.rng, 0.7, 80, 900, 0.16)

    return place(a.num, times, shot), times


def explosion(a: Ask) -> Made:
    times = a.times(a.between(1.8, 2.6), 0.1)

    def blast(_: int) -> Samples:
        boom = burst(a.rng, 2.0, 25, a.between(140, 240), 0.5)
        debris = burst(a.rng, 2.0, 400, 3_000, 0.25) * (0.3 + wander(a.rng, num_of(2.0), 25))
        return 1.5 * boom + 0.6 * debris

    return place(a.num, times, blast), times


def impact(a: Ask) -> Made:
    """Something breaks: a blow, and shards that ring."""
    times = a.times(a.between(1.2, 2.0), 0.15)

    def breaks(_: int) -> Samples:
        out = np.zeros(num_of(0.7), np.float32)
        out[: num_of(0.15)] += 1.2 * burst(a.rng, 0.15, 300, 5_000, 0.02)
        for _ in range(22):
            f, start = a.between(2_200, 8_500), num_of(abs(a.rng.normal(0, 0.14)))
            shard = struck([(f, 1, a.between(0.01, 0.05)), (1.37 * f, 0.5, 0.01)], 0.15)
            end = min(len(out), start + len(shard))
            out[start:end] += 0.35 * shard[: max(0, end - start)]
        return out

    return place(a.num, times, breaks), times


def drum(a: Ask) -> Made:
    times = a.times(a.between(0.2, 0.3), 0.01)
    kick, snare = a.between(50, 70), a.between(170, 220)

    def beat(n: int) -> Samples:
        if n % 4 == 0:
            t = seconds(0.3)
            return (
                1.6 * np.sin(2 * np.pi * (kick + 80 * np.exp(-t / 0.02)) * t) * np.exp(-t / 0.09)
            ).astype(np.float32)
        if n % 4 == 2:
            return struck([(snare, 1, 0.05)], 0.2) + 0.7 * burst(a.rng, 0.2, 1_200, 8_000, 0.06)
        return 0.5 * burst(a.rng, 0.2, 6_500, 14_000, 0.025)

    return place(a.num, times, beat), times


# Tones and textures.
def phone(a: Ask) -> Made:
    pitch, warble_hz = a.between(850, 1_300), a.between(16, 24)
    cycle = harmonics(a.rng, [1, 0.2, 0.5])

    def ringing() -> Samples:
        t = seconds(0.9)
        f = pitch * np.where((t * warble_hz) % 1 < 0.5, 1.0, 1.25)
        edges = np.clip(np.minimum(t, t[-1] - t) / 0.01, 0, 1)
        return (tone(cycle, f, t.size) * edges).astype(np.float32)

    return _calls(a, a.between(1.4, 2.0), ringing)


def instrument(a: Ask) -> Made:
    """Plucked strings, a low and plain melody."""
    base = a.between(110, 200)
    scale = (1, 9 / 8, 5 / 4, 3 / 2, 5 / 3, 2)

    def pluck() -> Samples:
        f, t = base * scale[a.rng.integers(len(scale))], seconds(0.8)
        note = tone(sawtooth(a.rng, 18, 1.0), f, t.size) * np.exp(-t / 0.25)
        return (note * np.minimum(1, t / 0.002)).astype(np.float32)

    return _calls(a, a.between(0.25, 0.45), pluck)


def rain(a: Ask) -> Made:
    hiss = noise(a.rng, a.num, 2_000, 11_000)
    starts = scattered(a.rng, a.duration_s, a.between(60, 120))

    def drop(_: int) -> Samples:
        f = a.between(1_500, 5_000)
        return struck([(f, a.between(1, 3), 0.003)], 0.02)

    return 0.6 * hiss + place(a.num, starts, drop), NO_EVENTS


def wind(a: Ask) -> Made:
    gusts = 0.25 + 0.75 * wander(a.rng, a.num, 0.8)
    whistle_hz = a.between(350, 550) * (1 + 0.7 * wander(a.rng, a.num, 0.9))
    # A whistle is a narrow noise: a tone whose level trembles.
    whistle = tone(harmonics(a.rng, [1]), whistle_hz, a.num) * wander(a.rng, a.num, 30)
    return noise(a.rng, a.num, 60, 420) * gusts + 0.5 * whistle * gusts**2, NO_EVENTS


def from_stage(name: str, *, has_events: bool) -> Maker:
    """The Stage's sound of a class, whose events keep a time of their own."""

    def make(a: Ask) -> Made:
        audio, starts = stage_loop(name, a.rng, a.num)
        return audio, starts if has_events else NO_EVENTS

    return make


_WITH_EVENTS = ("bell", "dog", "crow", "frog", "clock", "drill", "music_box", "machinery")
_TEXTURES = ("fire", "water", "steam", "siren", "alarm", "horn", "saw", "helicopter", "voice")
MAKERS: dict[str, Maker] = {
    **{name: motor_of(name) for name in MOTORS},
    **{name: from_stage(name, has_events=True) for name in _WITH_EVENTS},
    **{name: from_stage(name, has_events=False) for name in _TEXTURES},
    "electricity": from_stage("electric", has_events=False),
    **{
        maker.__name__: maker
        for maker in (
            *(footsteps, running, crowd, horse, carriage, large_animal),
            *(boat, fire_truck, train, tram, bicycle, scooter, skateboard, jet, sailing_boat, fan),
            *(cat, cow, sheep, pig, bird, monkey, insect),
            *(ball, racket, hammer, door, gunshot, explosion, impact, drum),
            *(phone, instrument, rain, wind),
        )
    },
}
