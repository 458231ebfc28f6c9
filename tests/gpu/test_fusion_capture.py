"""Every fusion inside a CUDA graph: captured once, replayed with other rows, it answers like the CPU's."""

import pytest
import torch

from tests.fusions import EXAMPLES, Example, make_requests
from twinfer_server.fusion import FusionResult

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

ROWS = 6


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_a_captured_fusion_answers_like_the_cpus(example: Example) -> None:
    fusion = example.build()
    on_device = example.build().to("cuda")
    with torch.inference_mode():
        outputs, *rest = make_requests(example, ROWS, seed=0)
        inputs = [tensor.cuda() for tensor in (*outputs, *rest)]
        lane = torch.cuda.Stream()
        lane.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(lane):  # buffers and libraries want to be made before a capture begins
            on_device(inputs[:-2], *inputs[-2:])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=lane):
            captured: FusionResult = on_device(inputs[:-2], *inputs[-2:])
        for seed in (1, 2):
            outputs, weights, samples = make_requests(example, ROWS, seed)
            for buffer, values in zip(inputs, (*outputs, weights, samples), strict=True):
                buffer.copy_(values)
            graph.replay()
            torch.cuda.synchronize()
            expected: FusionResult = fusion(outputs, weights, samples)
            for name in FusionResult.__dataclass_fields__:
                found = getattr(captured, name).cpu()
                torch.testing.assert_close(found, getattr(expected, name), equal_nan=True, atol=1e-5, rtol=1e-4)
