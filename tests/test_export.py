"""ONNX files in onnxruntime against torch: every class, several languages, other sizes than those exported with."""

import logging
import warnings

import onnxruntime
import pytest
import torch
from torch.testing import assert_close

from tests.conftest import tiny_model
from tests.test_classes import first, make
from tests.test_parity import HEADS
from xmod_lab.errors import UserError
from xmod_lab.model.export import export_onnx


@pytest.mark.parametrize("head", HEADS)
def test_onnx_gives_the_numbers_of_torch_for_every_language(head, tmp_path):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model = make(head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for rows, length, lang_ids in ((5, 9, [2, 0, 1, 1, 0]), (1, 20, [2]), (2, 4, [0, 0])):
        shape = (rows, 4, length) if head == "ForMultipleChoice" else (rows, length)
        ids = torch.randint(5, 50, shape, generator=torch.Generator().manual_seed(rows))
        mask = torch.ones_like(ids)
        mask[0, ..., 3:] = 0
        lang_ids = torch.tensor(lang_ids)
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "lang_ids": lang_ids.numpy()}
        out = torch.from_numpy(session.run(None, feed)[0])
        with torch.no_grad():
            expected = first(model(ids, attention_mask=mask, lang_ids=lang_ids))
        real = mask.bool() if expected.shape[:2] == mask.shape else slice(None)
        assert_close(out[real], expected[real], atol=1e-5, rtol=0)


def test_a_vocabulary_of_its_own_is_not_exported_in_silence(tmp_path):
    model = tiny_model()
    model.add_language("el_GR", pieces=70)
    with pytest.raises(UserError, match="remove_language"):
        export_onnx(model, tmp_path / "model.onnx")
