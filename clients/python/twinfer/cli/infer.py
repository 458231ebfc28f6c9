"""`twinfer infer`: asks the server for one answer."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from twinfer.answers import MemberResult, Response
from twinfer.cli.inputs import Image, Inputs, Text, read_inputs
from twinfer.cli.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Json, Server, Timeout, failures_reported
from twinfer.cli.predictions import says, tables
from twinfer.cli.report import plain, print_json, print_table
from twinfer.client import Client
from twinfer.requests import Options, make_request


class PolicyChoice(StrEnum):
    """What an answer needs."""

    require_all = "require_all"
    best_effort = "best_effort"


def infer(
    image: Image = None,
    text: Text = None,
    inputs: Inputs = None,
    server: Server = DEFAULT_SERVER,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many classes, labels or own texts to list.")] = None,
    policy: Annotated[PolicyChoice | None, typer.Option(help="What the answer needs: every member, or any.")] = None,
    timeout: Timeout = DEFAULT_TIMEOUT,  # type: ignore[assignment] # typer sends defaults through the parser too
    members: Annotated[bool, typer.Option("--members", help="Show what each member says by itself.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show also how far each member moved the answer.")] = False,
    as_json: Json = False,
) -> None:
    """Ask for the fused answer to an image and a text."""
    values = read_inputs(image, text, inputs)
    if not values:
        raise typer.BadParameter("there is no input; give --image, --text or --input NAME=VALUE.")
    options: Options = {"member_predictions": members, "explain": explain}
    if top_k is not None:
        options["top_k"] = top_k
    if policy is not None:
        options["policy"] = policy.value
    try:
        request = make_request(values, **options)
    except ValueError as error:  # a text that is not UTF-8, a number that does not fit
        raise typer.BadParameter(str(error)) from None
    with failures_reported(as_json), Client(server) as client:
        answer = client.infer(request, timeout=timeout)
    if as_json:
        print_json(_summary(answer) | plain(answer.message))
    else:
        _print(answer, members or explain, explain)


def _summary(answer: Response) -> dict[str, Any]:
    """Return what most programs want, so that they need not know the contract."""
    if not answer.prediction.classes:
        return {}
    return {"label": answer.label, "probability": answer.probability}


def _print(answer: Response, with_members: bool, is_explained: bool) -> None:
    typer.secho(says(answer.prediction), bold=True)
    if answer.degraded:
        absent = [f"{name} {member.state}" for name, member in answer.members.items() if member.error is not None]
        typer.secho(f"degraded: {', '.join(absent)}", fg=typer.colors.YELLOW)
    for columns, rows in tables(answer.prediction):
        print_table(columns, rows)
    columns = ["member", "state", "weight", "device"] + ["says"] * with_members
    columns += ["moved", "without it"] * is_explained + ["why"] * answer.degraded
    print_table(columns, [_member_row(member, with_members, is_explained, answer.degraded) for member in answer.members.values()])
    timings = answer.timings
    parts = f"decode {timings.decode_ms:.2f}, queue {timings.queue_ms:.2f}, device {timings.device_ms:.2f}"
    overlap = "" if timings.overlap_ratio is None else f"; overlap {timings.overlap_ratio:.2f}"
    if answer.disagreement is not None:
        typer.echo(f"disagreement {answer.disagreement:.3f}")
    execution = f", plan {timings.execution}" if timings.execution else ""
    typer.echo(f"{timings.total_ms:.2f} ms on the server: {parts}; rows in the flight: {timings.batch_size}{execution}{overlap}")
    typer.echo(f"{answer.ensemble} version {answer.version}, fusion version {answer.fusion_version}")


def _member_row(member: MemberResult, with_prediction: bool, is_explained: bool, with_error: bool) -> list[str]:
    row = [member.name, member.state, f"{member.weight:.3f}"]
    row.append("" if member.device_ms is None else f"{member.device_ms:.2f} ms")
    if with_prediction:
        row.append("" if member.prediction is None else says(member.prediction))
    if is_explained:
        attribution = member.attribution
        row += ["", ""] if attribution is None else [f"{attribution.delta:.4f}", says(attribution.without)]
    if with_error:
        row.append("" if member.error is None else member.error.text)
    return row
