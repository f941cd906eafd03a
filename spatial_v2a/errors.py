"""The one exception that a user can cause; command lines print it in one line and exit with 2."""

from collections.abc import Iterable
from os import PathLike
from typing import TypeVar

Item = TypeVar("Item")


class UserError(ValueError):
    """Bad input: the message names the offending value and the remedy, in one line."""


class NotSound(UserError):
    """The model gave samples that are not finite or far beyond full scale."""


def as_tuple(items: Iterable[Item], *, name: str) -> tuple[Item, ...]:
    """Several items, where one alone would be read letter by letter or fail far from here.

    Args:
        items: any iterable but a text or a path.
        name: of the argument, for the message.

    Raises:
        UserError: a single item.
    """
    if isinstance(items, str | bytes | PathLike) or not isinstance(items, Iterable):
        raise UserError(f"{name} takes several items, got {items!r}; write {name}=[{items!r}]")
    return tuple(items)
