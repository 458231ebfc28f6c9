"""Many requests, in one call or over one RPC stream, as far as both clients share it."""

from collections.abc import Iterable

from twinfer.errors import InternalError, MessageTooLarge, Unavailable
from twinfer.requests import Options, Request, as_request, check_size
from twinfer.results import Outcome
from twinfer.v1 import ensemble_service_pb2 as pb


class BatchRequest:
    """Requests to be sent in one message, and the outcomes of the reply. `len` is how many there are."""

    def __init__(self, requests: Iterable[Request], options: Options, max_message_bytes: int) -> None:
        """Make the message; the options are those of requests that have none of their own.

        Raises MessageTooLarge, and what `make_request` raises.
        """
        self.message = pb.BatchInferRequest(requests=[as_request(one, options, are_of_many=True) for one in requests])
        check_size(self.message, max_message_bytes)

    def __len__(self) -> int:
        return len(self.message.requests)

    def outcomes(self, reply: pb.BatchInferResponse) -> list[Outcome]:
        """Return the outcome of each request, in their order. Raises InternalError if there are not as many of them."""
        if len(reply.results) != len(self):
            raise InternalError(f"the server answered {len(reply.results)} requests of {len(self)}.")
        return [
            Outcome.from_message(index, request.request_id or str(index), result)
            for index, (request, result) in enumerate(zip(self.message.requests, reply.results, strict=True))
        ]


class Window:
    """The requests of an RPC stream that are under way; each gets an id and a timeout. `len` is how many are unanswered."""

    def __init__(self, options: Options, timeout: float, max_message_bytes: int) -> None:
        """Begin a stream; options and timeout are those of requests that have none of their own."""
        self._options = options
        self._timeout = timeout
        self._max_message_bytes = max_message_bytes
        self._taken = 0
        self._index_by_id: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._index_by_id)

    def add(self, one: Request) -> pb.InferStreamRequest | Outcome:
        """Return the message that sends a request, or its outcome if it is too large to be sent.

        Raises ValueError if a request with the same id is still unanswered, and what `make_request` raises.
        """
        index = self._taken
        self._taken += 1
        message = pb.InferStreamRequest(request=as_request(one, self._options, are_of_many=True))
        request = message.request
        request_id = request.request_id = request.request_id or str(index)
        if request_id in self._index_by_id:
            raise ValueError(f"request {index} has the request_id {request_id!r}, as has request {self._index_by_id[request_id]}.")
        if not request.options.HasField("timeout"):
            request.options.timeout.FromNanoseconds(round(self._timeout * 1e9))
        try:
            check_size(message, self._max_message_bytes)
        except MessageTooLarge as error:
            return Outcome(index, request_id, error)
        self._index_by_id[request_id] = index
        return message

    def outcome(self, message: pb.InferStreamResponse | None) -> Outcome:
        """Return the outcome that a message brings; None is the stream's end, which comes too early here.

        Raises Unavailable for the end, InternalError for an answer to a request that was not sent.
        """
        if message is None:
            raise self._unanswered()
        index = self._index_by_id.pop(message.request_id, None)
        if index is None:
            raise InternalError(f"the server answered a request that it was not sent: {message.request_id[:60]!r}.")
        return Outcome.from_message(index, message.request_id, message)

    def end(self) -> None:
        """Note the stream's end. Raises Unavailable if requests are unanswered."""
        if self._index_by_id:
            raise self._unanswered()

    def _unanswered(self) -> Unavailable:
        return Unavailable(f"the server ended the stream too early; requests unanswered: {len(self)}.")
