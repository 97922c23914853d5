"""Models that are divided among processes: FSDP2, ``trainer.strategy=fsdp``.

Each process keeps a part of every layer, of the embeddings, of their gradients and of their
optimiser's state. A layer is collected just before it is computed. Slots, and the vocabularies of
added languages, are left whole in every process: a slot that is absent from a step is then neither
collected nor sent, and :class:`Exchange` averages the gradients of the others.

Lightning's own ModelParallelStrategy is not used. It writes checkpoints of its own kind, and fills
in an optimiser's state for slots that never trained. Here a checkpoint is that of one process, so
that a run may go on with another strategy and another number of processes.

Tried on two gloo processes on a CPU. Not run: GPUs, NCCL, several machines.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from xmod_lab.model import XmodLanguageModel
from xmod_lab.process_rank import process_count, rank
from xmod_lab.training.exchange import Exchange, Replicas, check_same


def left_whole(model: XmodLanguageModel) -> set[str]:
    """Names of the parameters that every process keeps whole."""
    return {name for name, _ in model.named_parameters() if model.owner_of(name)}


class Shards(Replicas):
    """Lightning's strategy for a model that is divided among processes.

    Args:
        whole: the model as it was; :meth:`collect` fills it. The divided one is a copy of it.
    """

    def __init__(self, exchange: Exchange, whole: XmodLanguageModel):
        super().__init__(exchange)
        self.whole = whole

    def model_to_device(self) -> None:
        """Divide the model, on its way to the device."""
        model = self.lightning_module.model
        check_same(model)
        mesh = init_device_mesh(self.root_device.type, (process_count(),))
        whole = {model.get_parameter(name) for name in left_whole(model)}
        for layer in model.base_model.encoder.layer:
            fully_shard(layer, mesh=mesh, ignored_params=whole & set(layer.parameters()))
        fully_shard(model, mesh=mesh, ignored_params=whole)
        super().model_to_device()

    def configure_ddp(self) -> None:
        """Gradients are not sent while the backward pass goes on: FSDP sends its own then, and all
        processes have to send everything in the same order."""

    def collect(self) -> XmodLanguageModel:
        """The whole model with the weights of now, on the CPU. All processes call this."""
        with torch.no_grad():
            for name, part in self.lightning_module.model.named_parameters():
                self.whole.get_parameter(name).copy_(_collected(part))
        return self.whole

    # checkpoints, as of a model that is not divided

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {n: _for_file(t) for n, t in self.lightning_module.state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        found = super().optimizer_state(optimizer)
        moments = found["state"].items()
        return {
            **found,
            "state": {i: {k: _for_file(v) for k, v in each.items()} for i, each in moments},
        }

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        (optimizer,), (stored,) = self.optimizers, checkpoint["optimizer_states"]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = {
            i: {k: _divided_like(parameters[i], v) for k, v in each.items()}
            for i, each in stored["state"].items()
        }
        optimizer.load_state_dict({**stored, "state": state})


def _collected(part: Tensor) -> Tensor:
    return part.detach().full_tensor() if isinstance(part, DTensor) else part.detach()


def _for_file(part: Any) -> Any:
    """A collected tensor on the CPU in the first process, which writes the file."""
    if not isinstance(part, DTensor):
        return part
    found = _collected(part)
    return found.cpu() if rank() == 0 else found.new_empty(0)


def _divided_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A moment of the optimiser, divided as its parameter is; a count of steps stays."""
    if not isinstance(parameter, DTensor) or value.dim() == 0:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
