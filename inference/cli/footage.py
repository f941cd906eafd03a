"""`spatial-v2a evaluate --suite footage DIR`: scores a checkpoint on footage without positions."""

from pathlib import Path

from spatial_v2a.conditioning.detectors import AUTO
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.engine.object_mix import Objects
from spatial_v2a.inference.evaluation.footage import find_footage, spread
from spatial_v2a.inference.evaluation.generate import RunAs, load_system
from spatial_v2a.inference.evaluation.suite import FootageSuite


def run_footage(
    folder: Path,
    out: Path,
    *,
    checkpoint: str,
    clips: int | None,
    seed: int,
    nfe: int | None,
    device: str,
    fov_deg: float,
    objects: Objects,
    run_as: RunAs | None,
    detector: str | None = None,
    detector_weights: Path | None = None,
) -> None:
    """Dubs a folder of footage, scores it and prints the tables; the same command resumes.

    Args:
        folder: videos, or Walking The Maps, or one of its split lists.
        out: report folder.
        checkpoint: folder, bundled name or hub id.
        clips: how many items to score; None takes all.
        seed: of the sound, the random pans, the shuffle and the bootstrap.
        nfe: denoiser calls per tick; None is the checkpoint's own number.
        device: cpu, cuda or auto.
        fov_deg, objects, run_as: as for `load_system`.
        detector: who finds the boxes; None chooses for every video.
        detector_weights: the user's own weights for it; None is the checkpoint's.

    Raises:
        UserError: nothing can be scored, or an option is out of range.
    """
    found = find_footage(folder, out=out)
    chosen = spread(found.candidates, clips)
    system = load_system(
        checkpoint,
        settings=EngineSettings(seed=seed, nfe=nfe),
        device=device,
        objects=objects,
        fov_deg=fov_deg,
        detector=detector or AUTO,
        detector_weights=detector_weights,
        run_as=run_as,
    )
    out.mkdir(parents=True, exist_ok=True)
    suite = FootageSuite(
        found=found,
        chosen=chosen,
        out=out,
        system=system,
        seed=seed,
        progress=lambda line: print(line, flush=True),
    )
    description = {
        "footage": str(folder),
        "checkpoint": checkpoint,
        "seed": seed,
        "settings": str(system.settings),
        "as": run_as or "dub, by PyTorch alone",
        "objects": objects,
        "device": device,
        "field of view": f"{fov_deg:g} deg",
        "detector": detector or AUTO,
    }
    print(suite.run(description))
    print(f"report: {out / 'report.md'}")
