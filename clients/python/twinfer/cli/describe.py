"""`twinfer describe`: says what the server serves."""

from typing import Any

import typer

from twinfer.cli.access import Access, with_access
from twinfer.cli.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Json, Server, Timeout, failures_reported
from twinfer.cli.report import plain, print_json, print_table
from twinfer.v1 import ensemble_pb2


@with_access
def describe(access: Access, server: Server = DEFAULT_SERVER, timeout: Timeout = DEFAULT_TIMEOUT, as_json: Json = False) -> None:
    """Describe the ensemble that a server serves: inputs, members, fusion, execution, limits."""
    with failures_reported(as_json), access.client(server) as client:
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
    if ensemble.execution:
        typer.echo(f"execution {ensemble.execution}")
    inputs = [
        [one["name"], one["kind"], ", ".join(one["members"]), f"{one['dtype']} {one['shape']}", _notes(one)]
        for one in described["inputs"]
    ]
    print_table(["input", "kind", "for", "as a tensor", ""], inputs)
    _print_members(ensemble)
    typer.echo(describe_fusion(ensemble.fusion))
    if ensemble.HasField("cascade"):
        typer.echo(f"cascade: {ensemble.cascade.first} answers alone from a confidence of {ensemble.cascade.gate:.4f}")
    print_table(["limit", ""], [[name, f"{value:,}"] for name, value in described.get("limits", {}).items()])


def describe_fusion(fusion: ensemble_pb2.Fusion) -> str:
    """Return on one line how the members' outputs become one."""
    parts = [f"fusion {fusion.method}{', fitted,' if fusion.fitted else ''} version {fusion.version}"]
    for word, values in (("weights", fusion.weights), ("temperatures", fusion.temperatures)):
        if values:
            parts.append(f"{word} " + ", ".join(f"{name} {value:.3f}" for name, value in sorted(values.items())))
    return "; ".join(parts)


def describe_breaker(member: ensemble_pb2.Member) -> str:
    """Return on one line the state of a member's circuit breaker, and why it is so."""
    reason = f", {member.breaker_reason}" if member.breaker_reason else ""
    return f"{member.name} is {plain(member)['breaker_state']}{reason}"


def _print_members(ensemble: ensemble_pb2.Ensemble) -> None:
    columns = ["member", "takes", "gives", "loader", "precision", "device", "size"]
    rows = [
        [one.name, ", ".join(one.inputs), one.output, one.loader, one.precision, one.device, f"{one.parameter_bytes / 1e3:,.1f} kB"]
        for one in ensemble.members
    ]
    print_table(columns, rows)
    for one in ensemble.members:
        if one.no_cuda_graph_reason:
            typer.echo(f"{one.name} has no CUDA graphs: {one.no_cuda_graph_reason}")
        elif one.cuda_graph_bytes:
            typer.echo(f"{one.name} has CUDA graphs, in {one.cuda_graph_bytes / 1e6:,.1f} MB")
        if one.breaker_state != ensemble_pb2.BREAKER_STATE_CLOSED:
            typer.secho(describe_breaker(one), fg=typer.colors.YELLOW)
        if one.upstream:
            typer.echo(f"{one.name} takes the output of {', '.join(one.upstream)}")
    solo = [
        [one.name, f"{found.samples}", f"{found.tokens or ''}", f"{found.latency.ToNanoseconds() / 1e6:.2f} ms"]
        for one in ensemble.members
        for found in one.solo_latencies
    ]
    if solo:
        print_table(["member", "samples", "tokens", "solo latency"], solo)


def _notes(spec: dict[str, Any]) -> str:
    notes = ["may be left out"] * bool(spec["optional"])
    if spec["max_tokens"]:
        notes.append(f"at most {spec['max_tokens']} tokens")
    if spec["pair"]:
        notes.append("a pair")
    if spec["max_samples"] > 1:
        notes.append(f"at most {spec['max_samples']} samples")
    return ", ".join(notes)
