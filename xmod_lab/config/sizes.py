"""The memory that a configuration needs, computed before any work, so that it can be refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from xmod_lab.config.schema import ModelConfig, PretrainConfig
from xmod_lab.machine import device_kind, device_memory, memory

_HELD = 4  # bytes of a parameter in float32
_TRAINED = 16  # bytes of a parameter with its gradient and AdamW's two moments
_STATE = 2  # least bytes of an activation that is kept for the backward pass: bfloat16
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


def bytes_to_train(cfg: PretrainConfig) -> int:
    """Least bytes on a device to pre-train the base in ``cfg``.

    They hold weights, gradients, moments, and the activations of a micro-batch for the backward
    pass: of one layer and the inputs of the others, if layers are computed again there.
    """
    t, m, length = cfg.trainer, cfg.model, cfg.data.row_length
    rows = max(1, t.rows_per_step // (t.devices * t.nodes * t.accumulate))
    kept = 1 if t.gradient_checkpointing else m.num_hidden_layers
    states = rows * length * kept * (8 * m.hidden_size + 2 * m.intermediate_size)
    states += rows * length * (m.num_hidden_layers - kept) * m.hidden_size
    # the mask that says which positions may attend to which
    pairs = rows * length * length if cfg.data.attention == "document" else 0
    return _TRAINED * _trained(cfg) + _STATE * states + pairs


def _is_divided(cfg: PretrainConfig) -> bool:
    return cfg.trainer.strategy == "fsdp"


def _trained(cfg: PretrainConfig) -> int:
    """Parameters that one process trains: of a divided model its part, and all slots."""
    count = _parameters(cfg)
    if not _is_divided(cfg):
        return count
    shared = parameter_count(cfg.model, vocab_size=cfg.langset.vocabulary_size or 0, slots=0)
    return count - shared + shared // (cfg.trainer.devices * cfg.trainer.nodes)


def _parameters(cfg: PretrainConfig) -> int:
    slots, _ = cfg.langset.slots(shared=cfg.model.shared_slot)
    vocab_size = cfg.langset.vocabulary_size or 0  # that of a given tokenizer is not known yet
    return parameter_count(cfg.model, vocab_size=vocab_size, slots=len(slots))


def memory_faults(cfg: PretrainConfig, *, trains: bool = True) -> list[str]:
    """A fault, with sizes that would fit, if this machine cannot hold the base in ``cfg``.

    Args:
        trains: also a fault if this machine cannot train the base.
    """
    have, processes = memory(), cfg.trainer.devices

    def here(other: PretrainConfig) -> int:
        return processes * (bytes_to_train(other) if trains else bytes_held(other))

    if processes * bytes_held(cfg) > have:
        return [
            _too_large(
                cfg,
                processes * bytes_held(cfg),
                "for its weights alone",
                have,
                "this machine",
                here,
            )
        ]
    if here(cfg) <= have:
        return []
    kind = device_kind(cfg.trainer.accelerator)  # late: it imports torch, which takes seconds
    room = device_memory(kind)
    if room is None:
        return [_too_large(cfg, here(cfg), "to train", have, "this machine", here)]
    takes = bytes_to_train(cfg)
    return (
        []
        if takes <= room
        else [_too_large(cfg, takes, "to train", room, f"a device here ({kind})", bytes_to_train)]
    )


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
