"""What this machine can do: measured rates of products and of memory, and who it is."""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

# Large enough that starting the operation costs nothing and that few caches hold the copy.
MATRIX_SIZE = {"cpu": 1024, "cuda": 4096}
COPY_BYTES = {"cpu": 2**27, "cuda": 2**30}
RATE_S = 0.5


@dataclass(frozen=True)
class Rates:
    """Highest rates seen, with the threads and the type of the run.

    Attributes:
        flops_per_s: product of two square matrices.
        bytes_per_s: copy of a large tensor, bytes read plus bytes written.
    """

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Memory:
    """Memory of the process after the ticks, in MB; `cuda_peak_mb` is None on the CPU."""

    resident_mb: float
    peak_mb: float
    cuda_peak_mb: float | None


class ProcessorTime:
    """What became of the processors' time since it was made (Linux)."""

    def __init__(self) -> None:
        self._before = _processor_ticks()

    def stolen_share(self) -> float | None:
        """Share of the time wanted here that the host gave to others; None where unknown."""
        now = _processor_ticks()
        if now is None or self._before is None:
            return None
        spent = [after - before for after, before in zip(now, self._before, strict=True)]
        user, nice, system, _, _, irq, softirq, stolen = spent
        wanted = user + nice + system + irq + softirq + stolen
        return stolen / wanted if wanted else 0.0


def _processor_ticks() -> list[int] | None:
    """The counts of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        counts = [int(count) for count in line.split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return counts if len(counts) == 8 else None


def measure_rates(
    device: torch.device, dtype: torch.dtype, *, synchronize: Callable[[], None] | None
) -> Rates:
    """Times products and copies for about a second; the best repetition counts.

    The best, because a ceiling must not shrink when another program holds the machine.
    """
    size, num_bytes = MATRIX_SIZE[device.type], COPY_BYTES[device.type]
    a, b, product = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(3))
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    product_s = _best_s(lambda: torch.mm(a, b, out=product), synchronize)
    copy_s = _best_s(lambda: target.copy_(source), synchronize)
    return Rates(2.0 * size**3 / product_s, 2.0 * num_bytes / copy_s)


def _best_s(run: Callable[[], object], synchronize: Callable[[], None] | None) -> float:
    best_s, until_s = float("inf"), time.perf_counter() + RATE_S
    while time.perf_counter() < until_s:
        begin = time.perf_counter()
        run()
        if synchronize is not None:
            synchronize()
        best_s = min(best_s, time.perf_counter() - begin)
    return best_s


def synchronizer(device: torch.device) -> Callable[[], None] | None:
    """Waits until the device has done what it was given; None where calls already wait."""
    return torch.cuda.synchronize if device.type == "cuda" else None


def read_memory(device: torch.device) -> Memory:
    """What the process holds and has held at most."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e6
    cuda = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return Memory(resident_mb=resident_mb(), peak_mb=peak, cuda_peak_mb=cuda)


def describe_machine(device: torch.device) -> dict[str, object]:
    """Who measures: names, cores, and how busy the machine was in the last minute."""
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_1min": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def resident_mb() -> float:
    """Resident memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
