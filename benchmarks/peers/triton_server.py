"""The pair behind Triton through PyTriton, in an environment of its own (`make peers`): a dynamic batcher, the models in Python.

python -m benchmarks.peers.triton_server noop 8001 8000 build/triton
"""

import os
import sys
import sysconfig

import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.models import CLASSES
from benchmarks.peers.pairs import DELAY_SECONDS, MAX_ROWS, PAIRS, Arrays, Both

if __name__ == "__main__":
    # What Triton starts for its Python backend would else find the system's libpython, which may be older than this one's library.
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    torch.set_num_threads(1)
    pair, grpc_port, http_port = PAIRS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    compute = Both(pair)

    @batch  # type: ignore[untyped-decorator]  # PyTriton is not in the environment of the type checker
    def infer(**arrays: np.ndarray) -> Arrays:
        """Compute a batch: [n, ...] by input name."""
        torch.set_num_threads(1)  # a setting of the thread's own
        return {"prediction": compute(arrays)}

    config = TritonConfig(grpc_port=grpc_port, http_port=http_port, allow_metrics=False, log_verbose=0)
    with Triton(config=config, workspace=sys.argv[4]) as triton:
        triton.bind(
            model_name=pair.name,
            infer_func=infer,
            inputs=[Tensor(name=name, dtype=np.dtype(dtype), shape=shape) for name, (dtype, shape) in pair.inputs.items()],
            outputs=[Tensor(name="prediction", dtype=np.dtype("float32"), shape=(CLASSES,))],
            config=ModelConfig(
                max_batch_size=MAX_ROWS, batcher=DynamicBatcher(max_queue_delay_microseconds=round(DELAY_SECONDS * 1e6))
            ),
        )
        triton.serve()
