"""Base class of every configuration section: frozen, and an unknown key is an error."""

from pydantic import BaseModel, ConfigDict


class StrictConfig(BaseModel):
    """Immutable settings; unknown keys and silently coerced types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
