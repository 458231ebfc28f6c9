"""The rows of a stream that are on their way, as far as it is the same for both clients."""

from twinfer.answers import Outcome
from twinfer.errors import InternalError, MessageTooLarge, Unavailable
from twinfer.requests import Options, Row, as_request, check_size
from twinfer.v1 import ensemble_service_pb2


class Window:
    """Gives each row an id and a timeout, and finds the row of each answer. `len` is how many are unanswered."""

    def __init__(self, options: Options, timeout: float, max_message_bytes: int) -> None:
        """Begin a stream: options and timeout are those of rows that have none of their own."""
        self._options = options
        self._timeout = timeout
        self._max_message_bytes = max_message_bytes
        self._taken = 0
        self._index_by_id: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._index_by_id)

    def add(self, row: Row) -> ensemble_service_pb2.InferStreamRequest | Outcome:
        """Return the message that sends a row, or its outcome if it is too large to be sent.

        Raises ValueError if a row with the same id is still unanswered, and what `make_request` raises.
        """
        index = self._taken
        self._taken += 1
        message = ensemble_service_pb2.InferStreamRequest(request=as_request(row, self._options, are_of_many=True))
        request = message.request
        request_id = request.request_id = request.request_id or str(index)
        if request_id in self._index_by_id:
            raise ValueError(f"row {index} has the request_id {request_id!r}, as has row {self._index_by_id[request_id]}.")
        if not request.options.HasField("timeout"):
            request.options.timeout.FromNanoseconds(round(self._timeout * 1e9))
        try:
            check_size(message, self._max_message_bytes)
        except MessageTooLarge as error:
            return Outcome(index, request_id, error)
        self._index_by_id[request_id] = index
        return message

    def outcome(self, message: ensemble_service_pb2.InferStreamResponse | None) -> Outcome:
        """Return the outcome that a message brings; None is the stream's end, which comes too early here.

        Raises Unavailable for the end, InternalError for an answer to no row of ours.
        """
        if message is None:
            raise self._unanswered()
        index = self._index_by_id.pop(message.request_id, None)
        if index is None:
            raise InternalError(f"the server answered a row that it was not sent: {message.request_id[:60]!r}.")
        return Outcome.from_message(index, message.request_id, message)

    def end(self) -> None:
        """Note the stream's end. Raises Unavailable if rows are unanswered."""
        if self._index_by_id:
            raise self._unanswered()

    def _unanswered(self) -> Unavailable:
        return Unavailable(f"the server ended the stream too early; rows unanswered: {len(self)}.")
