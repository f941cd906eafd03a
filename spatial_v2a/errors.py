"""The one exception that a user can cause; command lines print it in one line and exit with 2."""


class UserError(ValueError):
    """Bad input: the message names the offending value and the remedy, in one line."""
