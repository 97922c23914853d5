"""Models, inputs and labels of every class, to compare it with transformers."""

import itertools

import torch
import transformers

import xmod_lab.model
from tests.helpers import tiny_config
from xmod_lab.model.fast.varlen import mask_of
from xmod_lab.text.batches import Layout

B, S, C, PIECES = 4, 9, 3, 50
ROWS = ("full", "padded", "left", "packed")  # left: padded on the left
HEADS = [
    "Model",
    "ForMaskedLM",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
]
FLAGS = ["pre_norm", "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter"]
COMBINATIONS = [
    {**dict(zip(FLAGS, values, strict=True)), "adapter_reduction_factor": factor}
    for *values, factor in itertools.product(
        [False, True], [False, True], [False, True], [False, True], [2, 3]
    )
]
LANGUAGES = {
    "one": torch.full((B,), 1),
    "mixed": torch.tensor([2, 0, 2, 1]),
    "per token": torch.randint(0, 3, (B, S), generator=torch.Generator().manual_seed(4)),
}


RELEASES = [
    COMBINATIONS[0],
    {**COMBINATIONS[0], "adapter_reuse_layer_norm": True, "ln_before_adapter": True},
    {**COMBINATIONS[0], "pre_norm": True, "adapter_layer_norm": True},
    COMBINATIONS[-1],
]


def pair(head: str, folder, **changes):
    """Our model with random weights, and transformers' with the same weights, read from disk."""
    torch.manual_seed(0)
    config = tiny_config(is_decoder=head == "ForCausalLM", **changes)
    ours = getattr(xmod_lab.model, f"Xmod{head}")(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    ours.save_pretrained(folder)
    theirs, info = getattr(transformers, f"Xmod{head}").from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    return ours.eval(), theirs.eval()


def batch(head: str, languages: torch.Tensor, rows_are: str) -> tuple[dict, dict]:
    """Inputs, and labels as the head wants them. ``rows_are``: of ROWS; packed as in training."""
    assert rows_are in ROWS
    generator = torch.Generator().manual_seed(1)
    draw = lambda high, *shape: torch.randint(0, high, shape, generator=generator)  # noqa: E731
    rows = (B, C) if head == "ForMultipleChoice" else (B,)
    ids = draw(PIECES - 5, *rows, S) + 5
    inputs = {"input_ids": ids, "lang_ids": languages}
    if head == "ForMultipleChoice" and languages.dim() == 2:
        inputs["lang_ids"] = languages[:, None].expand(B, C, S)
    if rows_are in ("padded", "left"):
        inputs["attention_mask"] = torch.ones_like(ids)
        for row, length in ((1, 4), (2, 6)):  # much padding, so that it is left out
            empty = slice(length, None) if rows_are == "padded" else slice(0, S - length)
            inputs["attention_mask"][row, ..., empty] = 0
            ids[row, ..., empty] = 1
    if (
        rows_are == "packed"
    ):  # two passages in every row: neither attends to the other, each has its own positions
        ids[..., 4] = 2
        layout = Layout("document", pad_id=1, eos_id=2, causal=head == "ForCausalLM")
        fields = layout.fields(ids.flatten(0, -2).numpy(), ids.flatten(0, -2).numpy())
        documents = fields.pop("documents")  # transformers takes a mask
        fields["attention_mask"] = mask_of(documents, causal=layout.causal)
        inputs |= {name: field.unflatten(0, rows) for name, field in fields.items()}
    chosen = torch.rand(B, S, generator=generator) < 0.4
    pieces = torch.where(chosen & (ids != 1), ids, -100) if "LM" in head else None
    labels = {
        "Model": lambda: {},
        "ForMaskedLM": lambda: {"labels": pieces},
        "ForCausalLM": lambda: {"labels": torch.where(ids == 1, -100, ids)},
        "ForSequenceClassification": lambda: {"labels": draw(2, B)},
        "ForMultipleChoice": lambda: {"labels": draw(C, B)},
        "ForTokenClassification": lambda: {"labels": torch.where(ids == 1, -100, draw(2, B, S))},
        "ForQuestionAnswering": lambda: {
            "start_positions": draw(S + 3, B),
            "end_positions": draw(S, B),
        },
    }[head]()
    return inputs, labels


def make(head: str, **changes):
    torch.manual_seed(0)
    return getattr(xmod_lab.model, f"Xmod{head}")(
        tiny_config(is_decoder=head == "ForCausalLM", **changes)
    ).eval()


def first(out):
    """The main tensor of an output."""
    return (
        out.start_logits
        if "start_logits" in out
        else out.logits
        if "logits" in out
        else out.last_hidden_state
    )
