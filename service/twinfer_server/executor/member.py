"""Members: one model each, with the inputs it takes, its stream's staging buffers and its buckets."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import CannotCapture, Device, Stream
from ..errors import InvalidEnsemble
from ..inputs import InputKind, UpstreamInput
from ..loaders import LoadedModel
from ..precision import OWN_PRECISIONS, Converted
from ..spec import MemberSpec
from ..types import Samples
from .buffers import BUFFER_SETS, MemberGraph, StagingBuffers
from .latency import MIN_TOKENS, Bucket, doublings, round_up
from .output import read_output, select_output


class Member:
    """One model of the ensemble, ready to compute on its device."""

    def __init__(
        self, index: int, name: str, spec: MemberSpec, model: LoadedModel, inputs: Sequence[InputKind[Any] | UpstreamInput], *,
        max_batch_size: int, extra_outputs: Sequence[int | str] = (), is_deterministic: bool, device: Device,
    ) -> None:  # fmt: skip
        """Give the member its staging buffers; `is_deterministic` pads every batch to the one largest bucket.

        `extra_outputs` select what downstream members take, beside the output that counts.
        """
        self.index = index
        self.name = name
        self.spec = spec
        self.device = device
        """Where it computes: the ensemble's device, or another GPU."""
        self.converted = Converted(model)
        """The model as it computes: as it was loaded, or at another precision, and how far that is from fp32."""
        self.inputs = tuple(inputs)
        self.buffer_specs = tuple(buffer for kind in self.inputs for buffer in kind.buffers)
        self.request_inputs = tuple(kind for kind in inputs if not isinstance(kind, UpstreamInput))
        self.extra_outputs = tuple(extra_outputs)
        self.upstream = tuple(dict.fromkeys(kind.upstream for kind in self.inputs if isinstance(kind, UpstreamInput)))
        """The indexes of the members whose outputs it takes; they stand before it."""
        self.is_fused = spec.output.kind != "features"
        """Whether its output takes part in the fusion, and is not for downstream members alone."""
        self.samples_per_request = max(kind.max_samples for kind in self.inputs)
        """The most samples that one request may give it."""
        self.max_samples = max(max_batch_size, self.samples_per_request)
        self.is_deterministic = is_deterministic
        self.buffers = [StagingBuffers(device, self.buffer_specs, self.max_samples) for _ in range(BUFFER_SETS)]
        self.sample_sizes: tuple[int, ...] = ()
        """The sample counts that it has CUDA graphs for, and so is padded to; empty where it runs as many as there are."""
        self.token_sizes = self._find_token_sizes()
        self.no_graph_reason = "" if device.can_capture else "the device has no graphs"
        self.graph_bytes = 0
        self.shared_bytes = 0
        """How much of its parameters lies where an earlier member's do."""
        self.compared: tuple[str, ...] = ()
        """What was compared with the model's own library when it was loaded, a line for each input."""
        self.output_shape: tuple[int, ...] = ()
        """The shape of one sample's output; known once the member has been checked."""
        self.extra_shapes: tuple[tuple[int, ...], ...] = ()

    def _find_token_sizes(self) -> tuple[int, ...]:
        longest = max((buffer.shape[0] for buffer in self.buffer_specs if buffer.is_ragged), default=0)
        # Without a mask padding would change the outputs, so such a member always sees the full length it was made for.
        takes_mask = all(getattr(spec, "mask", True) for spec in self.spec.input.values())
        return doublings(MIN_TOKENS, longest) if longest > MIN_TOKENS and takes_mask and not self.is_deterministic else (longest,)

    @property
    def model(self) -> LoadedModel:
        """The model as it computes."""
        return self.converted.model

    @property
    def precision(self) -> str:
        """The precision that it computes in: the file's, or that in which the model was saved."""
        return OWN_PRECISIONS.get(self.model.dtype, self.spec.precision)

    @property
    def largest_bucket(self) -> Bucket:
        """The bucket of the most samples and tokens."""
        return Bucket(self.max_samples, self.token_sizes[-1])

    def bucket(self, samples: Sequence[Samples]) -> Bucket:
        """Find the bucket of some requests' samples: exact in samples without graphs, rounded up in tokens."""
        if self.is_deterministic:
            return self.largest_bucket
        tokens = 0
        for position, buffer in enumerate(self.buffer_specs):
            if buffer.is_ragged:
                tokens = max(tokens, *(sample[position].shape[1] for sample in samples))
        count = sum(len(sample[0]) for sample in samples)
        return Bucket(round_up(count, self.sample_sizes) if self.sample_sizes else count, round_up(tokens, self.token_sizes))

    def example(self, seed: int, tokens: int) -> Samples:
        """Make one sample of seeded random content, as many tokens long as asked, for checks and warm-up."""
        made = [kind.example(seed, tokens) for kind in self.inputs]
        return tuple(array[:1] for arrays in made for array in arrays)

    def compute(self, buffers: StagingBuffers, bucket: Bucket, picked: Tensor | None = None) -> list[Tensor]:
        """Compute the output that counts, and behind it the extra ones: float32 [samples, ...] each; on the member's stream.

        `picked` says which of the staged samples are computed, int64 [samples]; None: all of the bucket.
        """
        staged = buffers.inputs(bucket)
        if picked is not None:
            staged = [values.index_select(0, picked) for values in staged]
        return self.read(self.model.module(*self._arrange(staged)))

    def compute_own(self) -> list[Tensor]:
        """Compute a made-up sample past the staging buffers, which may be in use."""
        return self.read(self.model.module(*self.arrange_samples(self.example(0, self.token_sizes[0]))))

    def stage(self, samples: Sequence[Samples]) -> tuple[Tensor, ...]:
        """Write samples into the first staging buffers, which nothing else may use; return what the model is called with."""
        buffers, bucket = self.buffers[0], Bucket(len(samples), self.bucket(samples).tokens)
        buffers.write(samples, bucket)
        buffers.copy_in(bucket)
        return self.arguments(buffers, bucket)

    def compute_checked(self, samples: Sequence[Samples]) -> list[Tensor]:
        """Compute samples on the calling thread, with the model's own slow checks, and copy all outputs to the host."""
        module = self.model.checked or self.model.module
        # A model may give back what it was given, which the next samples are written over.
        return [output.cpu().clone() for output in self.read(module(*self.stage(samples)))]

    def arguments(self, buffers: StagingBuffers, bucket: Bucket) -> tuple[Tensor, ...]:
        """Return what the model is called with for what `buffers` hold, in its own dtypes and layouts."""
        return self._arrange(buffers.inputs(bucket))

    def arrange_samples(self, samples: Samples) -> tuple[Tensor, ...]:
        """Return what the model is called with for samples that go past the staging buffers; may wait for the device."""
        pairs = zip(samples, self.buffer_specs, strict=True)
        return self._arrange([torch.tensor(array, dtype=spec.dtype, device=self.device.torch_device) for array, spec in pairs])

    def _arrange(self, staged: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what the model is called with for staged samples, in its own dtypes and layouts."""
        arguments: list[Tensor] = []
        for kind in self.inputs:
            count = len(kind.buffers)
            arguments.extend(kind.arguments(staged[:count]))
            staged = staged[count:]
        return self.model.adapt(arguments)

    def read(self, outputs: object) -> list[Tensor]:
        """Find, in what the model returns, the output that counts and the extra ones: float32 [samples, ...] each."""
        key = f"members.{self.name}.output.select"
        extra = [select_output(key, outputs, select).float() for select in self.extra_outputs]
        return [read_output(self.name, self.spec, outputs), *extra]

    def take_upstream(self, buffers: StagingBuffers, upstream: int, outputs: Mapping[int | str, Tensor], total: int) -> None:
        """Copy what the member with the index `upstream` computed into `buffers`, `total` samples, on this member's stream."""
        position = 0
        for kind in self.inputs:
            if isinstance(kind, UpstreamInput) and kind.upstream == upstream:
                buffers.receive(position, outputs[kind.select][:total])
            position += len(kind.buffers)

    def capture(self, sample_sizes: Sequence[int], stream: Stream) -> None:
        """Capture CUDA graphs for every bucket in every set of buffers, or keep the reason why not.

        Raises InvalidEnsemble where a capture breaks off: the allocator cannot be trusted after that, so the process has to end.
        """
        if not self.spec.cuda_graph:
            self.no_graph_reason = "cuda_graph = false in the ensemble's file"
        elif not self.model.is_capturable:
            self.no_graph_reason = f"the loader {self.model.loader!r} cannot be captured"
        if self.no_graph_reason:
            return
        before = self.device.memory_bytes()
        buckets = [Bucket(samples, tokens) for samples in sample_sizes for tokens in self.token_sizes]
        try:
            for buffers in self.buffers:
                self._capture(buffers, buckets, stream)
        except CannotCapture as error:
            self.no_graph_reason = str(error)
            for buffers in self.buffers:
                buffers.graphs.clear()
            return
        self.sample_sizes = tuple(sample_sizes)
        self.graph_bytes = max(0, self.device.memory_bytes() - before)

    def _capture(self, buffers: StagingBuffers, buckets: Sequence[Bucket], stream: Stream) -> None:
        """Capture the member in one set of buffers; its graphs share a pool, for the set is in one batch at a time."""
        pool = self.device.graph_pool()
        for bucket in sorted(buckets, reverse=True):  # the largest first: the smaller ones then fit into its memory

            def work(bucket: Bucket = bucket) -> list[Tensor]:
                outputs = self.compute(buffers, bucket)
                return [*outputs, buffers.copy_out(outputs[0])] if self.is_fused else outputs

            try:
                graph = self.device.capture(stream, work, pool)
            except CannotCapture:
                raise
            except Exception as error:
                raise InvalidEnsemble(
                    f"members.{self.name}: capturing it at {bucket.samples} samples broke off ({error}); "
                    f"set members.{self.name}.cuda_graph = false"
                ) from error
            count = 1 + len(self.extra_outputs)
            host_output = graph.outputs[count] if self.is_fused else None
            buffers.graphs[bucket] = MemberGraph(graph, tuple(graph.outputs[:count]), host_output)
