"""Lets accelerate shard over CPU processes, where it would train with whole copies: FSDP itself works with gloo.

For tests and measurements without GPUs: ``python -m torch.distributed.run --nproc-per-node=2 -m
benchmarks.shard_on_cpu RUN_FOLDER`` is the worker of a sharded trial.
"""

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """From now on, in this process."""
    plain = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    from sft_experiments.training.worker import main

    shard_on_cpu()
    sys.exit(main(sys.argv[1:]))
