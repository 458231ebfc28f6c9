"""The ensemble at work: members and fusion, loaded, checked and warm; it forms batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..device import Device, Execution, Stream
from ..inputs import RequestProcessor
from ..spec import EnsembleSpec
from ..types import InferRequest, Policy, Request, Samples
from .batch import Batch, Excluded, Streams
from .buffers import BUFFER_SETS, FusionBuffers, StagingBuffers
from .cascade import Cascade
from .fusion_versions import FusionBuilder, FusionVersion, capture_fusion
from .latency import LatencyTable
from .member import Member
from .memory import MemberMemory
from .run import MemberRun


class Ensemble:
    """Members and a fusion on a device. Made by `load_ensemble`; warm once `latencies` is set."""

    def __init__(
        self, folder: Path, spec: EnsembleSpec, labels: tuple[str, ...], members: Sequence[Member], fusion_builder: FusionBuilder,
        device: Device,
    ) -> None:  # fmt: skip
        """Take over what `load_ensemble` has loaded from `folder` and checked."""
        self.folder = folder
        self.spec = spec
        self.labels = labels
        self.members = tuple(members)
        """In the order in which responses list them; upstream members stand before those that take their outputs."""
        self.fusion_builder = fusion_builder
        self.fusion = fusion_builder.build(1, spec)
        """Replaced as a whole when the fusion changes; every batch keeps the version that it was formed with."""
        self.device = device
        self.execution: Execution = spec.execution or device.default_execution
        self.default_policy = Policy[spec.policy.upper()]
        self.latencies: LatencyTable | None = None
        self.memory: Mapping[str, MemberMemory] = {}
        """What each member takes, by name; known once the ensemble is warm."""
        self.cascade = Cascade(list(spec.members).index(spec.cascade.first)) if spec.cascade else None
        self.processor = RequestProcessor(spec, [member.inputs for member in members])
        own = tuple(member.device.stream(member.name, member.spec.priority == "high") for member in members)
        first = device.launch_stream("serial")
        in_turn = tuple(first if member.device is device else stream for member, stream in zip(members, own, strict=True))
        self.streams: Mapping[Execution, Streams] = {
            "serial": Streams("serial", first, in_turn, first),
            "streams": Streams("streams", device.launch_stream("copy"), own, None),
        }
        self._fusion_buffers = [self._make_fusion_buffers() for _ in range(BUFFER_SETS)]
        self._free_fusion_buffers = list(self._fusion_buffers)

    @property
    def classes(self) -> int:
        """How many classes, labels or texts of its own a prediction chooses among; 0 where the task has none."""
        if self.spec.task in ("classification", "multi_label"):
            return self.members[self.fusion.fusion.fused_members[0]].output_shape[0]
        return self.fusion_builder.texts if self.spec.task == "similarity" else 0

    @property
    def member_streams(self) -> Sequence[Stream]:
        """A stream of its own for each member."""
        return self.streams["streams"].members

    def is_required(self, input_name: str, policy: Policy) -> bool:
        """Whether a request under `policy` must carry the input, as members are fused now."""
        return self.processor.is_required(input_name, policy, self.fusion.fusion.needs)

    def check(self, request: InferRequest) -> Policy:
        """Check a request without looking into its inputs; return the policy that it is answered under. Raises InvalidRequest."""
        return self.processor.check(request, self.fusion.fusion.needs, self.classes)

    def first_members(self, samples: Mapping[int, Samples]) -> tuple[int, ...]:
        """List the members that a request asks first: in a cascade its first one, where there is input for it, else all."""
        return self.cascade.first_members(samples) if self.cascade else tuple(samples)

    def form_batch(
        self, requests: Sequence[Request], buffers: Mapping[int, StagingBuffers], excluded: Excluded,
        execution: Execution | None = None,
    ) -> Batch:  # fmt: skip
        """Form a batch; `buffers` has a set for each member that takes part, `excluded` says which does not for which request."""
        runs: dict[int, MemberRun] = {}
        for index in sorted(buffers):
            indices = [n for n, request in enumerate(requests) if index in request.members and (n, index) not in excluded]
            run = MemberRun(self.members[index], buffers[index], indices, requests)
            run.upstream = {upstream: runs[upstream] for upstream in run.member.upstream if upstream in runs}
            if self.latencies is not None:
                run.solo_seconds = self.latencies.solo_seconds(index, run.bucket)
            runs[index] = run
        streams = self.streams[execution or self.execution]
        return Batch(
            requests, list(runs.values()), excluded, self.members, self.fusion, streams, self._take_fusion_buffers(), self.device
        )

    def capture(self, version: FusionVersion, *, is_serving: bool = False) -> FusionVersion:
        """Return a version of the fusion with CUDA graphs for the sets of fusion buffers that batches mostly use."""
        return capture_fusion(version, self._fusion_buffers[:BUFFER_SETS], self.members, self.device, is_serving=is_serving)

    def release(self, batch: Batch) -> None:
        """Take the fusion buffers of a batch that has ended back; its staging buffers are the caller's to take."""
        self._free_fusion_buffers.insert(0, batch.fusion_buffers)

    def compute(self, requests: Sequence[Request], execution: Execution | None = None) -> Batch:
        """Form, launch and complete a batch on the calling thread, with nothing else under way.

        Call it in inference mode, on a thread that the device has prepared. Release it when its results have been read.
        """
        asked = sorted({index for request in requests for index in request.members})
        batch = self.form_batch(requests, {index: self.members[index].buffers[0] for index in asked}, {}, execution)
        batch.launch()
        batch.completed.wait()
        return batch

    def _take_fusion_buffers(self) -> FusionBuffers:
        """Take a free set of fusion buffers, or make one."""
        try:
            return self._free_fusion_buffers.pop(0)
        except IndexError:  # more batches are under way than usual, for one is stuck
            self._fusion_buffers.append(made := self._make_fusion_buffers())
            return made

    def _make_fusion_buffers(self) -> FusionBuffers:
        shapes = [member.output_shape for member in self.members]
        return FusionBuffers(self.device, shapes, self.spec.batching.max_batch_size, has_partials=self.cascade is not None)

    def close(self) -> None:
        """End the streams' threads."""
        streams = {stream for streams in self.streams.values() for stream in (*streams.members, streams.copy)}
        for stream in (*streams, *(buffers.stream for buffers in self._fusion_buffers)):
            stream.close()
