"""Dense encoders become X-MOD, and compute what they computed."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.dense import make_dense
from tests.helpers import tiny_model
from xmod_lab.errors import UserError
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.model.digests import base_settings
from xmod_lab.model.growing import DENSE, check_dense, difference, grow, grown_config
from xmod_lab.stages.continuing import trained_names

SPECIAL = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def grown(folder, **flags):
    """What was checked, the dense model, and the grown one."""
    found = check_dense(folder)
    special = flags.pop("special_ids", SPECIAL | {"pad_token_id": found.config.pad_token_id})
    config = grown_config(
        found, ["en_XX", "de_DE"], vocab_size=found.config.vocab_size, special_ids=special, **flags
    )
    dense = found.load()
    return found, dense, grow(found, dense, config, seed=1)


def some_passages(pieces: int = 500) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, pieces, (length,), generator=generator) for length in (5, 60)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", DENSE)
def test_the_grown_model_is_the_dense_one_in_every_language(tmp_path, kind, head, tied):
    make_dense(tmp_path, kind, head=head, tokenizer=False, tie_word_embeddings=tied)
    found, dense, model = grown(tmp_path)
    assert found.has_head == head
    for code in model.languages:
        apart = difference(found, dense, model, code, some_passages())
        assert apart.worst <= 1e-6 and (apart.logits is None) == (not head)
        assert apart.largest > 1


@pytest.mark.parametrize("kind", DENSE)
def test_transformers_loads_the_grown_model_as_x_mod_with_the_dense_logits(tmp_path, kind):
    make_dense(tmp_path / "dense", kind, tokenizer=False)
    found, dense, model = grown(tmp_path / "dense")
    model.save_pretrained(tmp_path / "grown")
    theirs, said = transformers.XmodForMaskedLM.from_pretrained(
        tmp_path / "grown", output_loading_info=True
    )
    assert not said["missing_keys"] and not said["unexpected_keys"]
    ids = torch.stack(some_passages()[1:] * 2)
    attention_mask = torch.ones_like(ids)
    ids[1, 40:], attention_mask[1, 40:] = model.config.pad_token_id, 0
    with torch.no_grad():
        wanted = dense(ids, attention_mask=attention_mask).logits
        heard = theirs(ids, attention_mask=attention_mask, lang_ids=torch.tensor([0, 1])).logits
        ours = model(ids, attention_mask=attention_mask, lang_ids=["en_XX", "de_DE"]).logits
    real = attention_mask.bool()
    torch.testing.assert_close(heard[real], wanted[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[real], wanted[real], atol=1e-5, rtol=0)
    again = XmodForMaskedLM.from_pretrained(tmp_path / "grown")
    assert base_settings(again.config) == base_settings(model.config)


def test_a_head_that_transformers_cannot_express_has_our_model_type(tmp_path):
    make_dense(tmp_path / "dense", "bert", tokenizer=False, hidden_act="relu")
    found, dense, model = grown(tmp_path / "dense")
    assert difference(found, dense, model, "de_DE", some_passages()).worst <= 1e-6
    model.save_pretrained(tmp_path / "grown")
    assert json.loads((tmp_path / "grown/config.json").read_text())["model_type"] == "xmod_lab"
    again = XmodForMaskedLM.from_pretrained(tmp_path / "grown")
    assert difference(found, dense, again, "de_DE", some_passages()).worst <= 1e-6


def test_positions_follow_the_padding_of_the_tokenizer(tmp_path):
    """Multilingual E5 is a BERT with padding 0 that is read by XLM-R's tokenizer, padding 1."""
    make_dense(tmp_path, "bert", tokenizer=False)
    found, dense, model = grown(tmp_path, special_ids=SPECIAL)
    assert model.config.max_position_embeddings == 66 and model.base_model.embeddings.longest == 64
    assert difference(found, dense, model, "en_XX", some_passages()).worst <= 1e-6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"adapter_reuse_layer_norm": False, "ln_before_adapter": True}, None),
        ({"adapter_layer_norm": True}, None),
        ({"slot_architecture": "lora"}, None),
        ({"slot_architecture": "gated", "adapter_reduction_factor": 4}, None),
        ({"ln_before_adapter": True}, "adapter_reuse_layer_norm=true a LayerNorm changes"),
        (
            {"ln_before_adapter": True, "adapter_layer_norm": True},
            "adapter_layer_norm=true a LayerNorm changes",
        ),
        ({"pre_norm": True}, "post-norm"),
    ],
    ids=str,
)
def test_flags_under_which_the_models_cannot_be_equal_are_refused(tmp_path, flags, said):
    make_dense(tmp_path, "xlm-roberta", tokenizer=False)
    if said is None:
        found, dense, model = grown(tmp_path, **flags)
        assert difference(found, dense, model, "de_DE", some_passages()).worst <= 1e-6
    else:
        with pytest.raises(UserError, match=said):
            grown(tmp_path, **flags)


