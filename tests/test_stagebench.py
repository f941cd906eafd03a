"""The suite `stagebench`: its clips are the same bytes everywhere, and no others are scored."""

from pathlib import Path

import numpy as np
import pytest

from spatial_v2a.errors import UserError
from spatial_v2a.inference.evaluation.stagebench import (
    SuiteSpec,
    check_clips,
    clip_content_digest,
    in_suite_order,
    load_suite,
    record_suite,
)
from tests import evaluation_clips as fake


def small_spec(**digests: str) -> SuiteSpec:
    return load_suite().model_copy(update={"digests": digests})


@pytest.fixture(scope="module")
def two_clips(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder of two clips, and their hashes."""
    folder = tmp_path_factory.mktemp("clips")
    samples = [fake.make_sample(key, np.full(30, 10.0)) for key in ("walk-a", "walk-b")]
    fake.write_shard(folder / "000000.tar", samples)
    made = [fake.make_clip(key, np.full(30, 10.0)) for key in ("walk-a", "walk-b")]
    return folder, {clip.key: clip_content_digest(clip) for clip in made}


def test_the_suite_names_every_clip() -> None:
    spec = load_suite()
    assert sum(part.clips for part in spec.parts.values()) == len(spec.digests) == 44
    scenarios = {part.scenario for part in spec.parts.values()}
    assert {key.rsplit("-", 2)[0] for key in spec.digests} == scenarios


def test_a_recording_made_here_has_the_hashes_of_the_suite(tmp_path: Path) -> None:
    """Two engines at once, on any machine: the same clips to the byte."""
    whole = load_suite()
    name = "silence"
    spec = whole.model_copy(update={"parts": {name: whole.parts[name]}})
    (folder,) = record_suite(spec, tmp_path, num_workers=2, progress=lambda line: None)
    keys = [key for key in whole.digests if key.startswith(name)]
    check_clips(small_spec(**{key: whole.digests[key] for key in keys}), [folder])


def test_the_right_clips_pass(two_clips) -> None:
    folder, digests = two_clips
    check_clips(small_spec(**digests), [folder])


def test_other_clips_are_refused(two_clips) -> None:
    folder, digests = two_clips
    first = digests["walk-a"]
    with pytest.raises(UserError, match=f"clip walk-b has hash {digests['walk-b']}, .* {first}"):
        check_clips(small_spec(**{"walk-a": first, "walk-b": first}), [folder])
    with pytest.raises(UserError, match="clip walk-b is none of stagebench's"):
        check_clips(small_spec(**{"walk-a": first}), [folder])
    with pytest.raises(UserError, match="misses clip walk-c and 0 more"):
        check_clips(small_spec(**digests, **{"walk-c": first}), [folder])


def test_the_order_is_that_of_the_suite_however_folders_are_given(tmp_path: Path) -> None:
    """Which noise a clip is drawn from depends on its place."""
    folders = {}
    for name, keys in (("a-last", ["walk-c"]), ("z-first", ["walk-a", "walk-b"])):
        folders[name] = tmp_path / name
        samples = [fake.make_sample(key, np.full(30, 10.0)) for key in keys]
        fake.write_shard(folders[name] / "000000.tar", samples)
    spec = small_spec(**dict.fromkeys(("walk-a", "walk-b", "walk-c"), ""))
    expected = [folders["z-first"], folders["a-last"]]
    for given in ([tmp_path], expected, expected[::-1]):
        assert in_suite_order(spec, given) == expected


def test_a_change_of_one_sample_or_one_box_changes_the_hash() -> None:
    digests = set()
    for azimuth_deg, gain in ((10.0, 1.0), (10.0, 0.999), (10.01, 1.0)):
        mono_L = gain * fake.noise_L(30 * 1600, seed=3)
        clip = fake.make_clip("walk-a", np.full(30, azimuth_deg), mono_L=mono_L)
        digests.add(clip_content_digest(clip))
    assert len(digests) == 3
