"""The exchange of gradients among processes: of what trains in this step, and of nothing else.

A step moves the shared parameters, and the slots and vocabularies of the languages that it reads.
The mixture is a function of (seed, step). So every process knows the languages of all processes
without a message, and a slot that is absent from a step is not sent, however many are stored.

torch's DistributedDataParallel needs ``find_unused_parameters`` for slots. It then walks the graph
of every step, and sends the gradients of all slots. It is not used here.

NCCL was not run (no GPU). Gloo was.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from xmod_lab.errors import UserError
from xmod_lab.model import XmodLanguageModel
from xmod_lab.process_rank import rank
from xmod_lab.processes import gather

BUCKET_BYTES = 25 * 2**20  # of one message; fewer are slower to start, more overlap less


@dataclass
class _Bucket:
    """Parameters whose gradients are sent in one message.

    Args:
        expected: how many of them still get a gradient in this process, in this backward pass.
        flat, work: the message, and its handle, as soon as it is sent.
    """

    parameters: list[nn.Parameter] = field(default_factory=list)
    bytes: int = 0
    expected: int = 0
    flat: Tensor | None = None
    work: dist.Work | None = None


class Exchange:
    """Averages the gradients of all processes.

    Gradients are sent in buckets, in the reverse order of the parameters. A bucket is sent as soon
    as all of its gradients are there, while the backward pass goes on. All processes send the same
    buckets in the same order. A process without rows of a language sends zeros for it.

    Args:
        names: of the parameters to exchange.
        languages: step -> codes of the languages that any process reads in this step.
    """

    def __init__(
        self,
        model: XmodLanguageModel,
        names: Collection[str],
        languages: Callable[[int], Iterable[str]],
    ):
        self.model, self.languages = model, languages
        self.bytes_sent = 0  # by this process, since it began
        self.parameters = {n: p for n, p in model.named_parameters() if n in names}
        # by owner, with their places in the order of all
        self._owned: dict[str | None, list[tuple[int, nn.Parameter]]] = {}
        for place, (name, parameter) in enumerate(self.parameters.items()):
            self._owned.setdefault(model.owner_of(name), []).append((place, parameter))
        tables = (model.get_input_embeddings(), model.get_output_embeddings())
        self._base_vocabulary = {p for table in tables for p in table.parameters()}
        self._buckets: list[_Bucket] = []
        self._of: dict[nn.Parameter, _Bucket] = {}
        self._sent = 0  # buckets
        self._hooks: list[RemovableHandle] = []

    def attach(self) -> None:
        """Hear of the gradients of the model, which is on its device."""
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._arrived) for p in self.parameters.values()
        ]

    def present(self, step: int) -> list[nn.Parameter]:
        """The parameters that ``step`` moves, in their order."""
        return self._moved_by({self._slot(code) for code in self.languages(step)})

    def begin(self, step: int, lang_ids: Tensor) -> None:
        """Before the backward pass of a step's last micro-batch, which reads ``lang_ids``."""
        codes = list(self.model.config.languages)
        here = set(self._moved_by({codes[i] for i in lang_ids.unique().tolist()}))
        self._buckets, self._of, self._sent = [], {}, 0
        for parameter in reversed(self.present(step)):
            size = parameter.numel() * parameter.element_size()
            last = self._buckets[-1] if self._buckets else None
            if (
                last is None
                or last.bytes + size > BUCKET_BYTES
                or last.parameters[0].dtype != parameter.dtype
            ):
                last = _Bucket()
                self._buckets.append(last)
            last.parameters.append(parameter)
            last.bytes += size
            last.expected += parameter in here
            self._of[parameter] = last

    def finish(self) -> None:
        """After that backward pass: send what is left, wait, and set the gradients to the means."""
        while self._sent < len(self._buckets):
            self._send(self._buckets[self._sent])
        for bucket in self._buckets:
            bucket.work.wait()
            parts = bucket.flat.split([p.numel() for p in bucket.parameters])
            for parameter, part in zip(bucket.parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
        self._buckets, self._of, self._sent = [], {}, 0

    def close(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def _slot(self, code: str) -> str:
        return self.model.config.languages[self.model.lang_id(code)]

    def _moved_by(self, slots: set[str]) -> list[nn.Parameter]:
        """The parameters of these slots and the shared ones, in their order."""
        reads_base = not slots <= set(self.model.config.vocabularies or {})
        found = [each for owner in (None, *slots) for each in self._owned.get(owner, ())]
        found.sort(key=lambda each: each[0])
        return [p for _, p in found if reads_base or p not in self._base_vocabulary]

    def _arrived(self, parameter: nn.Parameter) -> None:
        """A gradient is complete. Sends the buckets that are full, in their order."""
        bucket = self._of.get(parameter)
        if bucket is None:  # an earlier micro-batch
            return
        assert bucket.flat is None, "a gradient came after its bucket was sent"
        bucket.expected -= 1
        while self._sent < len(self._buckets) and not self._buckets[self._sent].expected:
            self._send(self._buckets[self._sent])

    def _send(self, bucket: _Bucket) -> None:
        gradients = [
            p.new_zeros(p.numel()) if p.grad is None else p.grad for p in bucket.parameters
        ]
        bucket.flat = torch.cat([g.flatten() for g in gradients]).div_(dist.get_world_size())
        for parameter in bucket.parameters:
            parameter.grad = None  # the message has it
        bucket.work = dist.all_reduce(bucket.flat, async_op=True)
        self.bytes_sent += bucket.bytes
        self._sent += 1


class Replicas(DDPStrategy):
    """Lightning's strategy for a whole model in each process, with :class:`Exchange`."""

    def __init__(self, exchange: Exchange):
        super().__init__()
        self.exchange = exchange
        self._only_adds = False  # whether the micro-batch is not the last one of its step

    def configure_ddp(self) -> None:
        """Instead of wrapping the model: see that all processes have the same one."""
        check_same(self.lightning_module.model)
        self.exchange.attach()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Lightning enters it for all micro-batches of a step but the last."""
        self._only_adds = True
        try:
            yield
        finally:
            self._only_adds = False

    def pre_backward(self, closure_loss: Tensor) -> None:
        if not self._only_adds:
            module = self.lightning_module
            self.exchange.begin(module.global_step, module.lang_ids)

    def post_backward(self, closure_loss: Tensor) -> None:
        if not self._only_adds:
            self.exchange.finish()

    def teardown(self) -> None:
        self.exchange.close()
        super().teardown()


def check_same(model: nn.Module) -> None:
    """Raises UserError, in all processes, if they do not have the same weights."""
    if len(set(gather({rank(): checksum(model)}).values())) > 1:
        raise UserError(
            "give all machines the same files and the same version of this package: the processes "
            "begin with different weights"
        )


def checksum(model: nn.Module) -> int:
    """A sum over all bits of a model, which is the same on all machines."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return sum(
        number * int(p.detach().view(whole[p.element_size()]).sum(dtype=torch.int64))
        for number, p in enumerate(model.parameters(), start=1)
    )
