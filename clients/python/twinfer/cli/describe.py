"""`twinfer describe`: says what the server serves."""

from collections.abc import Sequence
from typing import Any

import typer

from twinfer.cli.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Json, Server, Timeout, failures_reported
from twinfer.cli.report import plain, print_json, print_table
from twinfer.client import Client
from twinfer.v1 import ensemble_pb2


def describe(
    server: Server = DEFAULT_SERVER,
    timeout: Timeout = DEFAULT_TIMEOUT,  # type: ignore[assignment] # typer sends defaults through the parser too
    as_json: Json = False,
) -> None:
    """Describe the ensemble that a server serves: inputs, members, fusion, limits."""
    with failures_reported(as_json), Client(server) as client:
        ensemble = client.describe(timeout=timeout)
    if as_json:
        print_json(plain(ensemble))
    else:
        print_ensemble(ensemble)


def print_ensemble(ensemble: ensemble_pb2.Ensemble) -> None:
    """Print an ensemble for people."""
    described = plain(ensemble)
    typer.secho(f"{ensemble.name} version {ensemble.version}", bold=True)
    labels = ", ".join(ensemble.labels[:12]) + ", ..." * (len(ensemble.labels) > 12)
    typer.echo(f"{described['task'].lower()}{f' into {len(ensemble.labels)}: {labels}' if labels else ''}")
    typer.echo(f"policy {ensemble.policy}")
    print_table(
        ["input", "kind", "for", "as a tensor", ""],
        [
            [spec["name"], spec["kind"], ", ".join(spec["members"]), f"{spec['dtype']} {spec['shape']}", _notes(spec)]
            for spec in described["inputs"]
        ],
    )
    _print_members(ensemble.members)
    typer.echo(describe_fusion(ensemble.fusion))
    if ensemble.HasField("cascade"):
        typer.echo(f"cascade: {ensemble.cascade.first} answers alone from a confidence of {ensemble.cascade.gate:.4f}")
    print_table(["limit", ""], [[name, f"{value:,}"] for name, value in described.get("limits", {}).items()])


def _print_members(members: Sequence[ensemble_pb2.Member]) -> None:
    print_table(
        ["member", "takes", "gives", "loader", "precision", "device", "size"],
        [
            [
                one.name,
                ", ".join(one.inputs),
                one.output,
                one.loader,
                one.precision,
                one.device,
                f"{one.parameter_bytes / 1e3:,.1f} kB",
            ]
            for one in members
        ],
    )
    for one in members:
        if one.no_cuda_graph_reason:
            typer.echo(f"{one.name} is not captured: {one.no_cuda_graph_reason}")
        elif one.cuda_graph_bytes:
            typer.echo(f"{one.name} is captured, in {one.cuda_graph_bytes / 1e6:,.1f} MB")
    for one in members:
        if one.breaker_state != ensemble_pb2.BREAKER_STATE_CLOSED:
            typer.secho(
                f"{one.name} is switched {plain(one)['breaker_state'].lower()}, {one.breaker_reason}", fg=typer.colors.YELLOW
            )
        if one.upstream:
            typer.echo(f"{one.name} is fed by {', '.join(one.upstream)}")


def describe_fusion(fusion: ensemble_pb2.Fusion) -> str:
    """Say on one line how the members' outputs become one."""
    parts = [f"fusion {fusion.method}{', fitted,' if fusion.fitted else ''} version {fusion.version}"]
    for word, values in (("weights", fusion.weights), ("temperatures", fusion.temperatures)):
        if values:
            parts.append(f"{word} " + ", ".join(f"{name} {value:.3f}" for name, value in sorted(values.items())))
    return "; ".join(parts)


def _notes(spec: dict[str, Any]) -> str:
    notes = ["may be left out"] * bool(spec["optional"])
    if spec["max_tokens"]:
        notes.append(f"at most {spec['max_tokens']} tokens")
    if spec["pair"]:
        notes.append("a pair")
    if spec["max_samples"] > 1:
        notes.append(f"at most {spec['max_samples']} samples")
    return ", ".join(notes)
