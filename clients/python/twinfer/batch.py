"""The rows of one batch, as far as it is the same for both clients."""

from collections.abc import Iterable

from twinfer.answers import Outcome
from twinfer.errors import InternalError
from twinfer.requests import Options, Row, as_request, check_size
from twinfer.v1 import ensemble_service_pb2


class BatchRequest:
    """Rows to be sent in one message, and the outcomes of the reply."""

    def __init__(self, rows: Iterable[Row], options: Options, max_message_bytes: int) -> None:
        """Make the message; the options are those of rows that have none of their own.

        Raises MessageTooLarge, and what `make_request` raises.
        """
        self.message = ensemble_service_pb2.BatchInferRequest(requests=[as_request(row, options, are_of_many=True) for row in rows])
        check_size(self.message, max_message_bytes)

    def __len__(self) -> int:
        return len(self.message.requests)

    def outcomes(self, reply: ensemble_service_pb2.BatchInferResponse) -> list[Outcome]:
        """Return the outcome of each row, in their order. Raises InternalError if there are not as many of them."""
        requests = self.message.requests
        if len(reply.results) != len(requests):
            raise InternalError(f"the server answered {len(reply.results)} rows of {len(requests)}.")
        return [
            Outcome.from_message(index, request.request_id or str(index), result)
            for index, (request, result) in enumerate(zip(requests, reply.results, strict=True))
        ]
