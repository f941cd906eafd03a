"""Watermark and statement of origin of a file that live sound goes into."""

from dataclasses import dataclass
from pathlib import Path

from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs
from spatial_v2a.inference.engine.pipeline import Pipeline
from spatial_v2a.inference.marking.manifest import Provenance
from spatial_v2a.inference.marking.provenance import attach, checkpoint_digest


@dataclass
class FileMarks:
    """What marks a file of live sound as synthetic.

    Attributes:
        watermark: whether the samples get the mark.
        provenance: whether a statement of origin is signed.
        command: the command line, for the statement.
        pipeline: what made the sound; known after the file was opened.
        source: the video it heard, if one.
        failure: why the statement is missing, or empty.
    """

    watermark: bool
    provenance: bool
    command: str
    pipeline: Pipeline | None = None
    source: VideoSource | None = None
    failure: str = ""

    def sign(self, path: Path, *, out: Path, outputs: Outputs) -> None:
        """Puts the statement of origin into `path`, which becomes `out`, one of `outputs`.

        A recording cannot be made again: where that fails it stays as it is, and `failure` says so.
        """
        if not self.provenance or self.pipeline is None:
            return
        model = self.pipeline.model
        assert model.folder is not None
        settings = self.pipeline.used_settings(self.source)
        origin = Provenance(
            model=model.config.name,
            checkpoint_sha256=checkpoint_digest(model.folder),
            seed=self.pipeline.settings.seed,
            command=self.command,
            settings=settings | {"is_marked": self.watermark},
        )
        try:
            attach(path, origin, out=out, outputs=outputs)
        except UserError as error:
            self.failure = f"{out} is kept without a statement of origin: {error}"
