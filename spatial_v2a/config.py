"""One strict configuration for the whole model: composition of the sections, YAML in and out."""

import difflib
import json
from importlib import resources
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

from spatial_v2a.bounded import MAX_YAML_BYTES, parse_yaml, read_text
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.models.autoencoder import AutoencoderConfig
from spatial_v2a.models.generator import GeneratorConfig
from spatial_v2a.perception_config import DetectorName, PerceptionConfig
from spatial_v2a.sampler_config import SamplerConfig
from spatial_v2a.strict import StrictConfig
from spatial_v2a.timing import TIMING, Timing
from spatial_v2a.training_config import TrainingConfig

FORMAT_VERSION = 1
# What keys of older checkpoints and commands are called today, by their old path.
RENAMED = {
    "perception.hold_s": "persistence_s",
    "perception.detector.closer_look_weight": "zoom_weight",
    "perception.rtdetr.closer_look_weight": "zoom_weight",
    "sampler.pan_bend": "pan_curve",
}


class Config(StrictConfig):
    """Everything that rebuilds a model and its training, and nothing else.

    Attributes:
        format_version: layout of checkpoint folders; raised when an old folder no longer loads.
        name: short name of the model, used for run folders and cards.
    """

    format_version: int = FORMAT_VERSION
    # It stands in statements of origin and on terminals.
    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")
    timing: Timing = Timing()
    autoencoder: AutoencoderConfig
    perception: PerceptionConfig
    generator: GeneratorConfig
    sampler: SamplerConfig = SamplerConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.timing != TIMING:
            raise ValueError(
                f"timing is {self.timing}, this release runs at {TIMING}; leave the section out"
            )
        if self.generator.latent_dim != self.autoencoder.latent_dim:
            raise ValueError(
                f"generator.latent_dim is {self.generator.latent_dim} but autoencoder.latent_dim "
                f"is {self.autoencoder.latent_dim}; make them equal"
            )
        if self.generator.forgotten_dims >= self.generator.latent_dim:
            raise ValueError(
                f"generator.forgotten_dims is {self.generator.forgotten_dims} of a latent's "
                f"{self.generator.latent_dim} dimensions, which leaves no history; take "
                f"autoencoder.num_odd_latents, {self.autoencoder.num_odd_latents}, or fewer"
            )
        return self

    def with_detector(self, name: str) -> Self:
        """The same, with boxes found by `yolo` or by `rtdetr`.

        Raises:
            UserError: another name.
        """
        if name not in get_args(DetectorName):
            known = " or ".join(get_args(DetectorName))
            raise UserError(f"detector {name!r} is unknown; choose {known}")
        perception = self.perception.model_copy(update={"boxes_from": name})
        return self.model_copy(update={"perception": perception})


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("spatial_v2a.configs")
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def packaged_yaml(name: str) -> str:
    """Text of a YAML file below configs/, by its path there without the suffix."""
    return resources.files("spatial_v2a.configs").joinpath(f"{name}.yaml").read_text("utf-8")


def load_config(preset_or_path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a preset by name, or a YAML file by path, and applies overrides.

    Args:
        preset_or_path: a name of `preset_names()`, a YAML file, or a checkpoint folder.
        overrides: `section.key=value` strings; the value is read as YAML.

    Raises:
        UserError: missing file, bad YAML, unknown key (with its path), wrong type or value.
    """
    text, where = _read(preset_or_path)
    return parse_config(text, where=where, overrides=overrides)


def parse_config(text: str, *, where: str, overrides: list[str] | None = None) -> Config:
    """Parses YAML text; `where` names its origin in error messages."""
    data = parse_yaml(text, where=where)
    if not isinstance(data, dict):
        raise UserError(f"{where} holds {type(data).__name__}, not a mapping of sections")
    _rename(data)
    for override in as_tuple(overrides or (), name="overrides"):
        _apply(data, override)
    version = data.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where} has format_version {_short(version)}, this release reads {FORMAT_VERSION}; "
            "install the release that wrote it, or save the checkpoint again"
        )
    try:
        # JSON mode is strict about types, yet takes lists for tuples, as YAML has no tuples.
        return Config.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, Config)}") from None


def config_to_yaml(config: Config) -> str:
    """Writes every resolved value; `parse_config` gives back an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def _read(preset_or_path: str | Path) -> tuple[str, str]:
    name = str(preset_or_path)
    if name in preset_names():
        return packaged_yaml(name), f"preset '{name}'"
    path = Path(preset_or_path)
    if path.is_dir():
        path = path / "config.yaml"
    if not path.exists():
        presets = ", ".join(preset_names())
        raise UserError(f"no config file {path}; give a YAML file or a preset: {presets}")
    return read_text(path, max_bytes=MAX_YAML_BYTES), str(path)


def _rename(data: dict[str, Any]) -> None:
    """Gives keys of older files the names of today, in place."""
    for path, new in RENAMED.items():
        *sections, old = path.split(".")
        section: Any = data
        for key in sections:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and old in section:
            section[new] = section.pop(old)


def _apply(data: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in place, making the sections on its way."""
    path, equals, value = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"override {override!r} is not of the form section.key=value")
    for key in keys[:-1]:
        if not isinstance(data.setdefault(key, {}), dict):
            raise UserError(f"override {override!r}: '{key}' is a value, not a section")
        data = data[key]
    data[RENAMED.get(path.strip(), keys[-1])] = parse_yaml(value, where=f"override {override!r}")


def explain(error: ValidationError, kind: type[StrictConfig]) -> str:
    """The first finding of pydantic about a `kind` in one line, with the full key path."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    path = ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"unknown key {_short(path)}; {_suggest(location, kind)}"
    if first["type"] == "missing":
        return f"key '{path}' is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return message
    return f"'{path}' is {_short(first['input'])}: {message[0].lower()}{message[1:]}"


def _short(value: object) -> str:
    """A value for a message, at most 100 characters of it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _suggest(location: list[str], kind: type[StrictConfig]) -> str:
    """Names the valid key nearest to the last part of `location`."""
    section = kind
    for part in location[:-1]:
        section = _section_of(section, part)
    valid = list(section.model_fields)
    near = difflib.get_close_matches(location[-1][:100], valid, n=1, cutoff=0.0)
    return f"did you mean '{'.'.join([*location[:-1], *near])}'?"


def _section_of(section: type[StrictConfig], key: str) -> type[StrictConfig]:
    """The class of a nested section, also when its annotation is `Section | None`."""
    field = section.model_fields.get(key)
    annotation = field.annotation if field else None  # an index into a list names no section
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, StrictConfig):
            return candidate
    return section
