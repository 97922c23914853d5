"""Attention by lengths of documents, beside a mask: an interface reads them as flash does."""

import sys
import types

import pytest
import torch
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.helpers import tiny_batch, tiny_config, tiny_model
from xmod_lab.errors import UserError
from xmod_lab.model import XmodForCausalLM, backbone
from xmod_lab.model.fast import varlen
from xmod_lab.model.fast.varlen import Spans, mask_of

# rows of 12 tokens: three documents, one, and two with padding (-1)
DOCUMENTS = torch.tensor(
    [[0] * 3 + [1] * 5 + [2] * 4, [0] * 12, [0] * 6 + [1] * 2 + [-1] * 4], dtype=torch.int64
)


def test_the_lengths_say_what_the_mask_says():
    spans = Spans.of(DOCUMENTS, torch.device("cpu"))
    assert spans.ends.tolist() == [0, 3, 8, 12, 24, 30, 32, 36] and spans.longest == 12
    assert spans.ends.dtype == torch.int32
    tokens = torch.arange(36)
    document = torch.bucketize(tokens, spans.ends[1:], right=True)
    same = document[:, None] == document[None, :]
    for causal in (False, True):
        mask = mask_of(DOCUMENTS, causal=causal)
        for row in range(3):
            at = slice(12 * row, 12 * (row + 1))
            wanted = same[at, at].tril() if causal else same[at, at]
            assert torch.equal(mask[row, 0], wanted)


def each_alone(q, k, v, ends, ends_k, longest, longest_k, *, scale, causal):
    """(tokens, H, K) -> (tokens, H, K): each document alone, as the kernels compute it."""
    assert torch.equal(ends, ends_k) and longest == longest_k
    out = torch.empty_like(q)
    for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        assert end - start <= longest
        one = (x[start:end].transpose(0, 1) for x in (q, k, v))  # (H, length, K)
        attended = torch.nn.functional.scaled_dot_product_attention(
            *one, scale=scale, is_causal=causal
        )
        out[start:end] = attended.transpose(0, 1)
    return out


def of_flash_attn(*args, dropout_p, softmax_scale, causal):
    """As ``flash_attn.flash_attn_varlen_func`` is called."""
    assert dropout_p == 0
    return each_alone(*args, scale=softmax_scale, causal=causal)


def of_torch(*args, scale, window_size):
    """As ``torch.nn.attention.varlen.varlen_attn`` is called."""
    assert window_size[0] == -1
    return each_alone(*args, scale=scale, causal=window_size[1] == 0)


def causal_model():
    torch.manual_seed(0)
    return XmodForCausalLM(tiny_config(is_decoder=True)).eval()


@pytest.mark.parametrize("make", [tiny_model, causal_model])
@pytest.mark.parametrize("lang_ids", [[0, 0, 1], [2, 0, 2]])
@pytest.mark.parametrize("way", ["backend", "flash_attn", "torch"])
def test_losses_and_gradients_are_those_of_the_mask(make, lang_ids, way, monkeypatch):
    """Also where rows are brought into the order of their languages. Stand-ins for the kernels."""
    library = types.ModuleType("flash_attn")
    library.flash_attn_varlen_func = of_flash_attn
    monkeypatch.setitem(sys.modules, "flash_attn", library)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_torch)
    interface = ALL_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(interface, "flash_by_lengths", varlen.flash_attention)
    kernel = varlen.torch_attention if way == "torch" else varlen.flash_attention
    batch = {**tiny_batch(rows=3), "lang_ids": torch.tensor(lang_ids), "documents": DOCUMENTS}
    batch["labels"] = batch["labels"].masked_fill(DOCUMENTS < 0, -100)
    found = []
    for by_length in (False, True):
        model = make()
        if by_length and way == "backend":
            model.config._attn_implementation = "flash_by_lengths"
        elif by_length:
            monkeypatch.setattr(backbone, "kernel_for", lambda *_: kernel)
        loss = model(**batch).loss
        loss.backward()
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (again, same) = found
    assert_close(again, loss, atol=1e-6, rtol=0)
    assert gradients.keys() == same.keys()
    for name, gradient in gradients.items():
        assert_close(same[name], gradient, atol=1e-5, rtol=0, msg=name)


def test_a_document_is_read_as_it_is_read_alone():
    model = tiny_model()
    ids = tiny_batch(rows=1)["input_ids"]
    positions = torch.tensor([[2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 7, 8]])
    documents = torch.tensor([[0] * 5 + [1] * 7])
    with torch.no_grad():
        packed = model(ids, lang_ids="en_XX", documents=documents, position_ids=positions).logits
        alone = model(ids[:, 5:], lang_ids="en_XX").logits
    assert_close(packed[:, 5:], alone, atol=1e-5, rtol=0)


def test_documents_of_another_shape_or_beside_a_mask_are_refused():
    model, ids = tiny_model(), tiny_batch(rows=3)["input_ids"]
    with pytest.raises(UserError, match="allowed are integers of shape"):
        model(ids, lang_ids="en_XX", documents=DOCUMENTS[:, :5])
    with pytest.raises(UserError, match="leave attention_mask"):
        model(ids, lang_ids="en_XX", documents=DOCUMENTS, attention_mask=torch.ones(3, 12))
