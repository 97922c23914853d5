"""The training step: trainable parameters, optimiser, schedule, and what a checkpoint holds."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from xmod_lab.config.schema import RecipeConfig
from xmod_lab.model import XmodLanguageModel
from xmod_lab.recipe import DECAY_SHARE
from xmod_lab.training.distillation import Distillation
from xmod_lab.training.sharding import Shards


class LanguageModeling(pl.LightningModule):
    """Trains ``model`` on batches of :class:`xmod_lab.text.batches.BatchStream`.

    Args:
        trainable: names of the parameters that train; all others are frozen, and left out of
            checkpoints. ``None``: all train.
        seed: dropout at a step is a function of (seed, step, micro-batch, rank).
        fused: use the fused optimiser; not with fp16, where gradients are unscaled before clipping.
        divided: the model is to be divided among processes. torch's optimiser then takes one tensor
            after the other, as it takes no mixture of divided and whole ones.
        checkpointing: compute the states of each layer again in the backward pass.
        distillation: gives the loss, with the distance to the vectors of a teacher.
    """

    def __init__(
        self,
        model: XmodLanguageModel,
        recipe: RecipeConfig,
        *,
        steps: int,
        seed: int,
        trainable: set[str] | None = None,
        fused: bool = True,
        divided: bool = False,
        checkpointing: bool = False,
        distillation: Distillation | None = None,
    ):
        super().__init__()
        self.model, self.recipe, self.steps, self.seed = model, recipe, steps, seed
        names = {name for name, _ in model.named_parameters()}
        assert trainable is None or trainable <= names, f"no such parameters: {trainable - names}"
        self.trainable = names if trainable is None else trainable
        self.extends = trainable is not None
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        self._arithmetic = {
            "fused": fused and not divided,
            "foreach": False if divided else None,
        }
        self.strict_loading = not self.extends
        self.checkpointing, self.distillation = checkpointing, distillation
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        mode = not self.extends or self.recipe.dropout_in_frozen
        if self.model.training != mode:  # train() visits every module, also those of absent slots
            self.model.train(mode)
        if self.checkpointing:  # layers ask their own mode; dropout has its own
            for layer in self.model.base_model.encoder.layer:
                layer.training = True
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        key = f"{self.seed}/{self.global_step}/{micro_batch}/{self.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little"))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean loss, times ``loss_weight`` if the micro-batch has one, or that of
        ``distillation``."""
        self.lang_ids = batch["lang_ids"]  # of the micro-batch at hand
        if self.distillation is not None:
            return self.distillation.loss(self.model, batch)
        weight = batch.get("loss_weight")
        output = self.model(
            **{name: value for name, value in batch.items() if name != "loss_weight"}
        )
        if weight is None:
            return output.loss
        # without any target the mean loss is nan
        return output.loss * weight if weight else output.logits.sum() * 0

    def configure_optimizers(self) -> dict:
        """AdamW, with weight decay for matrices and embeddings only (not biases and LayerNorms).

        A language that is absent from a step has no gradient, so neither its weights nor its
        moments change.
        """
        moving = [(n, p) for n, p in self.model.named_parameters() if n in self.trainable]
        decayed = [p for n, p in moving if p.dim() > 1]
        plain = [p for n, p in moving if p.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.recipe.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=self.recipe.peak_lr,
            betas=tuple(self.recipe.betas),
            eps=self.recipe.eps,
            **self._arithmetic,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *args, **kwargs
    ) -> None:
        """Clip the norm over all that trains; Lightning's own clipping refuses fused optimisers."""
        clip_gradients(
            [p for group in optimizer.param_groups for p in group["params"]], self.recipe.clip_norm
        )

    def lr_share(self, step: int) -> float:
        """Share of the peak learning rate at ``step``: linear warm-up, then the schedule."""
        warmup = max(1, round(self.recipe.warmup_share * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        if self.recipe.schedule == "wsd":
            decay = max(1, round((self.recipe.decay_share or DECAY_SHARE) * self.steps))
            return min(1.0, (self.steps - step) / decay)
        rest = (self.steps - step) / max(1, self.steps - warmup)  # 1 -> 0
        if self.recipe.schedule == "cosine":
            return 0.5 - 0.5 * math.cos(math.pi * rest)
        return rest if self.recipe.schedule == "linear" else 1.0

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Keep only what trains; in an extension that is one language, not the whole model."""
        state = checkpoint["state_dict"]
        wanted = {f"model.{name}" for name in self.trainable}
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in state.items() if name in wanted
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Tied parameters are stored once, under their first name; add their other names."""
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group |= self._arithmetic  # the run may have begun with another strategy
        state = checkpoint["state_dict"]
        if missing := [name for name in sorted(self.trainable) if f"model.{name}" not in state]:
            raise KeyError(f"{missing[0]} is not in it")
        if self.extends:
            return
        for name, source in (self.model._tied_weights_keys or {}).items():
            state.setdefault(f"model.{name}", state[f"model.{source}"])

    @contextmanager
    def whole(self) -> Iterator[XmodLanguageModel]:
        """The model to score or to save: not divided, and not compiled. All processes enter it."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, Shards):
            with self.model.base_model.uncompiled():
                yield self.model
            return
        model = strategy.collect()
        model.to(self.device)
        try:
            yield model
        finally:
            model.to("cpu")

    def transfer_batch_to_device(
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict:
        """Move a batch to the device, except what the host plans by: languages and documents, also
        the teacher's."""
        tensors = {k: torch.as_tensor(v) for k, v in batch.items()}
        return {
            k: v
            if k in ("lang_ids", "documents", "teacher_passages")
            else v.to(device, non_blocking=True)
            for k, v in tensors.items()
        }


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """``torch.nn.utils.clip_grad_norm_``, but exact for large matrices and with one pass less.

    torch 2.13 sums all squares of a tensor in float32 on a CPU, which is 3 % off for 250,002 x 768
    elements; here each row has its own sum. Where nothing is clipped, gradients are not multiplied
    by one.
    """
    present = [p for p in parameters if p.grad is not None]
    divided = [p for p in present if isinstance(p.grad, DTensor)]
    whole = [p for p in present if not isinstance(p.grad, DTensor)]
    norm = torch.nn.utils.get_total_norm([_for_norm(p.grad) for p in whole])
    if divided:  # each process has the norm of its part
        squares = torch.nn.utils.get_total_norm([_for_norm(p.grad.to_local()) for p in divided])
        squares = squares.square()
        dist.all_reduce(squares)
        norm = (norm.to(squares.device).square() + squares).sqrt()
    # only on a CPU: on other devices the comparison would wait for the device
    if norm.device.type != "cpu" or norm + 1e-6 > max_norm:
        for some in (whole, divided):  # torch takes no mixture of the two
            torch.nn.utils.clip_grads_with_norm_(some, max_norm, norm)


def _for_norm(grad: Tensor) -> Tensor:
    """A tensor with the norm of ``grad``: the row norms of a large matrix, else ``grad``."""
    return (
        torch.linalg.vector_norm(grad, dim=-1) if grad.dim() > 1 and grad.numel() > 2**20 else grad
    )


def parameter_groups(
    model: XmodLanguageModel, trainable: set[str]
) -> list[tuple[str, bool, int, int]]:
    """The rows of the table that is shown before training: (group, trains, parameters, bytes)."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((_group(name), name in trainable), []).append(parameter)
    return [
        (
            group,
            trains,
            sum(p.numel() for p in parameters),
            sum(p.numel() * p.element_size() for p in parameters),
        )
        for (group, trains), parameters in sorted(
            groups.items(), key=lambda item: (not item[0][1], item[0][0])
        )
    ]


def _group(name: str) -> str:
    """The name of the part of the model that a parameter belongs to, for the table."""
    parts = name.split(".")
    for mark, title in (("adapter_modules", "slot"), ("vocabularies", "vocabulary")):
        if mark in parts:
            return f"{title} {parts[parts.index(mark) + 1]}"
    if "lm_head" in parts:
        return "LM head (shared)"
    if "pooler" in parts or parts[0] != "roberta":
        return "task head"
    if "adapter_layer_norm" in parts:
        return "LayerNorm of the slots"
    if "embeddings" in parts:
        return (
            "base vocabulary" if "word_embeddings" in parts else "positions and embedding LayerNorm"
        )
    return "attention" if "attention" in parts else "feed-forward and LayerNorm"
