"""A small sound classifier: it names the class of what sounds, whatever its level and side.

Legend: B windows, C audio channels, L samples, M mel bands, T spectrum frames, K classes.
"""

from pathlib import Path

import torch
import torchaudio
from pydantic import Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from spatial_v2a.bounded import MAX_JSON_BYTES, read_text
from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs
from spatial_v2a.strict import Count, StrictConfig, Width
from spatial_v2a.tensor_files import allowed_bytes, build_within, inside, read_tensors

STEM = "classifier"
WEIGHTS_NAME = f"{STEM}.safetensors"
CONFIG_NAME = "classifier.json"


class ClassifierConfig(StrictConfig):
    """Shape of the classifier, and the names its outputs stand for."""

    class_names: list[str] = Field(min_length=1, max_length=10_000)
    sample_rate_hz: int = Field(ge=8000, le=192_000)
    window_samples: int = Field(ge=1024, le=2**22)
    fft_samples: int = Field(default=1024, ge=64, le=2**16)
    hop_samples: int = Field(default=480, ge=16, le=2**16)
    num_mels: Count = 64
    widths: list[Width] = Field(default=[24, 48, 64, 96], min_length=1, max_length=16)
    dynamic_range_db: float = Field(default=60.0, gt=0, le=200)


class SoundClassifier(nn.Module):
    """Log-mel of the summed channel power, four strided convolutions, pooling over time.

    Summed power makes it blind to panning; taking the level relative to the window's peak makes
    it blind to gain.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = torchaudio.transforms.MelSpectrogram(
            config.sample_rate_hz,
            n_fft=config.fft_samples,
            hop_length=config.hop_samples,
            n_mels=config.num_mels,
            f_min=40.0,
            power=2.0,
        )
        blocks: list[nn.Module] = []
        width_in = 1
        for width in config.widths:
            blocks += [
                nn.Conv2d(width_in, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            width_in = width
        self.blocks = nn.Sequential(*blocks)
        # Bands stay apart up to here: pitch is what tells two hums from each other.
        num_bands = config.num_mels // 2 ** len(config.widths)
        self.mix = nn.Sequential(nn.Linear(width_in * num_bands, 128), nn.ReLU())
        self.out = nn.Sequential(nn.Dropout(0.2), nn.Linear(256, len(config.class_names)))

    def mel_power(self, audio_BCL: Tensor) -> Tensor:
        """Mel power [B, M, T], summed over the channels: it does not depend on panning."""
        return self.mel(audio_BCL.float()).sum(dim=1)

    def classify(self, power_BMT: Tensor) -> Tensor:
        """Logits [B, K] from mel power: levels in dB below the window's own peak, as -1..1."""
        level_db = 10 * torch.log10(power_BMT + 1e-10)
        level_db = level_db - level_db.amax(dim=(1, 2), keepdim=True)
        span_db = self.config.dynamic_range_db
        spectrum_BMT = level_db.clamp(min=-span_db) / (span_db / 2) + 1
        hidden = self.blocks(spectrum_BMT.unsqueeze(1))
        hidden_BTF = self.mix(hidden.flatten(1, 2).transpose(1, 2))
        return self.out(torch.cat([hidden_BTF.mean(dim=1), hidden_BTF.amax(dim=1)], dim=1))

    def forward(self, audio_BCL: Tensor) -> Tensor:
        """Logits [B, K] of windows of sound [B, C, L], one to two seconds long, any level."""
        return self.classify(self.mel_power(audio_BCL))

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Writes `classifier.safetensors` and `classifier.json` (floats stored as `dtype`)."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: value.to(dtype).contiguous() if value.is_floating_point() else value
            for name, value in self.state_dict().items()
            if not name.startswith("mel.")
        }
        text = self.config.model_dump_json(indent=1) + "\n"
        with Outputs(overwrite=True) as outputs:
            save_file(state, outputs.new(folder / WEIGHTS_NAME))
            outputs.new(folder / CONFIG_NAME).write_text(text, "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "SoundClassifier":
        """Reads a saved classifier in evaluation mode.

        Raises:
            UserError: when a file is missing or does not fit.
        """
        if not (folder / CONFIG_NAME).exists():
            raise UserError(
                f"cannot read the classifier in {folder} (no {CONFIG_NAME}); train one with"
                " `spatial-v2a-train classifier`"
            )
        text = read_text(inside(folder, CONFIG_NAME), max_bytes=MAX_JSON_BYTES)
        try:
            config = ClassifierConfig.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "it"
            raise UserError(
                f"{folder / CONFIG_NAME}: {where}: {first['msg']}; train one with"
                " `spatial-v2a-train classifier`"
            ) from error
        state = read_tensors(folder, STEM)
        budget = allowed_bytes(sum(tensor.numel() for tensor in state.values()))
        model = build_within(budget, lambda: cls(config), settings=str(folder / CONFIG_NAME))
        wanted = {
            name: (value.shape, value.is_floating_point())
            for name, value in model.state_dict().items()
            if not name.startswith("mel.")
        }
        found = {name: (value.shape, value.is_floating_point()) for name, value in state.items()}
        wrong = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        if wrong:
            raise UserError(f"classifier in {folder} does not fit: {wrong[0]}; train it again")
        # The mel filters follow from the config and are not stored.
        model.load_state_dict(state, strict=False)
        return model.eval()


def bundled_classifier_folder() -> Path:
    """Where the classifier that ships with the package lies."""
    return Path(__file__).parents[1] / "bundled" / "classifier"


@torch.no_grad()
def clip_logits(
    classifier: SoundClassifier,
    audio_CL: Tensor,
    *,
    starts: list[int],
) -> Tensor:
    """Log-probabilities averaged over windows of one recording.

    Args:
        classifier: in evaluation mode.
        audio_CL: sound at the classifier's rate, full scale 1.
        starts: first sample of each window; every window must fit.

    Returns:
        [K] mean log-probability.
    """
    length = classifier.config.window_samples
    windows_BCL = torch.stack([audio_CL[:, start : start + length] for start in starts])
    return classifier(windows_BCL).log_softmax(dim=1).mean(dim=0)