def change_config(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "gpt2"}, "of type 'gpt2'"),
        ({"is_decoder": True}, "'roberta', a decoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5', an encoder-decoder"),
        ({"position_embedding_type": "relative_key"}, "absolute positions"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple"),
        ({"pad_token_id": None}, "pad_token_id is None"),
        ({"hidden_act": "gelou"}, "makes no model"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1 in config.json, and 2 by the weights"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.*missing"),
        ({"vocab_size": 400}, "word_embeddings.weight is .*500"),
        ({"intermediate_size": 40}, "does not fit together"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "asks for code"),
    ],
    ids=str,
)
def test_what_is_no_encoder_of_the_layout_is_refused(tmp_path, settings, said):
    make_dense(tmp_path, "roberta", tokenizer=False)
    change_config(tmp_path, **settings)
    with pytest.raises(UserError, match=said):
        check_dense(tmp_path)


def test_pickled_weights_and_heads_that_do_not_fit_are_refused(tmp_path):
    make_dense(tmp_path, "bert", tokenizer=False)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    dense = weights["cls.predictions.transform.dense.weight"]
    save_file(weights | {"cls.predictions.transform.dense.weight": dense[:8].clone()}, file)
    with pytest.raises(UserError, match="its masked-LM head does not fit"):
        check_dense(tmp_path)
    del weights["cls.predictions.transform.dense.weight"]
    save_file(weights, file)
    with pytest.raises(UserError, match="its masked-LM head is not whole: .*dense.weight"):
        check_dense(tmp_path)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        check_dense(tmp_path)


@pytest.mark.parametrize(
    ("train", "shared"),
    [
        ("slots", set()),
        ("slots+head", {"lm_head.dense.weight", "lm_head.layer_norm.bias", "lm_head.bias"}),
        ("slots+embeddings", {"roberta.embeddings.word_embeddings.weight", "lm_head.bias"}),
    ],
)
def test_a_plan_trains_the_slots_of_the_text_and_what_it_names(train, shared):
    model = tiny_model(tie_word_embeddings=True)
    names = trained_names(model, ["de_DE"], train)
    slots = {name for name in names if ".adapter_modules." in name}
    assert len(slots) == 2 * 4 and all(".de_DE." in name for name in slots)
    assert shared <= names - slots
    parts = {"slots+head": "lm_head.", "slots+embeddings": ("roberta.embeddings.word", "lm_head.")}
    assert all(name.startswith(parts[train]) for name in names - slots)
    everything = {name for name, _ in model.named_parameters()}
    others = {n for n in everything if ".adapter_modules." in n} - slots
    assert trained_names(model, ["de_DE"], "all") == everything - others


def test_layer_norms_with_their_names_of_2018_are_read(tmp_path):
    made = make_dense(tmp_path, "bert", tokenizer=False)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    old = {
        n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
        for n, t in weights.items()
    }
    assert old.keys() != weights.keys()
    save_file(old, file, metadata={"format": "pt"})
    found, _, model = grown(tmp_path)
    assert found.has_head
    assert difference(found, made, model, "en_XX", some_passages()).worst <= 1e-6
