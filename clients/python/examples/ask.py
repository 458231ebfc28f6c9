"""Asks a twinfer server about one image and one text, and prints what each model says and what they say together.

    python ask.py localhost:50051 ensembles/digits/heldout/images/1200.png isben

Needs `pip install twinfer` and nothing else.
"""

import sys
from pathlib import Path

from twinfer import Client, TwinferError


def ask(server: str, image: Path, text: str) -> None:
    """Wait until the server is ready, ask, and print. Raises TwinferError."""
    with Client(server) as client:
        client.wait_until_ready(timeout=60)
        response = client.infer({"image": image, "text": text}, member_predictions=True)
    for name, member in response.members.items():
        # A member that is late or broken has no prediction; the others still make an answer.
        says = f"{member.prediction.label} {member.prediction.probability:.3f}" if member.prediction else str(member.error)
        print(f"{name:10} {member.state:8} weight {member.weight:.2f}  {says}")
    print(f"{'together':10} {response.label} {response.probability:.3f}, disagreement {response.disagreement:.3f}")
    print(f"{response.timings.total_ms:.1f} ms on the server, by {response.ensemble} version {response.version}")


def main() -> int:
    """Read the command line; return 0, 1 for a call that failed, 2 for wrong usage."""
    if len(sys.argv) != 4:
        print(f"usage: python {sys.argv[0]} HOST:PORT IMAGE TEXT", file=sys.stderr)
        return 2
    server, image, text = sys.argv[1:]
    try:
        ask(server, Path(image), text)
    except TwinferError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
