"""The pan picture: where the source is in the picture, and where its sound is, over time."""

from array import array
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatial_v2a.audio.panning import law_azimuth_deg
from spatial_v2a.audio.stereo import level_dbfs, mid_side_dbfs, pan_curve, summarize
from spatial_v2a.conditioning.annotations import read_lines
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.timing import TIMING

EDGE_DEG = 60.0
# Of a true position, from the camera.
MAX_BEARING_DEG = 360.0
# Boxes that the detector itself hardly believes would only be noise in the picture.
MIN_SCORE = 0.3
FLOOR_DBFS = -70.0


class PanReport:
    """Collects the boxes of a dub tick by tick (32 bytes each) and draws them at the end."""

    def __init__(
        self, config: PerceptionConfig, *, is_annotated: bool = False, truth: Path | None = None
    ) -> None:
        """Prepares an empty report.

        Args:
            config: whose class names the boxes use.
            is_annotated: whether the boxes are annotated rather than detected, for the legend.
            truth: JSONL whose `sources` are the true positions; its boxes are not.
        """
        self._names = config.class_names
        self._is_annotated = is_annotated
        self._truth = _true_bearings(truth) if truth else {}
        self._boxes = array("d")
        self._tick = 0

    def add(self, features: FrameFeatures) -> None:
        """Notes the boxes of one tick, [1, 1] leading."""
        mask_K = features.box_mask_BTK[0, 0].cpu().numpy()
        fields_KF = features.boxes_BTKF[0, 0].cpu().numpy()[mask_K]
        class_K = features.class_BTK[0, 0].cpu().numpy()[mask_K]
        bearing_K = np.degrees(fields_KF[:, BOX_FIELDS.index("azimuth")])
        score_K = fields_KF[:, BOX_FIELDS.index("score")]
        for bearing_deg, score, class_index in zip(bearing_K, score_K, class_K, strict=True):
            if score >= MIN_SCORE:
                self._boxes.extend((self._tick, bearing_deg, score, class_index))
        self._tick += 1

    def draw(
        self,
        path: Path,
        energies_TE: np.ndarray,
        *,
        title: str,
        truth_energies_TE: np.ndarray | None = None,
    ) -> None:
        """Writes the picture as PNG.

        Args:
            path: file to write.
            energies_TE: stereo energies of the generated sound, per tick.
            title: name of the video.
            truth_energies_TE: energies of the true sound, when it is known.
        """
        figure = Figure(figsize=(11, 6), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        place, level = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        self._draw_sources(place)
        times_T = (np.arange(len(energies_TE)) + 0.5) / TIMING.tick_hz
        if truth_energies_TE is not None:
            true_deg = law_azimuth_deg(pan_curve(truth_energies_TE[: len(times_T)]))
            place.plot(times_T[: len(true_deg)], true_deg, color="0.25", lw=1.2, ls="--",
                       label="true sound")  # fmt: skip
        heard_deg = law_azimuth_deg(pan_curve(energies_TE))
        place.plot(times_T, heard_deg, color="tab:red", lw=2.0, label="generated sound")
        _label_places(place, title, energies_TE)
        loudness = np.maximum(level_dbfs(energies_TE), FLOOR_DBFS)
        level.fill_between(times_T, FLOOR_DBFS, loudness, color="tab:red", alpha=0.4, lw=0)
        level.set(ylim=(FLOOR_DBFS, 0), ylabel="level\n(dBFS)", xlabel="time (s)")
        level.set_xlim(0, max(len(times_T), 1) / TIMING.tick_hz)
        level.grid(alpha=0.3)
        figure.savefig(path, format="png")

    def _draw_sources(self, axes: Axes) -> None:
        boxes = np.array(self._boxes).reshape(-1, 4)
        colours = matplotlib.color_sequences["tab10"]
        kind = "annotated" if self._is_annotated else "detected"
        for index, class_index in enumerate(np.unique(boxes[:, 3]).astype(int)):
            chosen = boxes[boxes[:, 3] == class_index]
            axes.scatter(
                (chosen[:, 0] + 0.5) / TIMING.tick_hz, chosen[:, 1], s=9, lw=0,
                alpha=np.clip(chosen[:, 2], 0.2, 0.8), color=colours[index % len(colours)],
                label=f"{kind} box: {self._names[class_index]}",
            )  # fmt: skip
        for index, (name, points) in enumerate(self._truth.items()):
            times_s, bearing_deg = np.array(points).T
            axes.plot(times_s, bearing_deg, color="black", lw=1.0, alpha=0.7,
                      label=f"true position: {name}" if index < 4 else None)  # fmt: skip


def _label_places(axes: Axes, title: str, energies_TE: np.ndarray) -> None:
    stereo = summarize(energies_TE)
    mid_db, side_db = mid_side_dbfs(energies_TE)
    axes.set_title(
        f"{title}: side {side_db:.1f} dBFS, mid {mid_db:.1f} dBFS, heard left"
        f" {stereo.left:.0%} / centre {stereo.centre:.0%} / right {stereo.right:.0%} of the time",
        fontsize=10,
    )
    ticks = np.arange(-EDGE_DEG, EDGE_DEG + 1, 15)
    sides = {-EDGE_DEG: "RIGHT  ", 0.0: "centre  ", EDGE_DEG: "LEFT  "}
    axes.set_yticks(ticks, [f"{sides.get(deg, '')}{abs(deg):.0f}" for deg in ticks])
    axes.set(ylim=(-EDGE_DEG, EDGE_DEG), ylabel="bearing (degrees)")
    axes.axhline(0, color="0.5", lw=0.8)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize=8, markerscale=2)


def _true_bearings(path: Path) -> dict[str, list[tuple[float, float]]]:
    """(seconds, degrees) of every source by name; boxes are what is used, not what is true."""
    tracks: dict[str, list[tuple[float, float]]] = {}
    for line, _ in read_lines(path):
        sources = line.get("sources")
        for source in sources if isinstance(sources, list) else []:
            # Nobody has to say them, and whoever does may mean something else by the words.
            bearing_deg = source.get("azimuth_deg") if isinstance(source, dict) else None
            if isinstance(bearing_deg, int | float) and abs(bearing_deg) <= MAX_BEARING_DEG:
                name = f"{source.get('class', 'source')} {source.get('id', '')}".strip()
                tracks.setdefault(name, []).append((float(line["t"]), float(bearing_deg)))
    return tracks
