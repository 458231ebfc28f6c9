"""`twinfer infer`: asks the server for one answer."""

from typing import Annotated, Any

import typer

from twinfer.cli.access import Access, with_access
from twinfer.cli.inputs import Image, Inputs, Text, read_inputs
from twinfer.cli.options import DEFAULT_SERVER, DEFAULT_TIMEOUT, Json, Server, Timeout, failures_reported
from twinfer.cli.predictions import says, tables
from twinfer.cli.report import plain, print_json, print_table
from twinfer.requests import Options, PolicyName, make_request
from twinfer.results import MemberResult, Response


@with_access
def infer(
    access: Access,
    image: Image = None,
    text: Text = None,
    inputs: Inputs = None,
    server: Server = DEFAULT_SERVER,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many classes, labels or own texts to list.")] = None,
    policy: Annotated[PolicyName | None, typer.Option(help="What the answer needs: every member, or any.")] = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
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
        options["policy"] = policy
    try:
        request = make_request(values, **options)
    except (TypeError, ValueError) as error:  # a text that is not UTF-8, a number that does not fit, an array of words
        raise typer.BadParameter(str(error)) from None
    with failures_reported(as_json), access.client(server) as client:
        response = client.infer(request, timeout=timeout)
    if as_json:
        print_json(_summary(response) | plain(response.message))
    else:
        _print(response, members or explain, explain)


def _summary(response: Response) -> dict[str, Any]:
    """Return what most programs want, so that they need not know the contract."""
    return {"label": response.label, "probability": response.probability} if response.prediction.classes else {}


def _print(response: Response, with_members: bool, is_explained: bool) -> None:
    typer.secho(says(response.prediction), bold=True)
    if response.degraded:
        absent = [f"{name} {member.state}" for name, member in response.members.items() if member.error is not None]
        typer.secho(f"degraded: {', '.join(absent)}", fg=typer.colors.YELLOW)
    for columns, rows in tables(response.prediction):
        print_table(columns, rows)
    columns = ["member", "state", "weight", "device"] + ["says"] * with_members
    columns += ["delta", "without it"] * is_explained + ["why"] * response.degraded
    results = response.members.values()
    print_table(columns, [_member_row(one, with_members, is_explained, response.degraded) for one in results])
    if response.disagreement is not None:
        typer.echo(f"disagreement {response.disagreement:.3f}")
    timings = response.timings
    parts = f"decode {timings.decode_ms:.2f}, queue {timings.queue_ms:.2f}, device {timings.device_ms:.2f}"
    execution = f", execution {timings.execution}" if timings.execution else ""
    overlap = "" if timings.overlap_ratio is None else f", overlap ratio {timings.overlap_ratio:.2f}"
    typer.echo(f"{timings.total_ms:.2f} ms on the server: {parts}; batch of {timings.batch_size}{execution}{overlap}")
    typer.echo(f"{response.ensemble} version {response.version}, fusion version {response.fusion_version}")


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
