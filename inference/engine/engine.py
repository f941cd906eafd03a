"""The engine: perception of one tick in, one tick of stereo sound out, for B independent streams.

    engine = Engine(SpatialV2A.from_pretrained("stage"))
    audio_BLC = engine.step(features)          # [B, 1600, 2] for each frame of 1/30 s

Legend: B streams, G groups of S streams that share their noise, R rows (streams times guidance
branches), N noise draws, D latent width, V frame token width, C audio channels, L samples, T ticks.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from spatial_v2a.audio.stereo import checked_sound
from spatial_v2a.conditioning.compiled import has_openvino
from spatial_v2a.errors import UserError, install_command
from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.engine.compiled import GraphedPasses, TracedPasses
from spatial_v2a.inference.engine.openvino_passes import OpenVinoPasses
from spatial_v2a.inference.engine.passes import EngineState, Passes
from spatial_v2a.inference.engine.settings import EngineSettings, Weights
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.samplers import shape_noise
from spatial_v2a.models.streaming import reset_

log = logging.getLogger(__name__)

# Of PyTorch and OpenVINO while an engine runs on a CPU.
NUM_CPU_THREADS = 1


class Engine:
    """Runs a model tick by tick; files, live input and evaluation all go through `step`.

    Nothing in a step grows: states are preallocated and written in place.

    Args:
        model: put into eval mode; it stays on its device.
        num_streams: B.
        settings: how sound is drawn.
        streams_per_noise: so many streams in a row draw what the first of them draws, each in its
            own state; the first group of them draws from `settings.seed`, the next from the seed
            after it. A divisor of `num_streams`.
        is_compiled: spends a few seconds to make each tick faster: by OpenVINO on the CPU, or
            traced where it is not installed, as CUDA graphs on a GPU. The samples stay the same,
            with OpenVINO to float32 rounding.

    Attributes:
        model, settings, num_streams: as given.
        device, dtype: those of the model.
        passes: the arithmetic of a tick.
        state: what lives from tick to tick.

    Raises:
        UserError: int8 weights without what they need.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: SpatialV2A,
        *,
        num_streams: int = 1,
        settings: EngineSettings | None = None,
        streams_per_noise: int = 1,
        is_compiled: bool = False,
    ) -> None:
        assert num_streams % streams_per_noise == 0
        self.model = model.eval()
        self.settings = settings or EngineSettings()
        self.num_streams = num_streams
        self._streams_per_noise = streams_per_noise
        reference = model.latent_mean_D
        self.device, self.dtype = reference.device, reference.dtype
        self.passes, self.state = self._start(is_compiled=is_compiled)
        # Drawn in float32 on the CPU whatever the device and type, so that a seed is one sound.
        self._noise_BND = self.passes.example_noise().float().cpu()
        self._random = [torch.Generator() for _ in range(num_streams // streams_per_noise)]
        self.restart_noise()

    def _start(self, *, is_compiled: bool) -> tuple[Passes, EngineState]:
        """The passes, and eager ones in their place where a compiler fails."""
        kind = _kind_of_passes(self.device, self.dtype, self.settings, is_compiled=is_compiled)
        chosen = self.settings.guidance
        options = {
            "num_streams": self.num_streams,
            "nfe": self.settings.nfe,
            "guidance": self.model.config.sampler.guidance if chosen is None else chosen,
            "spatial_guidance": self.settings.spatial_guidance,
            "without": self.settings.without,
            "pan_strength": self.settings.pan_strength,
            "holds_latent": self.device.type == "cpu",
        }
        passes = kind(self.model, **options)
        try:
            return passes, passes.init_state()
        except RuntimeError as error:
            if not is_compiled:
                raise
            log.warning("the engine runs uncompiled, several times slower: %s", error)
        is_narrow = self.settings.weights == "bfloat16"
        passes = Passes(self.model, is_narrow=is_narrow, **options)
        return passes, passes.init_state()

    @property
    def samples_per_tick(self) -> int:
        """Samples per channel of one step."""
        return self.model.timing.samples_per_tick

    @torch.inference_mode()
    def step(self, features_B1: FrameFeatures, active_B: Tensor | None = None) -> Tensor:
        """Hears one tick; at a cut to another scene the history of what was heard ends.

        Args:
            features_B1: perception of one tick, [B, 1] leading; any device.
            active_B: bool [B] on the CPU; idle streams change nothing and return silence.

        Returns:
            float32 [B, samples_per_tick, 2] on the CPU, about -1..1.

        Raises:
            NotSound: samples that are not finite or far beyond full scale: the checkpoint is
                damaged, or the guidance too strong for it. What follows would be no better.
        """
        active = None if active_B is None else active_B.to(self.device)
        self._begin_scenes(features_B1, active_B)
        features = features_B1.map(lambda x: x.to(self.device))
        v_R1V = self.passes.fuse(features, self.state, active)
        condition = self.passes.attend(v_R1V, self.state, active)
        x_BD = self.passes.draw(self._draw_noise(active_B), condition)
        audio_BLC = self.passes.decode(x_BD, self.state, active).cpu()
        checked_sound(
            audio_BLC.numpy(),
            where="what the model makes, of a damaged checkpoint or by too strong a guidance,",
        )
        self.remember(x_BD, active)
        return audio_BLC

    @torch.inference_mode()
    def follow(
        self, features_B1: FrameFeatures, x_BD: Tensor, where_B: Tensor | None = None
    ) -> None:
        """Takes a tick of sound that stands already into the history, instead of drawing it.

        Args:
            features_B1: perception of the tick, as for `step`.
            x_BD: normalised latents [B, D] of the sound, without the engine's widening of the pan.
            where_B: the streams that do so, bool [B] on the CPU; the others draw their own, which
                nobody hears. None is all, and draws no noise.
        """
        x_BD = x_BD.to(self.device, self.dtype)
        self._begin_scenes(features_B1, None)
        features = features_B1.map(lambda x: x.to(self.device))
        v_R1V = self.passes.fuse(features, self.state, None)
        condition = self.passes.attend(v_R1V, self.state, None)
        if where_B is not None:
            drawn_BD = self.passes.draw(self._draw_noise(None), condition)
            x_BD = torch.where(where_B.to(self.device)[:, None], x_BD, drawn_BD)
        self.passes.decode(x_BD, self.state, None)
        self.remember(x_BD, None)

    def remember(self, x_BD: Tensor, active: Tensor | None) -> None:
        """The pass between frames: the next frame need not wait for it."""
        self.passes.remember(x_BD, self.state, active)

    def generate(self, features_BT: FrameFeatures) -> Tensor:
        """Hears T ticks in a row, continuing where the streams are; [B, T * samples, 2]."""
        num_ticks = features_BT.has_boxes_BT.shape[1]
        ticks = [
            self.step(features_BT.map(lambda x, tick=tick: x[:, tick : tick + 1]))
            for tick in range(num_ticks)
        ]
        return torch.cat(ticks, dim=1)

    @torch.inference_mode()
    def reset(self, where_B: Tensor | None = None) -> None:
        """Starts streams anew, noise included; all of them when `where_B` (bool [B]) is None.

        Noise that streams share begins anew with the first of them only.
        """
        where = None if where_B is None else where_B.to(self.device)
        reset_(self.state.decoder, where)
        reset_(self.state.generator, self.passes.rows(where))
        self.restart_noise(where_B)

    def _begin_scenes(self, features_B1: FrameFeatures, active_B: Tensor | None) -> None:
        """Streams that cut to another scene forget what they heard; their sound fades over.

        The decoder and the noise go on: what the one has begun ends without a click, and a scene
        that comes twice does not sound twice the same.
        """
        is_cut_B = features_B1.is_cut_BT[:, 0].cpu()
        if active_B is not None:
            is_cut_B = is_cut_B & active_B
        if is_cut_B.any():
            reset_(self.state.generator, self.passes.rows(is_cut_B.to(self.device)))

    def restart_noise(self, where_B: Tensor | None = None) -> None:
        """Begins the noise of streams anew and leaves their history; arguments as for `reset`."""
        for stream in range(0, self.num_streams, self._streams_per_noise):
            if where_B is None or bool(where_B[stream]):
                group = stream // self._streams_per_noise
                self._random[group].manual_seed(self.settings.seed + group)

    def _draw_noise(self, active_B: Tensor | None) -> Tensor:
        """Noise [B, N, D] for the sampler; that of idle streams waits, shared with its first."""
        num_shared = self._streams_per_noise
        firsts = slice(None, None, num_shared)
        awake = [True] * len(self._random) if active_B is None else active_B[firsts].tolist()
        first_noise = zip(self._noise_BND[firsts], self._random, awake, strict=True)
        for noise_ND, random, is_awake in first_noise:
            if is_awake:
                torch.randn(noise_ND.shape, generator=random, out=noise_ND)
        groups_GSND = self._noise_BND.unflatten(0, (-1, num_shared))
        groups_GSND[:, 1:] = groups_GSND[:, :1]
        shaped_BND = shape_noise(
            self._noise_BND,
            self.model.config.sampler,
            num_odd_latents=self.model.config.autoencoder.num_odd_latents,
        )
        return shaped_BND.to(self.device, self.dtype)


def fastest_weights(device: torch.device | str) -> Weights:
    """What a compiled engine is fastest with on a device; its model in float32."""
    if torch.device(device).type == "cuda":
        return "bfloat16"
    return "int8" if has_openvino() else "float32"


def _kind_of_passes(
    device: torch.device, dtype: torch.dtype, settings: EngineSettings, *, is_compiled: bool
) -> Callable[..., Passes]:
    weights, is_narrow = settings.weights, settings.weights == "bfloat16"
    is_cpu, is_plain = device.type == "cpu", dtype == torch.float32 and not is_narrow
    if is_cpu and is_plain and is_compiled and has_openvino():
        return partial(OpenVinoPasses, weights=weights)
    if weights == "int8":
        raise UserError(
            "int8 weights need OpenVINO, a CPU and float32; ask for float32 weights, or install"
            f" OpenVINO with: {install_command('cpu')}"
        )
    compiled = TracedPasses if is_cpu else GraphedPasses
    return partial(compiled if is_compiled else Passes, is_narrow=is_narrow)


@contextmanager
def engine_threads(
    device: torch.device | str, *, num_threads: int = NUM_CPU_THREADS
) -> Iterator[None]:
    """Thread policy while an engine runs on the CPU; what was set before comes back.

    A tick is many small operations: splitting each over threads costs more than it gains, and one
    thread gives the same rounding on every machine.
    """
    if torch.device(device).type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
