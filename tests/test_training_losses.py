"""The net under every change of the training code: the losses of each recipe, to the bit.

Another processor or PyTorch rounds otherwise; there a thousandth is allowed.
"""

import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.training.cli import run
from tests import evaluation_clips as fake
from tests.tiny_checkpoint import write_tiny_checkpoint

LOSSES = Path(__file__).with_name("training_losses.json")
NUM_TICKS = 66  # a window of the classifier takes two seconds
ARGUMENTS = {
    "vae": "vae --config tiny",
    "diffusion": "diffusion --config tiny --init {init}",
    "consistency": "consistency --config tiny --init {init}",
    "detector": "perception --config tiny --only detector --steps 3",
    "rtdetr": "perception --config tiny --only rtdetr --steps 3",
    "depth": "perception --config tiny --only depth --steps 3",
    "dino": "perception --config tiny --only dino --steps 3",
    "classifier": "classifier --val {data} --steps 3",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> dict[str, Path]:
    """Two clips of two classes, in pictures of noise, and a checkpoint."""
    folder = tmp_path_factory.mktemp("losses")
    samples = []
    for number, name in enumerate(("bell", "engine")):
        random = np.random.default_rng(number)
        picture = random.integers(0, 255, (240, 320, 3), dtype=np.uint8)
        sound = fake.noise_L(NUM_TICKS * 1600, seed=number) * np.linspace(0.2, 1, NUM_TICKS * 1600)
        options = {"class_name": name, "frames": [picture] * NUM_TICKS, "mono_L": sound}
        path = fake.path_deg(NUM_TICKS, seed=number)
        samples.append(fake.make_sample(f"walk-{number}", path, **options))
    fake.write_shard(folder / "data" / "0.tar", samples)
    return {"data": folder / "data", "init": write_tiny_checkpoint(folder / "tiny", tiny_config)}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, PyTorch {torch.__version__}"


@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_losses_are_these(recipe: str, folders, tmp_path: Path, monkeypatch) -> None:
    losses, backward = [], torch.Tensor.backward

    def noted(loss: torch.Tensor, *args, **options) -> None:
        losses.append(float(loss.detach()))
        backward(loss, *args, **options)

    monkeypatch.setattr(torch.Tensor, "backward", noted)
    words = f"{ARGUMENTS[recipe]} --data {{data}} --out {{out}}"
    torch.manual_seed(0)
    assert run(words.format(**folders, out=tmp_path / "out").split()) == 0
    known = json.loads(LOSSES.read_text())
    found = [loss.hex() for loss in losses]
    if processor() == known["processor"]:
        assert found == known[recipe]
    else:
        expected = [float.fromhex(text) for text in known[recipe]]
        np.testing.assert_allclose(losses, expected, rtol=1e-3)
