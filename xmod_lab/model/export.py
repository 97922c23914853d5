"""ONNX files of any class, with the language as an input.

One file serves all languages of the base vocabulary.
"""

from pathlib import Path

import torch
from torch import Tensor

from xmod_lab.errors import UserError
from xmod_lab.model.backbone import check_vocabularies
from xmod_lab.model.base import XmodPreTrainedModel

# B batch rows, S sequence, C choices

OUTPUTS = {
    "XmodModel": ["last_hidden_state"],
    "XmodForMaskedLM": ["logits"],
    "XmodForCausalLM": ["logits"],
    "XmodForSequenceClassification": ["logits"],
    "XmodForMultipleChoice": ["logits"],
    "XmodForTokenClassification": ["logits"],
    "XmodForQuestionAnswering": ["start_logits", "end_logits"],
}


class _Positional(torch.nn.Module):
    """The exported outputs, from inputs in a fixed order."""

    def __init__(self, model: XmodPreTrainedModel):
        super().__init__()
        self.model, self.names = model, OUTPUTS[type(model).__name__]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, lang_ids: Tensor
    ) -> tuple[Tensor, ...]:
        off = {"use_cache": False} if self.model.config.is_decoder else {}
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, lang_ids=lang_ids, **off
        )
        return tuple(getattr(out, name) for name in self.names)


def export_onnx(model: XmodPreTrainedModel, path: Path) -> None:
    """Write ``model`` to ``path`` (.onnx; weights of more than 2 GB go to a file beside it).

    Inputs: ``input_ids`` and ``attention_mask`` (B, S), for multiple choice (B, C, S); ``lang_ids``
    (B,), numbers from :meth:`XmodPreTrainedModel.lang_id`. B, C and S are free. A number out of
    range, also a negative one, is an error of the runtime: no slot is skipped silently. Needs
    ``pip install xmod_lab[export]``.

    Raises:
        UserError: the model is in bfloat16, or has vocabularies of added languages. (Their ids
            would mean other tokens.)
    """
    if model.dtype == torch.bfloat16:
        raise UserError(
            "the model is in bfloat16, in which onnxruntime does not compute on CPUs; call float() "
            "or half() first"
        )
    check_vocabularies(model.config)
    choices = type(model).__name__ == "XmodForMultipleChoice"
    shape = (3, 2, 7) if choices else (3, 7)
    ids = torch.full(shape, model.config.pad_token_id + 4)
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", max=model.config.positions)
    free = (
        {0: batch, 1: torch.export.Dim("choices"), 2: length} if choices else {0: batch, 1: length}
    )
    lang_ids = torch.arange(3) % len(model.config.languages)
    modes = {module: module.training for module in model.modules()}
    try:
        torch.onnx.export(
            _Positional(model).eval(),
            (ids, torch.ones_like(ids), lang_ids),
            str(path),
            input_names=["input_ids", "attention_mask", "lang_ids"],
            output_names=OUTPUTS[type(model).__name__],
            dynamic_shapes=(free, free, {0: batch}),
            dynamo=True,
            verbose=False,
        )
    finally:
        for module, mode in modes.items():
            module.training = mode
