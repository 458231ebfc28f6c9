"""The rows of one batch, as far as it is the same for both clients."""

from collections.abc import Iterable

from twinfer.answers import Answer, Outcome
from twinfer.errors import InternalError
from twinfer.inputs import Inputs
from twinfer.requests import Options, check_size, make_request
from twinfer.statuses import error_from_message
from twinfer.v1 import ensemble_service_pb2


class Batch:
    """Rows to be sent in one message, and the outcomes of the reply."""

    def __init__(
        self, rows: Iterable[Inputs | ensemble_service_pb2.InferRequest], options: Options, max_message_bytes: int
    ) -> None:
        """Make the message; the options are those of rows that have none of their own.

        Raises MessageTooLarge, and what `make_request` raises.
        """
        self.message = ensemble_service_pb2.BatchInferRequest(
            requests=[row if isinstance(row, ensemble_service_pb2.InferRequest) else make_request(row, **options) for row in rows]
        )
        check_size(self.message, max_message_bytes)

    def __len__(self) -> int:
        return len(self.message.requests)

    def outcomes(self, reply: ensemble_service_pb2.BatchInferResponse) -> list[Outcome]:
        """Return the outcome of each row, in their order. Raises InternalError if there are not as many of them."""
        requests = self.message.requests
        if len(reply.results) != len(requests):
            raise InternalError(f"the server answered {len(reply.results)} rows of {len(requests)}.")
        return [
            Outcome(
                index,
                request.request_id or str(index),
                error_from_message(result.error) if result.HasField("error") else Answer.from_message(result.response),
            )
            for index, (request, result) in enumerate(zip(requests, reply.results, strict=True))
        ]
