"""Sixty mutated files through `dub`; the thousand are run by hand (`tests/mutated_files.py`)."""

from pathlib import Path

import pytest

from spatial_v2a import Config
from spatial_v2a.conditioning.compiled import SWITCH
from tests.mutated_files import DAMAGES, make_case, run_cases, write_seeds
from tests.tiny_checkpoint import write_tiny_checkpoint


def test_the_files_follow_from_the_seed(tmp_path: Path) -> None:
    (tmp_path / "seeds").mkdir()
    seeds = write_seeds(tmp_path / "seeds")
    assert len(seeds) >= 12, f"this FFmpeg can make {sorted(seeds)} only"
    cases = [make_case(seeds, seed=1, number=number) for number in range(60)]
    assert cases == [make_case(seeds, seed=1, number=number) for number in range(60)]
    assert {case.damage for case in cases} == {damage.__name__ for damage in DAMAGES}


def test_sixty_files_end_with_a_dub_or_one_line(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "0")
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", tiny_config)
    summary = run_cases(checkpoint, count=60, seed=1)
    assert not summary.faults, "\n".join(map(str, summary.faults))
    endings = {ending for (_, ending), count in summary.counts.items() if count}
    assert endings == {"dubbed", "refused"}, summary.table()
    assert summary.peak_mb < 6000, f"{summary.peak_mb:.0f} MB"
