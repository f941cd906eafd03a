"""Turns failures to load published weights into one-line errors with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from spatial_v2a.errors import UserError


@contextmanager
def hub_errors(source: str) -> Iterator[None]:
    """Raises UserError for a hub name or folder that cannot be loaded."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load {source}: {reason}; check the name or give a downloaded folder"
        ) from error
