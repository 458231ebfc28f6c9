"""Statistics: what was asked through this protocol, counted so that load generators can tell where a request's time went.

A request counts once on every model that it is an answer of, with its slowest row: the ensemble, all its members, whether they were
needed or not, and the fusion.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ...types import Response
from . import grpc_service_pb2 as pb
from .models import Model


@dataclass(slots=True)
class Sums:
    """What some requests took together, in seconds: from arrival to reply, and of that in each part."""

    requests: int = 0
    total: float = 0.0
    queue: float = 0.0
    decode: float = 0.0
    compute: float = 0.0
    reply: float = 0.0

    def add(self, more: "Sums") -> None:
        """Add what other requests took."""
        self.requests += more.requests
        self.total += more.total
        self.queue += more.queue
        self.decode += more.decode
        self.compute += more.compute
        self.reply += more.reply

    def write(self, seconds: float) -> pb.StatisticDuration:
        """Turn one of the parts into its message; all requests count."""
        return pb.StatisticDuration(count=self.requests, ns=max(0, round(seconds * 1e9)))


@dataclass(slots=True)
class ModelCounts:
    """The counts of one model: what was answered, by the rows that a request carried, and what failed."""

    sizes: defaultdict[int, Sums] = field(default_factory=lambda: defaultdict(Sums))
    failures: Sums = field(default_factory=Sums)
    last_at: float = 0.0

    def write(self, model: Model) -> pb.ModelStatistics:
        """Turn them into their message."""
        all_ = Sums()
        for sums in self.sizes.values():
            all_.add(sums)
        return pb.ModelStatistics(
            name=model.name,
            version=model.version,
            last_inference=round(self.last_at * 1000),
            inference_count=sum(rows * sums.requests for rows, sums in self.sizes.items()),
            execution_count=all_.requests,
            inference_stats=pb.InferStatistics(
                success=all_.write(all_.total),
                fail=self.failures.write(self.failures.total),
                queue=all_.write(all_.queue),
                compute_input=all_.write(all_.decode),
                compute_infer=all_.write(all_.compute),
                compute_output=all_.write(all_.reply),
                cache_hit=pb.StatisticDuration(),
                cache_miss=pb.StatisticDuration(),
            ),
            batch_stats=[
                pb.InferBatchStatistics(
                    batch_size=rows,
                    compute_input=sums.write(sums.decode),
                    compute_infer=sums.write(sums.compute),
                    compute_output=sums.write(sums.reply),
                )
                for rows, sums in sorted(self.sizes.items())
            ],
        )


class Statistics:
    """The counts of all models. Event loop only."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._counts: defaultdict[str, ModelCounts] = defaultdict(ModelCounts)

    def note_answers(self, model: Model, parts: Iterable[Model], answers: Sequence[Response], reply: float, total: float) -> None:
        """Count a request to `model` that was answered after so many seconds, `reply` of them for writing.

        `parts` are the models that an ensemble is made of; they all count, so that their counts agree.
        """
        queue = max(answer.timings.queue_seconds for answer in answers)
        decode = max(answer.timings.decode_seconds for answer in answers)
        device = left = max(answer.timings.device_seconds for answer in answers)
        now, rows = time.time(), len(answers)
        self._note(model, now, rows, Sums(1, total, queue, decode, device, reply))
        for part in parts:
            if part.member >= 0:
                compute = max(answer.members[part.member].device_seconds or 0.0 for answer in answers)
                left -= compute
                self._note(part, now, rows, Sums(1, total=compute, compute=compute))
            else:
                # The fusion, which comes last, stands for the flight: load generators add up what the parts say, and all of them
                # have waited for the same flight.
                compute = max(0.0, left)
                self._note(part, now, rows, Sums(1, total=queue + compute, queue=queue, compute=compute))

    def note_failure(self, model: Model, seconds: float) -> None:
        """Count a request to `model` that failed after so many seconds."""
        self._counts[model.name].failures.add(Sums(1, total=seconds))

    def write(self, models: Iterable[Model]) -> pb.ModelStatisticsResponse:
        """Turn the counts of these models into their message."""
        return pb.ModelStatisticsResponse(model_stats=[self._counts[model.name].write(model) for model in models])

    def _note(self, model: Model, now: float, rows: int, spent: Sums) -> None:
        counts = self._counts[model.name]
        counts.last_at = now
        counts.sizes[rows].add(spent)
