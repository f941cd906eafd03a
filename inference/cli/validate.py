"""`spatial-v2a evaluate --validate`: does the metric report known errors by their amount?"""

from pathlib import Path

from spatial_v2a.inference.evaluation.clips import Chosen, clip_record, read_clips
from spatial_v2a.inference.evaluation.rows import GROUND_TRUTH, stored_row
from spatial_v2a.inference.evaluation.store import SoundStore
from spatial_v2a.inference.evaluation.validation import validate


def validate_metric(out: Path, chosen: Chosen) -> None:
    """Scores known errors of the pan on these clips: validation.md and validation.png."""
    out.mkdir(parents=True, exist_ok=True)
    store = SoundStore(out / "audio")
    records = []
    for number, clip in enumerate(read_clips(chosen, chosen.scored)):
        records.append(clip_record(clip, number))
        store.save(GROUND_TRUTH, records[-1].key, clip.audio_LC(), stamp="", notes={})
    validate(
        records,
        ground_truth=stored_row(store, GROUND_TRUTH, "ground truth"),
        folder=out,
        progress=lambda line: print(line, flush=True),
    )
    print((out / "validation.md").read_text())
    print(f"table and picture: {out / 'validation.md'}, {out / 'validation.png'}")
