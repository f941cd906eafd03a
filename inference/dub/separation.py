"""Divides a mix among its parts by soft masks: the parts' own renders say who has which share.

Wiener filtering with one spectrogram per part (Liutkus & Badeau 2015, eq. 3): what the parts get
sums to the mix, because the masks sum to one in every cell of the short-time Fourier transform.
Legend: P parts, L samples, C audio channels, W window, F frequencies.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from spatial_v2a.timing import TIMING

# A hop of half a tick: the window is long enough to part tones, short enough to part steps.
WINDOW = 2 * TIMING.samples_per_tick
HOP = WINDOW // 4
# Power per frequency below which a render says nothing: -90 dBFS.
FLOOR = 10 ** (-90 / 10) * WINDOW


def divided(mix: Iterator[np.ndarray], renders: list[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The mix divided among its parts and a rest.

    Args:
        mix: float32 [L, 2] pieces of one tick (the last one may be shorter).
        renders: each part alone, in the same pieces.

    Yields:
        float32 [P + 1, L, 2], the rest last; joined, as long as the mix, and their sum is the mix.
    """
    num_streams, window_W11 = len(renders) + 1, _window()[:, None, None]
    inputs_WPC = np.zeros((WINDOW, num_streams, TIMING.num_channels), np.float32)
    output_WPC = np.zeros_like(inputs_WPC)
    waiting_LPC = inputs_WPC[:0]
    # The first samples that leave stand before the sound: no window has covered them whole.
    num_early, num_left = WINDOW - HOP, 0
    for pieces in itertools.chain(zip(mix, *renders, strict=True), [None]):
        if pieces is None:
            added_LPC = np.zeros((WINDOW, num_streams, TIMING.num_channels), np.float32)
        else:
            added_LPC = np.stack(pieces, axis=1)
            num_left += len(added_LPC)
        waiting_LPC = np.concatenate([waiting_LPC, added_LPC])
        done = []
        while len(waiting_LPC) >= HOP:
            inputs_WPC = np.concatenate([inputs_WPC[HOP:], waiting_LPC[:HOP]])
            waiting_LPC = waiting_LPC[HOP:]
            output_WPC += window_W11 * _masked(window_W11 * inputs_WPC)
            done.append(output_WPC[:HOP])
            output_WPC = np.concatenate([output_WPC[HOP:], np.zeros_like(output_WPC[:HOP])])
        out_LPC = np.concatenate(done) if done else output_WPC[:0]
        skipped = min(num_early, len(out_LPC))
        num_early -= skipped
        out_LPC = out_LPC[skipped : skipped + num_left]
        num_left -= len(out_LPC)
        if len(out_LPC):
            yield out_LPC.transpose(1, 0, 2)


def _masked(inputs_WPC: np.ndarray) -> np.ndarray:
    """Spectra of mix (first) and renders in, the mix's spectrum divided out; [W, P + 1, C]."""
    spectra_FPC = np.fft.rfft(inputs_WPC, axis=0)
    power_FPC = np.abs(spectra_FPC[:, 1:]) ** 2
    share_FPC = power_FPC / (power_FPC.sum(axis=1, keepdims=True) + FLOOR)
    rest_F1C = 1.0 - share_FPC.sum(axis=1, keepdims=True)
    shares = np.concatenate([share_FPC, rest_F1C], axis=1)
    return np.fft.irfft(shares * spectra_FPC[:, :1], n=WINDOW, axis=0).astype(np.float32)


def _window() -> np.ndarray:
    """Root of a periodic Hann window, used before and after; overlapped by four it sums to one."""
    phase_W = 2 * np.pi * np.arange(WINDOW) / WINDOW
    return np.sqrt((0.5 - 0.5 * np.cos(phase_W)) / 2).astype(np.float32)
