"""Scores the table: every row by our figures and by the literature's, rows side by side."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from spatial_v2a.inference.evaluation.literature_scoring import LiteratureScorer
from spatial_v2a.inference.evaluation.rows import Record, Row
from spatial_v2a.inference.evaluation.scoring import RowScore, score_row
from spatial_v2a.models.classifier import SoundClassifier
from spatial_v2a.processes import end_with_parent


@dataclass(frozen=True)
class TableScorer:
    """What every row is scored with; it can be sent to another process.

    Attributes:
        records: the clips.
        ground_truth: the row that says where and how loud the sound should be.
        classifier: names the class of a sound, None to leave that column empty.
        literature: scores by the literature's figures.
        seed: of the bootstrap.
    """

    records: list[Record]
    ground_truth: Row
    classifier: SoundClassifier | None
    literature: LiteratureScorer
    seed: int

    def score(self, row: Row) -> RowScore:
        """All figures of one row."""
        score = score_row(
            row,
            self.records,
            ground_truth=self.ground_truth,
            classifier=self.classifier,
            seed=self.seed,
        )
        score.figures.update(self.literature.figures(row))
        return score


def score_table(
    table: list[Row], scorer: TableScorer, *, num_jobs: int, progress: Callable[[str], None]
) -> list[RowScore]:
    """Scores the rows, in order.

    Args:
        table: the rows.
        scorer: what they are scored with.
        num_jobs: processes at once; the figures do not depend on it.
        progress: receives one line per row.
    """
    scores = []

    def add(score: RowScore) -> None:
        scores.append(score)
        progress(f"scored {score.row.name}: row {len(scores)}/{len(table)}")

    if num_jobs == 1:
        for row in table:
            add(scorer.score(row))
        return scores
    with ProcessPoolExecutor(
        num_jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(scorer,),
    ) as pool:
        for score in pool.map(_score, table):
            add(score)
    return scores


# One per process of the pool.
_worker: dict[str, TableScorer] = {}


def _start_worker(scorer: TableScorer) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    _worker["scorer"] = scorer


def _score(row: Row) -> RowScore:
    return _worker["scorer"].score(row)
