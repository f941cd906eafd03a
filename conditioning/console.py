"""What the two console scripts share: --version, --quiet, --verbose, and errors as one line."""

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

import spatial_v2a
from spatial_v2a.errors import UserError

# Of all modules of this package; what other libraries say stays at the level of the root logger.
_LOGGER = logging.getLogger("spatial_v2a")
# Typer carries its own copy of click and exports only this subclass of its usage errors.
_USAGE_ERROR = typer.BadParameter.__mro__[1]


def is_quiet() -> bool:
    """Whether --quiet was given: errors are all that is said besides what was asked for."""
    return not _LOGGER.isEnabledFor(logging.WARNING)


def new_app(*, help: str) -> typer.Typer:
    """An app with --version, --quiet, --verbose and shell completion; commands are yet to come."""
    app = typer.Typer(pretty_exceptions_enable=False, help=help, no_args_is_help=True)
    app.callback()(_common_options)
    return app


def build_command(app: typer.Typer) -> Any:
    """The click command of an app; every subcommand takes --quiet and --verbose too."""
    command = typer.main.get_command(app)
    shared = [option for option in command.params if option.name in ("quiet", "verbose")]
    _add_to_subcommands(command, shared)
    return command


_INTERRUPTED = 130


def run_app(
    command_of: Callable[[], Any], arguments: list[str], *, prog_name: str, stopped: str
) -> int:
    """Runs a command line and returns its exit code; a user's mistake is one line and 2.

    Args:
        command_of: gives the command, from `build_command`.
        arguments: words after the program's name.
        prog_name: the program's name.
        stopped: what Ctrl-C leaves behind, in words.
    """
    _LOGGER.setLevel(logging.NOTSET)
    as_json = "--json" in arguments
    # Names of files may hold bytes that are no text.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command_of().main(args=arguments, prog_name=prog_name, standalone_mode=False)
        if code == _INTERRUPTED:  # which typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except UserError as error:
        return _refuse(str(error), as_json=as_json)
    except _USAGE_ERROR as error:
        dashed = next((word for word in arguments if word[:1] == "-" and os.path.lexists(word)), "")
        hint = f" For the file of that name write ./{dashed}." if dashed else ""
        return _refuse(f"{error.format_message()}{hint} See {prog_name} --help", as_json=as_json)
    except OSError as error:
        # Any look at a path can find this; all else that the system refuses is told where it is.
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _refuse(f"{error.filename}: {error.strerror}; give a shorter name", as_json=as_json)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo(stopped, err=True)
        return _INTERRUPTED


def _refuse(message: str, *, as_json: bool) -> int:
    line = " ".join(message.split())
    typer.echo(f"error: {line}", err=True)
    if as_json:
        # Whoever reads JSON gets an object whatever happens.
        typer.echo(json.dumps({"error": line}))
    return 2


def _show_version(ctx: typer.Context, is_asked: bool) -> None:
    if is_asked and not ctx.resilient_parsing:
        typer.echo(f"{ctx.find_root().info_name} {spatial_v2a.__version__}")
        raise typer.Exit


def _be_quiet(is_asked: bool) -> None:
    _set_level(is_asked, logging.ERROR)


def _be_verbose(is_asked: bool) -> None:
    _set_level(is_asked, logging.DEBUG)


def _set_level(is_asked: bool, level: int) -> None:
    if is_asked and _LOGGER.level not in (logging.NOTSET, level):
        raise UserError("--quiet and --verbose ask for opposite things; leave one out")
    if is_asked:
        _LOGGER.setLevel(level)


def _common_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and stop.",
            callback=_show_version,
            is_eager=True,
            expose_value=False,
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="No progress, warnings or summary: errors only.",
            callback=_be_quiet,
            expose_value=False,
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Also say what is chosen: device, threads, detector.",
            callback=_be_verbose,
            expose_value=False,
        ),
    ] = False,
) -> None:
    pass


def _add_to_subcommands(command: Any, options: list[Any]) -> None:
    for subcommand in getattr(command, "commands", {}).values():
        subcommand.params += options
        _add_to_subcommands(subcommand, options)
