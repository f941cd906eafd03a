"""The ranking of takes as a report: JSON for programs, Markdown for people, every take listed."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from spatial_v2a.inference.dub.take_scores import TakeScore, rank_takes

PARTS = ("sync", "direction", "artefacts")
METHOD = {
    "total": "plain mean of the scores that can be told; 0 bad, 1 good",
    "sync": "onsets against motion and moving pan against moving boxes, in time minus out of time;"
    " 0.5 is what an unrelated sound gets",
    "direction": "bearing heard against the boxes: 1 the same, 0.5 in the middle, 0 mirrored",
    "artefacts": "halved for every twentieth of the ticks with a click, clipping or a cut, times"
    " the share without missing sound",
}
NOT_TOLD = "-"


def explain(score: TakeScore) -> list[str]:
    """One line for each part of a score, with the figures behind it."""
    return [_explain_sync(score), _explain_direction(score), _explain_artefacts(score)]


def behind(score: TakeScore, best: TakeScore) -> str:
    """What each part adds to the distance from the best take; empty for the best itself."""
    pairs = {part: (getattr(score, part), getattr(best, part)) for part in PARTS}
    told = {part: pair for part, pair in pairs.items() if None not in pair}
    if score is best or not told:
        return ""
    steps = {part: (own - other) / len(told) for part, (own, other) in told.items()}
    # The largest reason first.
    shown = sorted(steps.items(), key=lambda item: item[1])
    reasons = ", ".join(f"{part} {step:+.3f}" for part, step in shown if abs(step) >= 0.0005)
    return f"{score.total - best.total:+.3f} to the best: {reasons or 'no difference'}"


def ranking_table(names: Sequence[str], scores: Sequence[TakeScore]) -> str:
    """Markdown table of the takes, best first."""
    rows = [
        "| rank | take | total | sync | direction | artefacts | why |",
        "|---|---|---|---|---|---|---|",
    ]
    order = rank_takes(scores)
    for rank, index in enumerate(order, start=1):
        score = scores[index]
        parts = " | ".join(as_text(getattr(score, part)) for part in PARTS)
        why = behind(score, scores[order[0]]) or "best"
        rows.append(f"| {rank} | {names[index]} | {score.total:.3f} | {parts} | {why} |")
    return "\n".join(rows)


def ranking_json(names: Sequence[str], scores: Sequence[TakeScore], *, title: str) -> str:
    """The ranking for programs.

    Args:
        names: one per take, like its file name.
        scores: one per take, in the same order.
        title: name of the video.
    """
    order = rank_takes(scores)
    ranking = [
        {"rank": rank, "take": names[index], "index": index, "total": scores[index].total}
        | asdict(scores[index])
        | {"why": behind(scores[index], scores[order[0]]), "parts": explain(scores[index])}
        for rank, index in enumerate(order, start=1)
    ]
    document = {"video": title, "method": METHOD, "ranking": ranking}
    return json.dumps(document, indent=1) + "\n"


def as_text(value: float | None) -> str:
    """Two digits, or a dash for what cannot be told."""
    return NOT_TOLD if value is None else f"{value:.2f}"


def ranking_markdown(names: Sequence[str], scores: Sequence[TakeScore], *, title: str) -> str:
    """The ranking for people, with the reasons for every score."""
    lines = [f"# Takes of {title}, best first", "", ranking_table(names, scores), ""]
    for index in rank_takes(scores):
        lines += [f"**{names[index]}**", *(f"- {line}" for line in explain(scores[index])), ""]
    lines += [f"- *{name}*: {meaning}" for name, meaning in METHOD.items()]
    return "\n".join(lines) + "\n"


def _explain_sync(score: TakeScore) -> str:
    if score.sync is None:
        return f"sync {NOT_TOLD}: nothing moves in the picture"
    if score.silent_share == 1.0:
        return f"sync {score.sync:.2f}: silent throughout"
    told = []
    if score.movement_contrast is not None:
        told.append(f"pan with boxes {score.movement_contrast:+.2f}")
    if score.onset_contrast is not None:
        told.append(f"onsets with motion {score.onset_contrast:+.2f}")
    if score.shift_ms is not None:
        told.append(f"agrees most at {score.shift_ms:+.0f} ms")
    return f"sync {score.sync:.2f}: {', '.join(told)}"


def _explain_direction(score: TakeScore) -> str:
    if score.direction is None:
        return f"direction {NOT_TOLD}: no boxes"
    if score.pan_error_deg is None:
        return f"direction {score.direction:.2f}: silent whenever a box is there"
    r = "" if score.pan_correlation is None else f", r {score.pan_correlation:.2f}"
    return f"direction {score.direction:.2f}: off by {score.pan_error_deg:.0f} degrees{r}"


def _explain_artefacts(score: TakeScore) -> str:
    if score.artefacts is None:
        return f"artefacts {NOT_TOLD}: no sound"
    return (
        f"artefacts {score.artefacts:.2f}: {score.num_clicks} clicks,"
        f" {score.num_clipped_samples} clipped samples, {score.num_cuts} cuts,"
        f" silent {score.silent_share:.0%}, missing {score.missing_share:.0%}"
    )
