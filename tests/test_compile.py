"""The compiled encoder: one graph without a break for every kind of batch; the same numbers."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from tests.heads import LANGUAGES, batch, first, make
from tests.helpers import tiny_batch, tiny_model
from xmod_lab.model import SLOTS, slots
from xmod_lab.model.fast import grouped
from xmod_lab.model.fast.grouped import grouped_linear

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch's own look at its inputs
COMPOSITIONS = [
    [0, 0, 1, 1, 2, 2],
    [1, 1, 1, 1, 2, 0],
    [0, 1, 2, 0, 1, 2],
    [2] * 6,
    [0, 0, 0, 0, 1, 1],
    [2, 2, 1, 1, 1, 1],
    [0] * 6,
    [1] * 6,
    [2, 0, 0, 0, 0, 0],
]


def _same_gradients(ours, reference):
    wanted = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (wanted[name].grad is None), (
            name
        )  # absent slots: none in both
        if parameter.grad is not None:
            assert_close(parameter.grad, wanted[name].grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_no_graph_break_and_no_recompilation_for_new_compositions(autocast):
    torch._dynamo.reset()
    counter = CompileCounter()  # compiles nothing, counts graphs; fullgraph=True fails on a break
    ours, reference = (
        tiny_model(adapter_reduction_factor=3).train(),
        tiny_model(adapter_reduction_factor=3).train(),
    )
    ours.roberta.compile_encoder(backend=counter)
    counts = []
    for lang_ids in COMPOSITIONS * 2:
        for model in (ours, reference):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                model(**tiny_batch(rows=6), lang_ids=torch.tensor(lang_ids)).loss.backward()
        if not autocast:
            _same_gradients(ours, reference)
        counts.append(counter.frame_count)
    assert (
        counts[-1] == counts[len(COMPOSITIONS) - 1] <= 3
    )  # one, several, and the first, which assumed too much


@pytest.mark.parametrize(
    "head",
    [
        "Model",
        *(
            pytest.param(head, marks=pytest.mark.slow)
            for head in ("ForCausalLM", "ForMultipleChoice")
        ),
    ],
)
def test_graphs_are_few_for_every_batch(head):
    """Masks, numbers of rows, languages by row and token: each has its graphs, finitely many."""
    torch._dynamo.reset()
    counter, counts = CompileCounter(), []
    ours, reference = make(head, pre_norm=True), make(head, pre_norm=True)
    ours.base_model.compile_encoder(backend=counter)
    varied = [
        (name, rows_are, rows)
        for name in LANGUAGES
        for rows_are in ("full", "padded")
        for rows in (4, 3, 2)
    ]
    for name, rows_are, rows in varied * 2:
        inputs, _ = batch(head, LANGUAGES[name], rows_are)
        inputs = {key: tensor[:rows] for key, tensor in inputs.items()}
        with torch.no_grad():
            a, b = first(ours(**inputs)), first(reference(**inputs))
        real = inputs["input_ids"] != 1 if a.shape[:2] == inputs["input_ids"].shape else slice(None)
        assert_close(a[real], b[real], atol=1e-5, rtol=0)
        counts.append(counter.frame_count)
    assert counts[-1] == counts[len(varied) - 1] <= 12


@pytest.mark.parametrize("slot", SLOTS)
def test_tokens_of_several_languages_in_one_row(slot):
    torch._dynamo.reset()
    ours, reference = (tiny_model(slot_architecture=slot) for _ in range(2))
    ours.roberta.compile_encoder(backend="eager")
    batch = tiny_batch(rows=2)
    lang_ids = torch.randint(
        0, 3, batch["input_ids"].shape, generator=torch.Generator().manual_seed(4)
    )
    for model in (ours, reference):
        model(**batch, lang_ids=lang_ids).loss.backward()
    _same_gradients(ours, reference)


def test_the_grouped_product_is_that_of_its_groups():
    generator = torch.Generator().manual_seed(0)
    shapes = ((11, 6), (3, 5, 6), (3, 5))
    x, w, b = (
        torch.randn(*s, generator=generator, dtype=torch.double, requires_grad=True) for s in shapes
    )
    ends = torch.tensor([4, 4, 11])  # the second group is empty
    out = grouped_linear(x, w, b, ends)
    assert_close(out, torch.cat([x[:4] @ w[0].T + b[0], x[4:] @ w[2].T + b[2]]))
    torch.library.opcheck(grouped_linear, (x, w, b, ends))
    assert torch.autograd.gradcheck(lambda *args: grouped_linear(*args, ends), (x, w, b))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_one_kernel_for_all_slots_gives_the_numbers_of_one_call_for_each(kind, monkeypatch):
    """torch's grouped product, which GPUs use, here on a CPU; a slot in the middle is empty."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for used in (False, True):
        monkeypatch.setattr(grouped, "one_kernel", lambda x, matrices, used=used: used)
        x, w, b = (
            torch.randn(*s, generator=generator.manual_seed(0), dtype=kind, requires_grad=True)
            for s in ((24, 16), (3, 8, 16), (3, 8))
        )
        out = grouped_linear(x, w, b, torch.tensor([8, 8, 24]))
        (out * torch.arange(8, dtype=kind)).sum().backward()
        found.append((out, x.grad, w.grad, b.grad))
    assert all(part.dtype == kind for part in found[1])
    limit = 1e-5 if kind == torch.float32 else 0.3
    for ours, plain in zip(found[1], found[0], strict=True):
        assert_close(ours, plain, atol=limit, rtol=1e-2)


@pytest.mark.parametrize("per_token", [False, True])
def test_a_model_whose_slots_are_one_kernel_has_the_same_loss_and_gradients(per_token, monkeypatch):
    batch = tiny_batch(rows=6)
    lang_ids = torch.tensor(COMPOSITIONS[2])
    if per_token:
        lang_ids = lang_ids[:, None].expand_as(batch["input_ids"]).clone()
        lang_ids[:, 6:] = (lang_ids[:, 6:] + 1) % 3
    models = tiny_model(), tiny_model()
    for model, used in zip(models, (True, False), strict=True):
        for module in (slots, grouped):
            monkeypatch.setattr(module, "one_kernel", lambda x, matrices, used=used: used)
        model(**batch, lang_ids=lang_ids).loss.backward()
    _same_gradients(*models)


def test_dropout_breaks_no_graph():
    torch._dynamo.reset()
    counter = CompileCounter()
    model = tiny_model(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3).train()
    model.roberta.compile_encoder(backend=counter)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(**tiny_batch(rows=6), lang_ids=torch.tensor(COMPOSITIONS[0])).loss)
    losses[-1].backward()
    assert losses[0] == losses[1] != losses[2] and counter.frame_count == 1


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_loss_and_gradients():
    torch._dynamo.reset()
    ours, reference = tiny_model().train(), tiny_model().train()
    ours.roberta.compile_encoder()
    for lang_ids in COMPOSITIONS[:4]:
        for model in (ours, reference):
            model.zero_grad()
            model(**tiny_batch(rows=6), lang_ids=torch.tensor(lang_ids)).loss.backward()
        _same_gradients(ours, reference)
