"""The commands that need the service, and the way into them from the light client's command line.

What a command needs is imported when it is called, so that `serve` starts without what fitting and drafting need.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import InvalidEnsemble
from .runtime import allow_connections, begin_with_grpc_defaults, configure_logging, end_process, garbage_put_off, run_loop
from .settings import ServerSettings, read_settings
from .terminal import Device, TrustCode, TrustList, plain_errors, warmup_bar

if TYPE_CHECKING:
    from twinfer.v1.ensemble_pb2 import Ensemble

COMMANDS: Mapping[str, str] = {
    "serve": ".cli",
    "validate": ".cli",
    "demo": ".cli",
    "fit": ".fit.command",
    "profile": ".profile.command",
    "init": ".draft.command",
}
"""The modules; each has a function named after the command."""

Folder = Annotated[Path | None, typer.Argument(help="The ensemble folder. Default: the digits that come with twinfer.")]


def main(arguments: Sequence[str]) -> None:
    """Run one of the commands with `arguments`, the command's name first."""
    name, *rest = arguments
    if name == "serve":
        begin_with_grpc_defaults()
    load_command(name)(args=rest, prog_name=f"twinfer {name}")


def load_command(name: str) -> typer.Typer:
    """Import one of the commands, and all that it needs."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    with garbage_put_off():
        module = import_module(COMMANDS[name], __package__)
    app.command()(getattr(module, f"{name}_command"))
    return app


def digits_folder() -> Path:
    """Return the ensemble that comes with twinfer: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "ensembles" / "digits"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "ensembles" / "digits"


def serve_command(
    folder: Folder = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT for callers; port 0 picks a free one.")] = None,
    admin_listen: Annotated[str | None, typer.Option(help="HOST:PORT for operators; off by default.")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus; off by default.")] = None,
    health_listen: Annotated[str | None, typer.Option(help="HOST:PORT for probes, in the clear; off by default.")] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="The listeners' certificate; off by default.")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="The certificate's private key.")] = None,
    tls_client_ca: Annotated[str | None, typer.Option(metavar="FILE", help="Who issues the clients' certificates.")] = None,
    device: Device = None,
    trust_code: TrustCode = None,
    trust_list: TrustList = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, e.g. drain_seconds=5; repeatable."),
    ] = None,
    log_json: Annotated[bool | None, typer.Option("--log-json", help="Log JSON lines.")] = None,
) -> None:
    """Serve an ensemble folder until told to stop. Every setting can also come from a TWINFER_* variable."""
    flags: dict[str, Any] = {
        "listen": listen, "admin_listen": admin_listen, "metrics_listen": metrics_listen, "device": device,
        "health_listen": health_listen, "tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca,
        "trust_code": trust_code, "trust_list": trust_list or None, "log_json": log_json,
    }  # fmt: skip
    # A setting that has a flag of its own can be set either way; the flag wins.
    flags = dict(map(_split_setting, setting or ())) | {name: value for name, value in flags.items() if value is not None}
    with plain_errors():
        settings = read_settings(**flags)
        configure_logging(settings.log_level, settings.log_json)
        allow_connections()
        with garbage_put_off():
            from .serve import OnProgress, serve, stop_on_signals

        async def live(on_progress: OnProgress) -> None:
            await serve(folder or digits_folder(), settings, stop_on_signals(), _say, on_progress)

        with warmup_bar() as on_progress:
            run_loop(live(on_progress))
    end_process(0)


def validate_command(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder.")],
    device: Device = None,
    trust_code: TrustCode = None,
    trust_list: TrustList = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Load, check and warm an ensemble folder without serving it; describe it as a server would, or say what is wrong with it."""
    from twinfer.cli.describe import print_ensemble
    from twinfer.cli.report import plain, print_json

    with plain_errors():
        settings = read_settings(device=device, trust_code=trust_code, trust_list=trust_list or None)
        try:
            ensemble, compared = _prepare(folder, settings)
        except InvalidEnsemble as error:
            if as_json:
                print_json({"is_valid": False, "error": str(error)})
            raise
        if as_json:
            print_json({"is_valid": True, "compared": compared, **plain(ensemble)})
        else:
            print_ensemble(ensemble)
            for line in compared:
                typer.echo(f"compared with its library: {line}")
            typer.secho("valid", fg=typer.colors.GREEN)
    sys.stdout.flush()


def demo_command(
    folder: Folder = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object, and print nothing else.")] = False,
) -> None:
    """Serve the digits on a free port, ask real held-out questions and show the answers."""
    from .demo import demo

    with plain_errors():
        demo(folder or digits_folder(), device, as_json)


def _prepare(folder: Path, settings: ServerSettings) -> tuple["Ensemble", list[str]]:
    """Describe an ensemble that has been loaded and warmed, and say what was compared with the members' own libraries."""
    with garbage_put_off():
        from .rpc import describe
        from .serve import prepare_ensemble
    with warmup_bar() as on_progress:
        ensemble = prepare_ensemble(folder, settings, on_progress)
    return describe(ensemble, settings), [line for member in ensemble.members for line in member.compared]


def _split_setting(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or name not in ServerSettings.model_fields:
        raise typer.BadParameter(f"found {text!r}; allowed: NAME=VALUE with a NAME of {', '.join(ServerSettings.model_fields)}")
    return name, value


def _say(line: str) -> None:
    """Print what scripts wait for, and read addresses from; a reader that has read enough may have gone."""
    with suppress(BrokenPipeError):
        print(line, flush=True)  # noqa: T201
