"""The commands around a server: `serve`, `validate` and `demo`."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import InvalidEnsemble
from .runtime import allow_connections, configure_logging, end_process, run_loop
from .serve import Observer, prepare_ensemble, serve, stop_on_signals
from .settings import ServerSettings, read_settings
from .terminal import Device, TrustCode, TrustList, plain_errors, warmup_bar

Folder = Annotated[Path | None, typer.Argument(help="The ensemble folder. Default: the digits that come with twinfer.")]


def digits_folder() -> Path:
    """Find the ensemble that comes with twinfer: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "ensembles" / "digits"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "ensembles" / "digits"


def serve_command(
    folder: Folder = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT for callers; port 0 picks a free one.")] = None,
    admin_listen: Annotated[str | None, typer.Option(help="HOST:PORT for operators; off by default.")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus; off by default.")] = None,
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
        "trust_code": trust_code, "trust_list": trust_list or None, "log_json": log_json,
    }  # fmt: skip
    # A setting that has a flag of its own can be set either way; the flag wins.
    flags = dict(map(_split_setting, setting or ())) | {name: value for name, value in flags.items() if value is not None}
    with plain_errors():
        settings = read_settings(**flags)
        configure_logging(settings.log_level, settings.log_json)
        allow_connections()
        with warmup_bar() as on_progress:
            observer = Observer(_say_listening, _say_metrics, on_progress, _say_ready)
            run_loop(_serve_until_signal(folder or digits_folder(), settings, observer))
    end_process(0)


def validate_command(
    folder: Annotated[Path, typer.Argument(help="The ensemble folder.")],
    device: Device = None,
    trust_code: TrustCode = None,
    trust_list: TrustList = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Load, probe and warm an ensemble folder without serving it, and say what is wrong with it or how it will run."""
    from .validate import report, report_invalid

    with plain_errors():
        settings = read_settings(device=device, trust_code=trust_code, trust_list=trust_list or None)
        try:
            with warmup_bar() as on_progress:
                ensemble = prepare_ensemble(folder, settings, on_progress)
        except InvalidEnsemble as error:
            if as_json:
                report_invalid(error)
            raise
        report(ensemble, settings, as_json)


def demo_command(
    folder: Folder = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object, and print nothing else.")] = False,
) -> None:
    """Serve the digits on a free port, ask real held-out questions and show the answers."""
    from .demo import demo

    with plain_errors():
        demo(folder or digits_folder(), device, as_json)


def _split_setting(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or name not in ServerSettings.model_fields:
        raise typer.BadParameter(f"found {text!r}; allowed: NAME=VALUE with a NAME of {', '.join(ServerSettings.model_fields)}")
    return name, value


def _say(line: str) -> None:
    """Print what scripts wait for, and read addresses from; whoever has read enough may have gone."""
    with suppress(BrokenPipeError):
        print(line, flush=True)  # noqa: T201


def _say_listening(address: str, admin_address: str) -> None:
    _say(f"listening on {address}")
    if admin_address:
        _say(f"operators on {admin_address}")


def _say_metrics(address: str) -> None:
    _say(f"metrics on {address}")


def _say_ready() -> None:
    _say("ready")


async def _serve_until_signal(folder: Path, settings: ServerSettings, observer: Observer) -> None:
    await serve(folder, settings, observer, stop_on_signals())
