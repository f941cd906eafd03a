"""The suite `stagebench`: which clips it holds, recording them, and refusing any others.

configs/benchmarks/stagebench.yaml names the recordings (scenario, seed, number) and the hash of
every clip, so that two people measure on the same bytes.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml

from spatial_v2a.clip import Clip, read_shards
from spatial_v2a.config import packaged_yaml
from spatial_v2a.errors import UserError
from spatial_v2a.inference.evaluation.clips import read_metadata
from spatial_v2a.strict import StrictConfig

SUITE = "stagebench"
MAX_WORKERS = 4


class Part(StrictConfig):
    """One recording of the suite.

    Attributes:
        scenario: of the Stage recorder.
        clips: how many.
        seed: of the recorder.
        sources: sounding actors per clip, None for the scenario's own number.
        stems: whether every source is recorded alone, too.
    """

    scenario: str
    clips: int
    seed: int
    sources: int | None = None
    stems: bool = False


class SuiteSpec(StrictConfig):
    """The whole suite.

    Attributes:
        version: raised whenever a clip changes; reports of two versions do not compare.
        revision: of the recorder.
        maps: map sets of the recorder; none of them is trained on.
        clip_seconds: length of every clip.
        parts: recordings by name.
        digests: `clip_content_digest` of every clip by key.
    """

    version: int
    revision: int
    maps: str
    clip_seconds: float
    parts: dict[str, Part]
    digests: dict[str, str]


def load_suite() -> SuiteSpec:
    """The suite that ships with the package."""
    return SuiteSpec.model_validate(yaml.safe_load(packaged_yaml(f"benchmarks/{SUITE}")))


def clip_content_digest(clip: Clip) -> str:
    """Hash of all a clip holds: metadata, every picture, depth, sound and stems.

    It is taken from what the parts contain, not from their compressed bytes, so that another
    build of zlib or FLAC does not change it.
    """
    digest = hashlib.sha256(clip.parts["json"])
    data, offsets = clip.jpegs
    digest.update(data)
    digest.update(offsets.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(clip.depth_THW).tobytes())
    sounds = [clip.audio_LC()]
    sounds += [clip.stem_LC(s["id"]) for s in clip.meta["sources"] if s["stem"] is not None]
    for audio_LC in sounds:
        digest.update(np.round(audio_LC * 32768).astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def check_clips(spec: SuiteSpec, folders: list[Path]) -> None:
    """Refuses folders that do not hold exactly the suite's clips.

    Raises:
        UserError: a clip is missing, is none of the suite's, or has another content.
    """
    found = set()
    for clip in _clips(folders):
        key = clip.meta["key"]
        if key not in spec.digests:
            raise UserError(
                f"clip {key} is none of {SUITE}'s; score it without --suite, or take it out"
            )
        digest = clip_content_digest(clip)
        if digest != spec.digests[key]:
            raise UserError(
                f"clip {key} has hash {digest}, {SUITE} version {spec.version} has "
                f"{spec.digests[key]}: record the suite anew with this version of the package, "
                "or score your clips without --suite"
            )
        found.add(key)
    missing = sorted(set(spec.digests) - found)
    if missing:
        where = ", ".join(str(folder) for folder in folders)
        raise UserError(
            f"{where} misses clip {missing[0]} and {len(missing) - 1} more of {SUITE}; "
            "leave out --data to record them"
        )


def in_suite_order(spec: SuiteSpec, folders: list[Path]) -> list[Path]:
    """The folders of checked clips, one per part, in the order of the suite.

    Which noise a clip is drawn from and how the bootstrap draws depend on the order of the clips,
    so it must not depend on how folders are named or given.
    """
    place = {key: n for n, key in enumerate(spec.digests)}
    first: dict[Path, int] = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*.tar"))):
        n = min(place[meta["key"]] for meta in read_metadata([path]))
        first[path.parent] = min(n, first.get(path.parent, n))
    return sorted(first, key=lambda folder: first[folder])


def record_suite(
    spec: SuiteSpec, out: Path, *, num_workers: int, progress: Callable[[str], None]
) -> list[Path]:
    """Records what is not there yet with `spatial-v2a-train record`; returns the folders.

    Raises:
        UserError: no recorder in this environment, or it failed (its message is above).
    """
    folders = []
    for name, part in spec.parts.items():
        folder = out / name
        command = [_recorder(), "record", "--out", str(folder), "--scenario", part.scenario]
        hours = part.clips * spec.clip_seconds / 3600.0
        command += ["--hours", f"{hours:.9f}", "--seed", str(part.seed), "--maps", spec.maps]
        command += ["--clip-seconds", f"{spec.clip_seconds:g}", "--revision", str(spec.revision)]
        command += ["--workers", str(max(1, min(num_workers, MAX_WORKERS)))]
        command += ["--stems-share", "1" if part.stems else "0"]
        command += [] if part.sources is None else ["--sources", str(part.sources)]
        progress(f"recording {part.clips} clips: {name}")
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            raise UserError(
                f"recording {SUITE}/{name} failed, see above; mend that, or give recorded clips "
                "with --data"
            )
        folders.append(folder)
    return folders


def _clips(folders: list[Path]) -> Iterator[Clip]:
    paths = [path for folder in folders for path in sorted(folder.rglob("*.tar"))]
    return read_shards(paths)


def _recorder() -> str:
    """The console script of this environment: inference does not import training."""
    beside = Path(sys.executable).parent
    found = shutil.which("spatial-v2a-train", path=str(beside)) or shutil.which("spatial-v2a-train")
    if found is None:
        raise UserError(
            f"no spatial-v2a-train program in {beside}; run make setup in the clone again, or give"
            " recorded clips with --data"
        )
    return found
