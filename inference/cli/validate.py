"""`spatial-v2a evaluate --validate`: does the metric report known errors by their amount?"""

from pathlib import Path

from spatial_v2a.inference.evaluation.clips import Chosen, given_box_azimuth_deg, read_clips
from spatial_v2a.inference.evaluation.rows import GROUND_TRUTH, Record, stored_rows
from spatial_v2a.inference.evaluation.store import SoundStore
from spatial_v2a.inference.evaluation.validation import validate
from spatial_v2a.truth import clip_truth, window_truth


def validate_metric(out: Path, chosen: Chosen) -> None:
    """Scores known errors of the pan on these clips: validation.md and validation.png."""
    out.mkdir(parents=True, exist_ok=True)
    store = SoundStore(out / "audio")
    records = []
    for number, clip in enumerate(read_clips(chosen, chosen.scored)):
        truth, audio_LC = clip_truth(clip.meta), clip.audio_LC()
        store.save(GROUND_TRUTH, truth.key, audio_LC, stamp="", notes={})
        windows = window_truth(truth, audio_LC)
        records.append(Record(truth, windows, given_box_azimuth_deg(clip.meta), number))
    (ground_truth,) = stored_rows(store, {GROUND_TRUTH: "ground truth"})
    validate(
        records,
        ground_truth=ground_truth,
        folder=out,
        progress=lambda line: print(line, flush=True),
    )
    print((out / "validation.md").read_text())
    print(f"table and picture: {out / 'validation.md'}, {out / 'validation.png'}")
