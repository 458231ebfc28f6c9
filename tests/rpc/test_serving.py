"""The digits, served: the whole way of a request, as a user's client sees it."""

import json

from tests.conftest import DigitsServer
from tests.servers import DIGITS
from twinfer import Client


def test_the_held_out_rows_get_the_accuracies_that_the_folder_states(digits_server: DigitsServer) -> None:
    stated = json.loads((DIGITS / "accuracies.json").read_text())
    right = dict.fromkeys(("vision", "language", "fused"), 0)
    rows = {str(number): row for number, row in enumerate(digits_server.rows)}
    with Client(digits_server.address) as client:
        for number, row in rows.items():
            answer = client.infer({"image": row.image, "text": row.text}, member_predictions=True, request_id=number)
            right["fused"] += answer.label == row.label
            for name, member in answer.members.items():
                assert member.prediction is not None
                right[name] += member.prediction.label == row.label
    assert len(rows) == stated["rows"]
    assert {name: round(count / len(rows), 4) for name, count in right.items()} == {name: stated[name] for name in right}
