"""Models that cannot be trained further: one message with status 2, before anything is written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.commands.helpers import Workplace, make_workplace
from tests.dense import SIZES, make_dense
from tests.helpers import composed, tiny_model
from xmod_lab import pretrain
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.model_folders import RECOGNITION
from xmod_lab.runs.folder import RunDir
from xmod_lab.stages.starting import begin
from xmod_lab.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Workplace:
    """Texts of 100 lines, without a run."""
    return make_workplace(tmp_path_factory.mktemp("place"), lines_each=100)


@pytest.fixture
def refused(place, monkeypatch, capfd, tmp_path) -> Callable[..., str]:
    """Call the command and return its message. It must end with status 2 and write nothing."""

    def call(*overrides: str) -> str:
        run, data = tmp_path / "run", tmp_path / "data"
        arguments = place.arguments(*overrides, f"data.folder={data}", run=run)
        arguments = [a for a in arguments if not a.startswith("model.") or a in overrides]
        monkeypatch.chdir(place.folder)
        monkeypatch.setattr("sys.argv", ["pretrain", *arguments])
        with pytest.raises(SystemExit) as stop:
            pretrain.main()
        message = capfd.readouterr().err
        assert stop.value.code == 2, message
        assert message.count("error: ") == 1 and "Traceback" not in message
        assert not run.exists() and not data.exists()
        return message

    return call


@pytest.fixture(scope="module")
def settings() -> PretrainConfig:
    """Of the command, without a base."""
    return composed("data.row_length=32")


def change_config(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def gpt2(folder: Path) -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=500)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def t5(folder: Path) -> None:
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=500
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def bart(folder: Path) -> None:
    sizes = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
    }
    config = transformers.BartConfig(d_model=16, vocab_size=500, **sizes)
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)


def decoding(folder: Path) -> None:
    config = transformers.RobertaConfig(**SIZES, vocab_size=500, is_decoder=True)
    transformers.RobertaForCausalLM(config).save_pretrained(folder)


def pickled(folder: Path) -> None:
    model = make_dense(folder, "roberta")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def other_head(folder: Path) -> None:
    make_dense(folder, "roberta")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.dense.weight"] = torch.zeros(8, 16)
    save_file(weights, folder / "model.safetensors")


def other_padding(folder: Path) -> None:
    make_dense(folder, "xlm-roberta", pad_token_id=0)


def many_tokens(folder: Path) -> None:
    make_dense(folder, "xlm-roberta", vocab_size=400)


def no_tokenizer(folder: Path) -> None:
    make_dense(folder, "xlm-roberta", tokenizer=False)


def relative(folder: Path) -> None:
    make_dense(folder, "bert")
    change_config(folder, position_embedding_type="relative_key_query")


def heads(folder: Path) -> None:
    make_dense(folder, "bert")
    change_config(folder, num_attention_heads=3)


def modern(folder: Path) -> None:
    config = transformers.ModernBertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=500,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        cls_token_id=0,
        sep_token_id=2,
    )
    transformers.ModernBertForMaskedLM(config).save_pretrained(folder)


def damaged_profiles(folder: Path) -> None:
    tiny_model().save_pretrained(folder)
    content = {"format": 1, "longest": 3, "languages": {"en_XX": 1}}
    (folder / RECOGNITION).write_text(json.dumps(content))


def dense(folder: Path) -> None:
    make_dense(folder, "xlm-roberta")


def other_end(folder: Path) -> None:
    make_dense(folder, "xlm-roberta")
    assert len(load_tokenizer(folder).convert_ids_to_tokens(400)) > 1
    change_config(folder, eos_token_id=400)


BAD_MODELS = {  # what is made -> what the message says
    t5: "of type 't5', an encoder-decoder",
    bart: "of type 'bart', an encoder-decoder",
    decoding: "of type 'roberta', a decoder",
    modern: "of type 'modernbert'",
    pickled: "pickle",
    other_head: "its masked-LM head does not fit: lm_head.dense.weight",
    many_tokens: "has 500 tokens",
    no_tokenizer: "tokenizer",
    relative: "table of absolute positions",
    heads: "hidden_size 16 is not a multiple of num_attention_heads 3",
    other_padding: "pads with the id 1, the base with 0",
    damaged_profiles: "recognition.json, or copy it again",
}
REFUSED = [  # what is made, more overrides, what the message says
    (gpt2, [], "of type 'gpt2'"),
    (dense, ["model.ln_before_adapter=true"], "set model.ln_before_adapter=false"),
    (dense, ["model.hidden_size=64"], "hidden_size is 16; 64 was asked for"),
    (dense, ["data.row_length=128"], "set data.row_length=64 or less"),
    (dense, ["+langset.languages={en:{text:en.txt}}"], "means the same language as"),
    (dense, ["train=heads"], "slots+head"),
    (dense, ["train=slots", "task.pretrain.peak_lr=1e-3"], "write task.extend.peak_lr"),
    (dense, ["task.extend.peak_lr=1e-3"], "write task.pretrain.peak_lr"),
    (other_end, ["data.trim_vocabulary=0"], "eos_token_id is 400"),
]


@pytest.mark.parametrize("make", BAD_MODELS, ids=lambda make: make.__name__)
def test_a_model_that_does_not_fit_is_refused_before_text_is_read(settings, tmp_path, make):
    make(tmp_path / "base")
    data = replace(settings.data, folder=str(tmp_path / "data"))
    with pytest.raises(UserError) as fault:
        begin(replace(settings, base=str(tmp_path / "base"), data=data), RunDir(tmp_path / "run"))
    assert BAD_MODELS[make] in str(fault.value)
    assert {file.name for file in tmp_path.iterdir()} == {"base"}


@pytest.mark.parametrize(
    ("make", "overrides", "said"),
    REFUSED,
    ids=[f"{make.__name__} {more}" for make, more, _ in REFUSED],
)
def test_the_command_refuses_before_anything_is_written(refused, tmp_path, make, overrides, said):
    make(tmp_path / "base")
    assert said in refused(f"base={tmp_path / 'base'}", *overrides)
