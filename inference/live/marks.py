"""Watermark and statement of origin of a file that live sound goes into."""

from dataclasses import dataclass
from pathlib import Path

from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs
from spatial_v2a.inference.engine.engine import EngineSettings, used_settings
from spatial_v2a.inference.marking.manifest import Provenance
from spatial_v2a.inference.marking.provenance import attach, checkpoint_digest
from spatial_v2a.model import SpatialV2A


@dataclass
class FileMarks:
    """What marks a file of live sound as synthetic.

    Attributes:
        watermark: whether the samples get the mark.
        provenance: whether a statement of origin is signed.
        command: the command line, for the statement.
        model, settings: what made the sound; known after the file was opened.
        failure: why the statement is missing, or empty.
    """

    watermark: bool
    provenance: bool
    command: str
    model: SpatialV2A | None = None
    settings: EngineSettings | None = None
    failure: str = ""

    def sign(self, path: Path, *, out: Path, outputs: Outputs) -> None:
        """Puts the statement of origin into `path`, which becomes `out`, one of `outputs`.

        A recording cannot be made again: where that fails it stays as it is, and `failure` says so.
        """
        if not self.provenance or self.model is None or self.settings is None:
            return
        assert self.model.folder is not None
        settings = used_settings(self.model, self.settings)
        origin = Provenance(
            model=self.model.config.name,
            checkpoint_sha256=checkpoint_digest(self.model.folder),
            seed=self.settings.seed,
            command=self.command,
            settings=settings | {"is_marked": self.watermark},
        )
        try:
            attach(path, origin, out=out, outputs=outputs)
        except UserError as error:
            self.failure = f"{out} is kept without a statement of origin: {error}"
