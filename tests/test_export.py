"""ONNX files in onnxruntime against torch: each class, several languages, other sizes."""

import logging
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch.testing import assert_close

from tests.heads import HEADS, RELEASES, make
from tests.helpers import tiny_model
from xmod_lab.errors import UserError
from xmod_lab.model.export import OUTPUTS, export_onnx


def exported(model, folder) -> onnxruntime.InferenceSession:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        export_onnx(model, folder / "model.onnx")
    return onnxruntime.InferenceSession(folder / "model.onnx")


@pytest.mark.parametrize(
    ("head", "flags"),
    [
        (HEADS[0], RELEASES[1]),
        *(pytest.param(head, RELEASES[1], marks=pytest.mark.slow) for head in HEADS[1:]),
        ("ForQuestionAnswering", RELEASES[2]),
        pytest.param("ForMaskedLM", {"slot_architecture": "lora"}, marks=pytest.mark.slow),
        pytest.param("ForMaskedLM", {"slot_architecture": "gated"}, marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_the_numbers_of_torch_for_every_language(head, flags, tmp_path):
    model = make(head, **flags)
    session = exported(model, tmp_path)
    for rows, length, lang_ids in ((5, 9, [2, 0, 1, 1, 0]), (1, 20, [2]), (2, 4, [0, 0])):
        shape = (rows, 4, length) if head == "ForMultipleChoice" else (rows, length)
        ids = torch.randint(5, 50, shape, generator=torch.Generator().manual_seed(rows))
        mask = torch.ones_like(ids)
        mask[0, ..., 3:] = 0
        lang_ids = torch.tensor(lang_ids)
        feed = {
            "input_ids": ids.numpy(),
            "attention_mask": mask.numpy(),
            "lang_ids": lang_ids.numpy(),
        }
        with torch.no_grad():
            out = model(ids, attention_mask=mask, lang_ids=lang_ids)
        found = session.run(None, feed)
        assert len(found) == len(OUTPUTS[type(model).__name__])
        for tensor, name in zip(found, OUTPUTS[type(model).__name__], strict=True):
            real = mask.bool() if tensor.shape[:2] == mask.shape else slice(None)
            assert_close(
                torch.from_numpy(tensor)[real], getattr(out, name)[real], atol=1e-5, rtol=0
            )


@pytest.mark.slow
def test_a_language_out_of_range_is_an_error_in_onnxruntime(tmp_path):
    """Peers' bug 1 again: numbers below zero would be counted from the last language."""
    session = exported(make("Model"), tmp_path)
    ids = np.full((2, 4), 6)
    for wrong in (-1, -3, 3):
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "lang_ids": np.array([0, wrong]),
        }
        with pytest.raises(
            onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="invalid index found"
        ):
            session.run(None, feed)


def test_a_vocabulary_of_its_own_is_not_exported_in_silence(tmp_path):
    model = tiny_model()
    model.add_language("el_GR", vocab_size=70)
    with pytest.raises(UserError, match="remove_language"):
        export_onnx(model, tmp_path / "model.onnx")


def test_what_no_exported_graph_can_hold_is_refused():
    model, ids = tiny_model(), torch.full((3, 7), 6)
    with pytest.raises(UserError, match=r"shape \(3, 7\); a model is exported with \(rows,\)"):
        torch.export.export(model, (ids,), {"lang_ids": torch.zeros_like(ids)}, strict=False)
    model.add_language("el_GR", vocab_size=70)
    with pytest.raises(UserError, match="el_GR have vocabularies of their own.*remove_language"):
        torch.export.export(model, (ids,), {"lang_ids": torch.zeros(3).long()}, strict=False)


@pytest.mark.slow
def test_a_model_is_as_it_was_when_it_could_not_be_written(tmp_path):
    model = tiny_model().train()
    model.lm_head.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match="missing|No such file"):
            export_onnx(model, tmp_path / "missing" / "model.onnx")
    assert model.training and model.roberta.training and not model.lm_head.training


def test_a_type_that_the_runtime_has_not_is_not_exported(tmp_path):
    with pytest.raises(UserError, match=r"bfloat16.*float\(\)"):
        export_onnx(tiny_model().bfloat16(), tmp_path / "model.onnx")
