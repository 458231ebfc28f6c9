"""Statistics: what was asked through this protocol, counted so that load generators can tell where a request's time went.

A request counts once on every model that it is an answer of, with its slowest row: the ensemble, all its members, whether they were
needed or not, and the fusion.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...rows import Answer
from . import grpc_service_pb2 as pb
from .models import Model


@dataclass(slots=True)
class Total:
    """How often something happened, and for how long in all."""

    count: int = 0
    nanoseconds: int = 0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.nanoseconds += max(0, round(seconds * 1e9))

    def write(self) -> pb.StatisticDuration:
        """Turn it into its message."""
        return pb.StatisticDuration(count=self.count, ns=self.nanoseconds)


@dataclass(slots=True)
class Work:
    """The parts of computing an answer."""

    decoding: Total = field(default_factory=Total)
    computing: Total = field(default_factory=Total)
    replying: Total = field(default_factory=Total)

    def add(self, spans: "Spans") -> None:
        """Count one more."""
        self.decoding.add(spans.decode)
        self.computing.add(spans.compute)
        self.replying.add(spans.reply)


@dataclass(frozen=True, slots=True)
class Spans:
    """Where a request's time went in one model, in seconds."""

    queue: float
    decode: float
    compute: float
    reply: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.queue + self.decode + self.compute + self.reply


@dataclass(slots=True)
class ModelCounts:
    """The counts of one model; `sizes` are the requests by how many rows they carried."""

    rows: int = 0
    last_at: float = 0.0
    success: Total = field(default_factory=Total)
    failure: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    work: Work = field(default_factory=Work)
    sizes: dict[int, Work] = field(default_factory=dict)

    def add(self, rows: int, spans: Spans, seconds: float) -> None:
        """Count a request of so many rows that was answered after so many seconds."""
        self.rows += rows
        self.last_at = time.time()
        self.success.add(seconds)
        self.queue.add(spans.queue)
        self.work.add(spans)
        self.sizes.setdefault(rows, Work()).add(spans)

    def write(self, model: Model) -> pb.ModelStatistics:
        """Turn them into their message."""
        return pb.ModelStatistics(
            name=model.name,
            version=model.version,
            last_inference=round(self.last_at * 1000),
            inference_count=self.rows,
            execution_count=self.success.count,
            inference_stats=pb.InferStatistics(
                success=self.success.write(),
                fail=self.failure.write(),
                queue=self.queue.write(),
                compute_input=self.work.decoding.write(),
                compute_infer=self.work.computing.write(),
                compute_output=self.work.replying.write(),
                cache_hit=pb.StatisticDuration(),
                cache_miss=pb.StatisticDuration(),
            ),
            batch_stats=[
                pb.InferBatchStatistics(
                    batch_size=rows,
                    compute_input=work.decoding.write(),
                    compute_infer=work.computing.write(),
                    compute_output=work.replying.write(),
                )
                for rows, work in sorted(self.sizes.items())
            ],
        )


class Statistics:
    """The counts of all models. Event loop only."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._counts: dict[str, ModelCounts] = {}

    def note_answers(self, model: Model, parts: Iterable[Model], answers: Sequence[Answer], reply: float, seconds: float) -> None:
        """Count a request to `model` that was answered after so many seconds, `reply` of them for writing.

        `parts` are the models that an ensemble is made of; they all count, so that their counts agree.
        """
        queue = max(answer.timings.queue_seconds for answer in answers)
        decode = max(answer.timings.decode_seconds for answer in answers)
        device = max(answer.timings.device_seconds for answer in answers)
        self._of(model).add(len(answers), Spans(queue, decode, device, reply), seconds)
        left = device
        for part in parts:
            if part.member >= 0:
                compute = max(answer.members[part.member].device_seconds or 0.0 for answer in answers)
                left -= compute
                spans = Spans(0.0, 0.0, compute, 0.0)
            else:
                # The fusion, which comes last, stands for the flight: load generators add up what the parts say, and all of them
                # have waited for the same flight.
                spans = Spans(queue, 0.0, max(0.0, left), 0.0)
            self._of(part).add(len(answers), spans, spans.total)

    def note_failure(self, model: Model, seconds: float) -> None:
        """Count a request to `model` that failed after so many seconds."""
        self._of(model).failure.add(seconds)

    def write(self, models: Iterable[Model]) -> pb.ModelStatisticsResponse:
        """Turn the counts of these models into their message."""
        return pb.ModelStatisticsResponse(model_stats=[self._of(model).write(model) for model in models])

    def _of(self, model: Model) -> ModelCounts:
        return self._counts.setdefault(model.name, ModelCounts())
