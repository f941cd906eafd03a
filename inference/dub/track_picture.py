"""Draws tracked objects: bearing over time with ids, and some frames with their boxes.

Legend: T ticks, H W picture rows and columns.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from spatial_v2a.timing import TIMING

NUM_FRAMES = 6
MAX_FRAME_WIDTH = 320
# Lines get wider from far to near, points.
FAR_WIDTH_PT, NEAR_WIDTH_PT = 1.0, 7.0
# More names than this would hide the lines: the objects seen longest keep theirs.
MAX_LABELS = 24
# More pieces of line than this cannot be told apart.
MAX_COLUMNS = 2000
COLOURS = (*matplotlib.color_sequences["tab10"], *matplotlib.color_sequences["Dark2"])
OUTLINE = (withStroke(linewidth=2.5, foreground="white"),)


@dataclass(frozen=True)
class _Frame:
    tick: int
    image_HWC: NDArray
    entries: Sequence[dict]


class TrackPicture:
    """Collects the objects of a video tick by tick (32 bytes each) and draws them at the end.

    Args:
        num_ticks: length of the video, to choose frames evenly.
    """

    def __init__(self, num_ticks: int) -> None:
        count = min(NUM_FRAMES, num_ticks)
        self._wanted = {int((n + 0.5) * num_ticks / count) for n in range(count)}
        self._frames: list[_Frame] = []
        self._points = array("d")
        self._tick = 0

    def add(self, image_HWC: NDArray, entries: Sequence[dict]) -> None:
        """Notes one tick: its picture, uint8 RGB, and its boxes as the JSONL has them."""
        if self._tick in self._wanted:
            step = -(-image_HWC.shape[1] // MAX_FRAME_WIDTH)
            self._frames.append(_Frame(self._tick, image_HWC[::step, ::step].copy(), entries))
        for entry in entries:
            place = (self._tick, entry["id"], entry["azimuth_deg"], entry["nearness"])
            self._points.extend(place)
        self._tick += 1

    def draw(self, path: Path, *, title: str, labels: Mapping[int, str], edge_deg: float) -> None:
        """Writes the picture as PNG.

        Args:
            path: file to write.
            title: name of the video.
            labels: what is written at each object, by id.
            edge_deg: bearing of the picture's left edge, degrees.
        """
        figure = Figure(figsize=(12, 7.5), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        above, below = figure.subfigures(2, 1, height_ratios=(1, 2.6))
        for axes, frame in zip(
            above.subplots(1, max(1, len(self._frames)), squeeze=False)[0],
            self._frames,
            strict=False,
        ):
            _draw_frame(axes, frame)
        place = below.subplots()
        self._draw_lines(place, labels)
        _label_places(place, edge_deg, end_s=self._tick / TIMING.tick_hz)
        place.set_title(
            f"{title}: {len(labels)} objects; the wider the line, the nearer", fontsize=10
        )
        figure.savefig(path, format="png")

    def _draw_lines(self, axes: Axes, labels: Mapping[int, str]) -> None:
        points = np.array(self._points).reshape(-1, 4)
        ids, counts = np.unique(points[:, 1], return_counts=True)
        named = {int(i) for i in ids[np.argsort(-counts, kind="stable")][:MAX_LABELS]}
        stride = max(1, self._tick // MAX_COLUMNS)
        for track_id in ids.astype(int):
            mine = points[points[:, 1] == track_id]
            _draw_line(axes, mine[::stride], stride, colour_of(track_id))
            if track_id in named:
                time_s, bearing_deg = mine[0, 0] / TIMING.tick_hz, mine[0, 2]
                axes.annotate(
                    labels[track_id], (time_s, bearing_deg), xytext=(3, 5),
                    textcoords="offset points", color=colour_of(track_id), fontsize=9,
                    fontweight="bold", path_effects=OUTLINE, annotation_clip=False, zorder=3,
                )  # fmt: skip


def colour_of(track_id: int) -> tuple[float, float, float]:
    """The colour an object has everywhere in the picture."""
    return COLOURS[(track_id - 1) % len(COLOURS)]


def _draw_line(
    axes: Axes, points: NDArray, stride: int, colour: tuple[float, float, float]
) -> None:
    """One object as pieces between neighbouring ticks; where it was not seen there is a gap."""
    times_s, bearing_deg, near = points[:, 0] / TIMING.tick_hz, points[:, 2], points[:, 3]
    width_pt = FAR_WIDTH_PT + (NEAR_WIDTH_PT - FAR_WIDTH_PT) * near
    # A dot marks objects that were seen for one tick only.
    axes.scatter(times_s[:1], bearing_deg[:1], s=width_pt[:1] ** 2 + 8, color=[colour], lw=0)
    is_next = np.diff(points[:, 0]) <= 2 * stride
    corners = np.stack([times_s, bearing_deg], axis=-1)
    pieces = np.stack([corners[:-1], corners[1:]], axis=1)[is_next]
    axes.add_collection(
        LineCollection(pieces, linewidths=width_pt[1:][is_next], colors=[colour],
                       capstyle="round")
    )  # fmt: skip


def _draw_frame(axes: Axes, frame: _Frame) -> None:
    height, width = frame.image_HWC.shape[:2]
    axes.imshow(frame.image_HWC, extent=(0, width, height, 0), interpolation="bilinear")
    for entry in frame.entries:
        colour = colour_of(entry["id"])
        corner = (entry["x"] * width, entry["y"] * height)
        size = (entry["w"] * width, entry["h"] * height)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, lw=1.8))
        axes.text(
            corner[0] + size[0] / 2, max(corner[1], 0.12 * height), str(entry["id"]), fontsize=10,
            color=colour, ha="center", va="bottom", fontweight="bold", path_effects=OUTLINE,
        )  # fmt: skip
    axes.set_title(f"{frame.tick / TIMING.tick_hz:.2f} s", fontsize=8)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=(), yticks=())


def _label_places(axes: Axes, edge_deg: float, *, end_s: float) -> None:
    """Bearing from RIGHT (bottom) to LEFT (top), as in the pan picture of a dub."""
    ticks = np.arange(-90, 91, 15)
    ticks = ticks[np.abs(ticks) <= edge_deg]
    if len(ticks) < 3:
        ticks = np.array([-edge_deg, 0.0, edge_deg])
    sides = {ticks[0]: "RIGHT  ", 0.0: "centre  ", ticks[-1]: "LEFT  "}
    axes.set_yticks(ticks, [f"{sides.get(deg, '')}{abs(deg):.0f}" for deg in ticks])
    axes.set(ylim=(-edge_deg, edge_deg), ylabel="bearing (degrees)", xlabel="time (s)")
    axes.set_xlim(0, max(end_s, 1 / TIMING.tick_hz))
    axes.axhline(0, color="0.5", lw=0.8)
    axes.grid(alpha=0.3)
