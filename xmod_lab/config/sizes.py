"""The memory that a configuration needs, computed before any work, so that it can be refused."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from xmod_lab.config.schema import ModelConfig, PretrainConfig
from xmod_lab.machine import device_kind, device_memory, memory
from xmod_lab.phases import phases_of

_HELD = 4  # bytes of a parameter in float32
_MOMENTS = 8  # bytes of AdamW's two moments of a parameter
# as in xmod_lab.model.fast.loss, which imports torch: logits and rows of logits in a chunk, and
# logits in float32 at a time on a CPU
_CHUNK, _BLOCK = (2**27, 1_024), 2**20
_CHANGED = (
    "model.num_hidden_layers",
    "model.hidden_size",
    "model.intermediate_size",
    "langset.vocabulary_size",
    "data.row_length",
    "trainer.rows_per_step",
)
_GIB = 2**30

# D model, F feed-forward, R bottleneck


def _slot_parameters(m: ModelConfig) -> int:
    """Parameters of one slot of one layer."""
    D, R = m.hidden_size, m.hidden_size // m.adapter_reduction_factor
    if m.slot == "bottleneck":
        return D * R + R + R * D + D
    from xmod_lab.model.slots import slot_parameters  # it imports torch, which takes seconds

    return slot_parameters(m.flags())


def parameter_count(m: ModelConfig, *, vocab_size: int, slots: int) -> int:
    """The number of parameters of a language model of this size."""
    D, F = m.hidden_size, m.intermediate_size
    norm = 2 * D
    attention = 4 * (D * D + D) + norm
    feed_forward = D * F + F + F * D + D + norm * (2 if m.adapter_layer_norm else 1)
    embeddings = (vocab_size + m.max_position_embeddings + 1) * D + norm
    head = D * D + D + norm + vocab_size
    return (
        embeddings
        + m.num_hidden_layers * (attention + feed_forward + slots * _slot_parameters(m))
        + head
        + norm * m.pre_norm
    )


def bytes_held(cfg: PretrainConfig) -> int:
    """Bytes of the weights of the base in ``cfg``. Every process makes them in main memory.

    A divided model is a copy of the whole one, which stays there.
    """
    return _HELD * _parameters(cfg) + (_HELD * _trained(cfg) if _is_divided(cfg) else 0)


def bytes_to_train(cfg: PretrainConfig, kind: str = "cpu") -> int:
    """Bytes that a process needs to pre-train the base in ``cfg``, at the peak of a step.

    They hold weights, gradients and AdamW's moments, what a micro-batch keeps for the backward
    pass, and the loss or the attention of one layer, whichever takes more. Python with its
    libraries (half a GiB) and the batches are not counted. With ``trainer.precision=auto`` it is
    the precision that needs less.

    It is 0.92 to 1.14 times what torch allocates on a CPU in two steps (torch 2.13; 8k to 100k
    tokens, rows of 128 and 512, 2 to 6 layers, bfloat16 and float32, both layouts, with and without
    gradient checkpointing; 0.1 to 0.5 GB). The resident memory of the process, above that before
    the model was made, was 1.1 to 1.7 times the estimate there, and 1.2 and 1.4 times at 2 GB: the
    C library keeps what is freed, and libraries take memory that torch does not count. Not
    measured: GPUs, several processes, compiled layers.

    Args:
        kind: of the device, as :func:`xmod_lab.machine.device_kind` says.
    """
    if cfg.trainer.precision == "auto":
        return min(_at_peak(cfg, kind, size) for size in (2, 4))
    return _at_peak(cfg, kind, 4 if cfg.trainer.precision == "32-true" else 2)


def _at_peak(cfg: PretrainConfig, kind: str, size: int) -> int:
    """``size``: bytes of an element of a matrix product."""
    t, m = cfg.trainer, cfg.model
    D = m.hidden_size
    rows = max(1, t.rows_per_step // (t.devices * t.nodes * t.accumulate))
    tokens = rows * cfg.data.row_length
    share = max(v for _, v in phases_of(getattr(cfg.task, "mask_rate", 1.0)))
    predicted = math.ceil(tokens * share)  # the head computes these alone, and the last layer too
    last = tokens if _all_computed(cfg, share) else predicted
    attention, behind, meanwhile = _kept(cfg, kind, size)
    # the gradients of a step are there until the backward pass of the next one
    held = (_HELD + _MOMENTS) * _trained(cfg) + _HELD * _trained(cfg, slots=t.rows_per_step)
    held += tokens * D * 2 * _HELD + predicted * D * 6 * _HELD  # embeddings, head
    casts = 0 if size == _HELD else size * _of_layers(cfg, rows)
    loss = _of_loss(cfg, kind, size, predicted)
    if t.gradient_checkpointing:
        inputs = m.num_hidden_layers * tokens * D * _HELD
        return held + inputs + max(casts + loss, tokens * (attention + behind + meanwhile))
    layers = (m.num_hidden_layers - 1) * tokens * (attention + behind)
    return (
        held + layers + tokens * attention + last * behind + casts + max(loss, tokens * meanwhile)
    )


def _all_computed(cfg: PretrainConfig, share: float) -> bool:
    """Whether the last layer computes all positions, where ``share`` of them are predicted."""
    return cfg.trainer.compile or share > 0.5


def _kept(cfg: PretrainConfig, kind: str, size: int) -> tuple[int, int, int]:
    """Bytes of each token in one layer: those kept for the backward pass of the attention and of
    what is behind it, and those that the attention takes besides while it is computed.
    """
    m, length = cfg.model, cfg.data.row_length
    D, F, R = m.hidden_size, m.intermediate_size, m.hidden_size // m.adapter_reduction_factor
    mask = size if kind == "cpu" else 1  # of dropout, an element
    dropped = 3 * mask if m.hidden_dropout_prob else 0
    behind = D * (3 * _HELD + 2 * size + dropped) + 2 * size * (F + R)
    documents = cfg.data.attention == "document"
    if kind != "cpu" or (size == _HELD and not m.attention_probs_dropout_prob):
        return 5 * size * D + (documents * size * length), behind, 0
    # attention is written out: it keeps its weights, and with dropout a mask and the product
    pairs = m.num_attention_heads * length * size
    copies = 3 if m.attention_probs_dropout_prob else 1
    return 4 * size * D + copies * pairs + documents * length, behind, 3 * pairs


def _of_loss(cfg: PretrainConfig, kind: str, size: int, predicted: int) -> int:
    """Bytes that the loss takes at its peak, see :mod:`xmod_lab.model.fast.loss`.

    They are the gradient of the output matrix beside that of the last step, the matrix in the type
    of the products, and a chunk of logits.
    """
    vocab_size = cfg.langset.vocabulary_size or 0
    table = vocab_size * cfg.model.hidden_size
    logits = min(predicted, _CHUNK[1], max(1, _CHUNK[0] // max(1, vocab_size))) * vocab_size
    wide = min(logits, _BLOCK) if kind == "cpu" else logits  # in float32, with their softmax
    matrices = _HELD + (0 if size == _HELD else size) + (_HELD if _is_divided(cfg) else 0)
    return table * matrices + size * logits + 2 * _HELD * wide


def _is_divided(cfg: PretrainConfig) -> bool:
    return cfg.trainer.strategy == "fsdp"


def _trained(cfg: PretrainConfig, *, slots: int | None = None) -> int:
    """Parameters that one process trains: of a divided model its part, and all slots.

    Args:
        slots: at most so many of the slots.
    """
    count = _parameters(cfg, slots)
    if not _is_divided(cfg):
        return count
    shared = _parameters(cfg, 0)
    return count - shared + shared // (cfg.trainer.devices * cfg.trainer.nodes)


def _of_layers(cfg: PretrainConfig, slots: int) -> int:
    """Parameters of the layers, with at most ``slots`` slots."""
    none = replace(cfg, model=replace(cfg.model, num_hidden_layers=0))
    return _parameters(cfg, slots) - _parameters(none, 0)


def _parameters(cfg: PretrainConfig, slots: int | None = None) -> int:
    """``slots``: at most so many of the slots."""
    stored = len(cfg.langset.slots(shared=cfg.model.shared_slot)[0])
    vocab_size = cfg.langset.vocabulary_size or 0  # that of a given tokenizer is not known yet
    used = stored if slots is None else min(stored, slots)
    return parameter_count(cfg.model, vocab_size=vocab_size, slots=used)


def memory_faults(
    cfg: PretrainConfig, *, trains: bool = True, kind: str | None = None
) -> list[str]:
    """A fault, with sizes that would fit, if this machine cannot hold the base in ``cfg``.

    Args:
        trains: also a fault if this machine cannot train the base.
        kind: of its devices, if torch is imported already. ``None``: a base that fits into main
            memory is taken to fit a device too.
    """
    have, processes = memory(), cfg.trainer.devices

    def here(other: PretrainConfig) -> int:
        return processes * (bytes_to_train(other) if trains else bytes_held(other))

    if (takes := processes * bytes_held(cfg)) > have:
        return [_too_large(cfg, takes, "for its weights alone", have, "this machine", here)]
    if not trains or (kind is None and here(cfg) <= have):
        return []
    kind = kind or device_kind(cfg.trainer.accelerator)  # late: it imports torch
    room = device_memory(kind)
    if room is not None:
        have, where = room, f"a device here ({kind})"

        def here(other: PretrainConfig) -> int:
            return bytes_to_train(other, kind)
    else:
        where = "this machine"
    takes = here(cfg)
    return [] if takes <= have else [_too_large(cfg, takes, "to train", have, where, here)]


def flops_of_step(cfg: PretrainConfig) -> int:
    """FLOPs of the matrix products of a step of pre-training, forward and backward.

    A multiplication with its addition is two. Backward is twice forward.
    """
    m, t = cfg.model, cfg.trainer
    D, F, layers = m.hidden_size, m.intermediate_size, m.num_hidden_layers
    tokens, share = cfg.tokens_per_step, phases_of(getattr(cfg.task, "mask_rate", 1.0))[0][1]
    predicted = round(tokens * share)
    # the last layer computes those that are predicted, behind its attention
    behind = (layers - 1) * tokens + (tokens if _all_computed(cfg, share) else predicted)
    attention = layers * tokens * (6 * D * D + 4 * cfg.data.row_length * D)
    stack = attention + behind * (2 * D * D + 4 * D * F + 2 * _slot_parameters(m))
    head = 2 * predicted * D * (D + (cfg.langset.vocabulary_size or 0))
    return 3 * (stack + head) + (stack if t.gradient_checkpointing else 0)


def _too_large(
    cfg: PretrainConfig,
    takes: int,
    what: str,
    have: int,
    where: str,
    takes_of: Callable[[PretrainConfig], int],
) -> str:
    fits = list(_what_fits(cfg, lambda other: takes_of(other) <= have))[:2]
    remedy = (
        f"it would fit with {' or '.join(fits)}"
        if fits
        else "choose a smaller one, e.g. model=tiny, and fewer languages"
    )
    return (
        f"a model of {_parameters(cfg):,} parameters takes {takes / _GIB:,.1f} GiB or more {what}, "
        f"and {where} has {have / _GIB:,.1f} GiB; {remedy}"
    )


def _what_fits(cfg: PretrainConfig, fits: Callable[[PretrainConfig], bool]) -> Iterator[str]:
    """``key=value`` for each setting that is enough to change, with the largest value that fits.

    Values below a hundredth of the present value are not offered.
    """
    t = cfg.trainer
    steps = {
        "hidden_size": cfg.model.num_attention_heads,
        "rows_per_step": t.devices * t.nodes * t.accumulate,
    }
    for key in _CHANGED:
        group, name = key.split(".")
        part, step = getattr(cfg, group), steps.get(name, 1)
        value = getattr(part, name)
        low, high = 0, value // step  # low fits, or is 0
        while high - low > 1:
            middle = (low + high) // 2
            if fits(replace(cfg, **{group: replace(part, **{name: middle * step})})):
                low = middle
            else:
                high = middle
        if low * step * 100 >= value:
            yield f"{key}={low * step}"
