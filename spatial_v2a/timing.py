"""The clocks: every rate and hop in the project is derived from one frozen `Timing`."""

from fractions import Fraction

from pydantic import Field

from spatial_v2a.strict import StrictConfig


class Timing(StrictConfig):
    """Video tick and audio clock; one latent per tick.

    Tick `n` covers the half-open time span [n / tick_hz, (n + 1) / tick_hz) seconds.
    """

    tick_hz: int = Field(default=30, ge=1, le=1000)
    sample_rate_hz: int = Field(default=48_000, ge=8000, le=768_000)
    num_channels: int = Field(default=2, ge=1, le=2)

    @property
    def samples_per_tick(self) -> int:
        """Audio samples per channel in one tick (exact; refuses clocks that do not divide)."""
        samples, rest = divmod(self.sample_rate_hz, self.tick_hz)
        if rest:
            raise ValueError(
                f"sample_rate_hz {self.sample_rate_hz} is not a multiple of tick_hz {self.tick_hz}"
            )
        return samples

    @property
    def tick_s(self) -> Fraction:
        """Length of one tick in seconds, exact."""
        return Fraction(1, self.tick_hz)

    def tick_time_s(self, tick: int) -> Fraction:
        """Start of tick `tick` in seconds, exact."""
        return Fraction(tick, self.tick_hz)

    def num_samples(self, duration_s: Fraction) -> int:
        """Samples per channel nearest to a duration in seconds (ties up)."""
        return int(duration_s * self.sample_rate_hz + Fraction(1, 2))

    def num_ticks(self, duration_s: Fraction) -> int:
        """Ticks needed to cover a duration in seconds (the last one may be partial)."""
        ticks = duration_s * self.tick_hz
        return -(-ticks.numerator // ticks.denominator)


TIMING = Timing()
