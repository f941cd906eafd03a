"""Makes one range of a dub anew: what stays before it is heard as history, what stays is untouched.

The sound before the range is encoded again and followed by the engine, so that any earlier file
will do, however it was made. Outside the range the samples are those of the earlier file.
Legend: L samples, C audio channels, T ticks, D latent width.
"""

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from spatial_v2a.audio.panning import narrowed
from spatial_v2a.audio.stereo import StereoMeter, summarize
from spatial_v2a.files import Outputs
from spatial_v2a.inference.dub.dubber import Dubber, DubResult, write_errors_as_user_errors
from spatial_v2a.inference.dub.heard import ObjectNotes
from spatial_v2a.inference.dub.mixing import Extent, Finish, mixed_pieces, plan_finish
from spatial_v2a.inference.dub.redo_plan import RedoPlan
from spatial_v2a.inference.dub.splice import AacPackets
from spatial_v2a.inference.dub.take_files import FinishedTake, write_file
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.autoencoder import split_latents
from spatial_v2a.timing import TIMING

# Side chain and watermark have memories of their own; they start this much earlier.
SETTLE_S = 2


def redo(
    dubber: Dubber, plan: RedoPlan, *, on_tick: Callable[[int], None] | None = None
) -> DubResult:
    """Writes the new version, whole or not at all.

    Args:
        dubber: draws the range with its settings; another seed gives another sound.
        plan: from `plan_redo`.
        on_tick: called with the number of ticks gone through.

    Raises:
        UserError: the video or the earlier dub turns out damaged, or the disk is full.
    """
    begin = time.perf_counter()
    (take,) = plan.job.takes
    objects = dubber.object_notes()
    with (
        write_errors_as_user_errors(take.out),
        Outputs(overwrite=plan.job.overwrite) as outputs,
    ):
        outputs.follow_links(plan.job.paths)
        new_LC, times_ms = _draw(dubber, plan, objects, on_tick)
        meter = StereoMeter()
        for start in range(0, len(new_LC), TIMING.samples_per_tick):
            meter.add(new_LC[start : start + TIMING.samples_per_tick])
        finish, finished_LC = _finish(plan, new_LC)
        extent = plan.job.extent(take)
        kept = AacPackets(plan.previous, plan.splice) if plan.splice.is_aac else None
        pieces = plan.splice.apply(plan.stays(extent), finished_LC, start=extent.start)
        origin = dubber.origin(plan.job, 0, finish, redone=plan.redone)
        loudness, sidecars = write_file(
            plan.job, take, pieces, outputs=outputs, origin=origin, kept=kept
        )
    stereo = summarize(meter.energies_TE)
    made = FinishedTake(take.out, None, stereo, loudness, finish, sidecars)
    seen = objects.summary()
    return DubResult(
        takes=(made,),
        duration_s=len(plan.ticks) * float(TIMING.tick_s),
        wall_s=time.perf_counter() - begin,
        tick_ms=times_ms,
        objects=seen,
        warning=dubber.nothing_seen(plan.job, seen),
        settings=dubber.settings_of(plan.job) | {"seed": dubber.settings.seed},
    )


def history_latents(model: SpatialV2A, audio_LC: np.ndarray, *, pan_strength: float) -> Tensor:
    """Normalised latents [T, D] of sound as the generator remembers what it has drawn.

    Args:
        model: whose autoencoder encodes.
        audio_LC: float32 [L, 2], whole ticks.
        pan_strength: the pan of the sound was widened by it, beside the sampler's own widening.
    """
    device = model.latent_mean_D.device
    audio_1CL = torch.from_numpy(np.ascontiguousarray(audio_LC.T))[None].to(device)
    with torch.inference_mode():
        latents_TD = model.autoencoder.encode(audio_1CL).mean_BTD[0]
    wide_TD = model.normalize(latents_TD)
    even_TD, odd_TD = split_latents(wide_TD, model.config.autoencoder.num_odd_latents)
    odd_TD = odd_TD / pan_strength if pan_strength else torch.zeros_like(odd_TD)
    return torch.cat((even_TD, narrowed(odd_TD, model.config.sampler)), dim=-1)


def _draw(
    dubber: Dubber, plan: RedoPlan, objects: ObjectNotes, on_tick: Callable[[int], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """New sound [L, 2] of the plan's ticks, and the milliseconds that each took."""
    history_TD = _history(dubber, plan)
    pieces, times_ms = [], array("d")
    wanted = range(plan.context.start, plan.ticks.stop)
    dubber.begin(plan.job.source, num_ticks=len(wanted))
    images = plan.job.source.ticks(max_width=dubber.max_width)
    with closing(dubber.seen(images, ticks=wanted)) as seen:
        for number, one in enumerate(seen, start=wanted.start):
            if number == plan.ticks.start:
                dubber.restart_noise()
            if number < plan.ticks.start:
                dubber.follow(one, history_TD[number - wanted.start])
            else:
                tick = dubber.hear(one)
                pieces.append(tick.audio_LC)
                objects.add(one.boxes, tick.audio_LC)
                times_ms.append(1e3 * tick.seconds)
            if on_tick is not None:
                on_tick(number + 1)
    return np.concatenate(pieces), np.array(times_ms)


def _history(dubber: Dubber, plan: RedoPlan) -> Tensor:
    """Latents [T, D] of the generated sound before the range."""
    step = TIMING.samples_per_tick
    extent = Extent(plan.context.start * step, plan.context.stop * step)
    if not extent.num_samples:
        return torch.zeros(0, len(dubber.model.latent_mean_D))
    heard_LC = np.concatenate(list(plan.stays(extent))) / 10 ** (plan.gain_db / 20)
    mix = plan.job.options.mix
    if plan.job.track is not None:
        # What is left without the original sound is the generated one, ducked as it was.
        original = mix.model_copy(update={"original": "keep"})
        silence = iter(())
        theirs = mixed_pieces(
            silence,
            original,
            source=plan.job.source,
            track=plan.job.track,
            extent=extent,
            generated_start=extent.start,
        )
        heard_LC = heard_LC - np.concatenate(list(theirs))
    heard_LC = (heard_LC / 10 ** (mix.gain / 20)).astype(np.float32)
    return history_latents(dubber.model, heard_LC, pan_strength=dubber.settings.pan_strength)


def _finish(plan: RedoPlan, new_LC: np.ndarray) -> tuple[Finish, np.ndarray]:
    """The finish and the finished sound [L, 2] of the range's ticks, settled before they begin."""
    first = plan.ticks.start * TIMING.samples_per_tick
    settled = Extent(first - SETTLE_S * TIMING.sample_rate_hz, first + len(new_LC))
    options = plan.job.options

    def make_mix() -> Iterator[np.ndarray]:
        return mixed_pieces(
            iter([new_LC]),
            options.mix,
            source=plan.job.source,
            track=plan.job.track,
            extent=settled,
            generated_start=first,
        )

    finish = plan_finish(
        make_mix,
        start_sample=settled.start,
        loudness=None,
        is_marked=options.watermark,
        gain_db=plan.gain_db,
    )
    pieces = finish.pieces(make_mix(), start_sample=settled.start)
    return finish, np.concatenate(list(pieces))[first - settled.start :]
