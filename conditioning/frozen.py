"""What every frozen encoder shares: it never trains, and it is fed the same resized pictures."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenEncoder(nn.Module):
    """An encoder whose weights take no gradient and which stays in eval mode for good.

    A subclass sets `model`, defines `forward(x_BCHW) -> Tensor` and `example()`, ends its
    `__init__` with `freeze()`, and calls `run` instead of itself.
    """

    model: nn.Module

    def example(self) -> Tensor:
        """One input picture [1, 3, H, W] of the size the network runs at."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Switches to eval mode and detaches every parameter; call at the end of `__init__`."""
        self.requires_grad_(False)
        super().train(False)
        # A tuple keeps the traced copy out of the module tree and of the state dict.
        self._traced: tuple[torch.jit.ScriptModule, ...] = ()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Does nothing: a parent module's `train()` must not reach a frozen encoder."""
        return self

    def optimize(self) -> None:
        """Compiles the network for one picture at a time on the CPU (about half the time)."""
        example = self.example()
        if next(self.parameters()).device.type != "cpu":
            return
        # Pictures come as rows of pixels: convolutions need not turn them around.
        self.model.to(memory_format=torch.channels_last)
        with torch.no_grad(), warnings.catch_warnings():
            # Shapes are fixed here, which is all that the tracer warns about.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self, example, check_trace=False)
            # Not optimize_for_inference: its layout conversions cost more than they save here.
            self._traced = (torch.jit.freeze(traced),)
            for _ in range(3):
                self.run(example)

    def run(self, x_BCHW: Tensor) -> Tensor:
        """The network's output, through the compiled copy where that fits."""
        if self._traced and len(x_BCHW) == 1 and x_BCHW.device.type == "cpu":
            return self._traced[0](x_BCHW)
        return self(x_BCHW)


def resize_frames(frames_BHWC: Tensor, height: int, width: int) -> Tensor:
    """Resizes uint8 pictures [B, H, W, 3] with antialiasing to uint8 [B, 3, height, width]."""
    x_BCHW = frames_BHWC.permute(0, 3, 1, 2)
    if x_BCHW.shape[-2:] == (height, width):
        return x_BCHW
    return functional.interpolate(x_BCHW, (height, width), mode="bilinear", antialias=True)


def normalize_imagenet(x_BCHW: Tensor) -> Tensor:
    """uint8 0..255 to float32 with ImageNet's mean and deviation."""
    shape = (1, 3, 1, 1)
    mean = torch.tensor(IMAGENET_MEAN, device=x_BCHW.device).view(shape)
    std = torch.tensor(IMAGENET_STD, device=x_BCHW.device).view(shape)
    return (x_BCHW.float() / 255.0 - mean) / std
