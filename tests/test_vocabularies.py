"""Several vocabularies in a model: a mixed batch equals its rows alone; all tables are saved."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import EntryNotFoundError
from torch.testing import assert_close
from transformers import AutoTokenizer

import xmod_lab.model
from tests.helpers import passages, tiny_batch, tiny_config, tiny_model
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForCausalLM, XmodForMaskedLM
from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece

PIECES = {"el_GR": 70, "sw_KE": 30}  # a larger vocabulary than the base's 50, and a smaller one
ROWS = ["el_GR", "en_XX", "sw_KE", "el_GR", "fr_XX", "en_XX", "sw_KE"]
HEADS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]


def grown(head: str = "ForMaskedLM", **changes):
    """Three languages of the base vocabulary, two with their own, and one in no batch here."""
    torch.manual_seed(0)
    model = getattr(xmod_lab.model, f"Xmod{head}")(
        tiny_config(is_decoder=head == "ForCausalLM", **changes)
    ).eval()
    for code, pieces in {**PIECES, "ta_IN": 40}.items():
        model.add_language(code, "random", vocab_size=pieces)
        torch.nn.init.normal_(model.base_model.embeddings.vocabularies[code].bias)
    return model


def rows(length: int = 9) -> torch.Tensor:
    """(B, S) ids, each row of all the tokens of its language."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack(
        [torch.randint(5, PIECES.get(code, 50), (length,), generator=generator) for code in ROWS]
    )


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForCausalLM"])
@pytest.mark.parametrize("cache", [False, True])
def test_logits_of_a_mixed_batch_are_those_of_each_row_alone(head, cache):
    """A cache keeps the caller's row order, so tables follow the rows, not the runs of slots."""
    model, ids, options = grown(head), rows(), {}
    if head == "ForCausalLM":
        options = {"use_cache": cache}
    logits = model(ids, lang_ids=ROWS, **options).logits
    assert logits.shape == (len(ROWS), 9, 70)
    for i, code in enumerate(ROWS):
        alone = model(ids[i : i + 1], lang_ids=code, **options).logits[0]
        assert alone.shape == (9, PIECES.get(code, 50))
        assert_close(logits[i, :, : alone.shape[1]], alone, atol=1e-6, rtol=1e-5)
        assert (
            logits[i, :, alone.shape[1] :] == -torch.inf
        ).all()  # no such token: never predicted


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForCausalLM"])
def test_the_loss_of_a_mixed_batch_is_the_mean_over_its_rows_with_and_without_full_logits(head):
    model, ids = grown(head), rows()
    losses = torch.stack(
        [
            model(ids[i : i + 1], labels=ids[i : i + 1], lang_ids=ROWS[i]).loss
            for i in range(len(ROWS))
        ]
    )
    assert_close(model(ids, labels=ids, lang_ids=ROWS).loss, losses.mean(), atol=1e-6, rtol=1e-6)
    full = model(ids, labels=ids, lang_ids=ROWS, full_logits=True)
    assert_close(full.loss, losses.mean(), atol=1e-6, rtol=1e-6)
    assert full.logits.shape == (len(ROWS), 9, 70)


@pytest.mark.parametrize("head", HEADS)
def test_task_heads_give_a_mixed_batch_what_they_give_each_row(head):
    model, ids = grown(head), rows()
    main = lambda out: out[1] if head == "ForQuestionAnswering" else out[0]  # noqa: E731
    together = main(model(ids, lang_ids=ROWS, return_dict=False))
    for i, code in enumerate(ROWS):
        assert_close(
            together[i : i + 1],
            main(model(ids[i : i + 1], lang_ids=code, return_dict=False)),
            atol=1e-5,
            rtol=1e-5,
        )


def test_multiple_choice_with_questions_of_several_vocabularies():
    model = grown("ForMultipleChoice")
    ids = torch.stack([rows()[:3], rows()[:3].flip(-1)], 1)  # (B, C, S)
    together = model(ids, lang_ids=ROWS[:3]).logits
    for i, code in enumerate(ROWS[:3]):
        assert_close(
            together[i : i + 1], model(ids[i : i + 1], lang_ids=code).logits, atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("full_logits", [False, True])
def test_only_tables_of_the_batch_get_a_gradient_and_it_is_that_of_their_own_rows(full_logits):
    model, ids = grown(), rows()
    model(ids, labels=ids, lang_ids=ROWS, full_logits=full_logits).loss.backward()
    tables = {
        code: v.word_embeddings.weight.grad
        for code, v in model.roberta.embeddings.vocabularies.items()
    }
    biases = {code: v.bias.grad for code, v in model.roberta.embeddings.vocabularies.items()}
    assert tables["ta_IN"] is None and biases["ta_IN"] is None
    assert all(p.grad is None for p in model.language_parameters("de_DE").values())
    for code in PIECES:
        alone = grown()
        mine = [i for i, row in enumerate(ROWS) if row == code]
        (alone(ids[mine], labels=ids[mine], lang_ids=code).loss * len(mine) / len(ROWS)).backward()
        vocabulary = alone.roberta.embeddings.vocabularies[code]
        assert_close(tables[code], vocabulary.word_embeddings.weight.grad, atol=1e-6, rtol=1e-4)
        assert_close(biases[code], vocabulary.bias.grad, atol=1e-7, rtol=1e-4)
    assert (
        model.get_input_embeddings().weight.grad is not None and model.lm_head.bias.grad is not None
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_in_several_vocabularies_at_once_is_generate_in_each(beams):
    model = grown("ForCausalLM", eos_token_id=None)
    settings = {
        "max_new_tokens": 6,
        "do_sample": False,
        "num_beams": beams,
        "eos_token_id": None,
        "pad_token_id": 1,
    }
    together = model.generate(rows(4), lang_ids=ROWS, **settings)
    for i, code in enumerate(ROWS):
        assert torch.equal(
            together[i], model.generate(rows(4)[i : i + 1], lang_ids=code, **settings)[0]
        )
        assert together[i].max() < PIECES.get(code, 50)


def test_a_row_may_mix_languages_of_one_vocabulary_beside_rows_of_another():
    model, ids = grown(), rows()[:2]
    per_token = torch.tensor(
        [[3] * 9, [0, 0, 1, 1, 2, 2, 0, 0, 1]]
    )  # Greek; English, German and French
    logits = model(ids, lang_ids=per_token).logits
    assert_close(
        logits[1:, :, :50], model(ids[1:], lang_ids=per_token[1:]).logits, atol=1e-6, rtol=1e-5
    )
    assert_close(logits[:1], model(ids[:1], lang_ids="el_GR").logits, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="different vocabularies in one sequence"):
        model(ids, lang_ids=torch.tensor([[3] * 9, [3, 3, 0, 0, 0, 0, 0, 0, 0]]))


def test_a_piece_that_the_vocabulary_of_its_row_lacks_is_named():
    with pytest.raises(
        UserError, match="to 60, but the vocabulary of 'sw_KE' has 30 tokens; .*tokenizer_for"
    ):
        grown()(torch.tensor([[6, 60]]), lang_ids="sw_KE")
    with pytest.raises(UserError, match="the base vocabulary has 50"):
        grown()(torch.tensor([[6, 60], [6, 60]]), lang_ids=["el_GR", "en_XX"])


@pytest.mark.parametrize("shard", [{}, {"max_shard_size": "4KB"}])
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForCausalLM", "ForTokenClassification"])
def test_tables_are_saved_and_follow_the_model_to_another_type(head, shard, tmp_path):
    """Peers' bug 10: unused tables in a dict are lost on saving, and left behind by ``to``."""
    model = grown(head)
    assert sum(".vocabularies." in name for name in model.state_dict()) == 2 * 3
    model.save_pretrained(tmp_path, **shard)
    loaded = type(model).from_pretrained(tmp_path)
    assert tensor_digests(loaded) == tensor_digests(model)
    assert loaded.config.vocabularies == {"el_GR": 70, "sw_KE": 30, "ta_IN": 40}
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert (
        {p.dtype for p in half.parameters()}
        == {p.dtype for p in model.to(torch.bfloat16).parameters()}
        == {torch.bfloat16}
    )
    assert tensor_digests(half) == tensor_digests(model)
    assert {p.device.type for p in model.to("meta").parameters()} == {"meta"}


class Hub:
    """A stand-in for huggingface.co: what transformers and we ask its client, and a folder."""

    def __init__(self, folder: Path, monkeypatch):
        self.asked: list[tuple] = []

        def create_repo(api, repo_id, **options):
            self.asked.append(("repo", repo_id, options["private"]))
            return RepoUrl(f"https://huggingface.co/{repo_id}")

        def create_branch(api, repo_id, *, branch, **_):
            self.asked.append(("branch", repo_id, branch))

        def upload_folder(api, *, repo_id, folder_path, commit_message, revision, **_):
            self.asked.append(("commit", repo_id, revision, commit_message))
            shutil.copytree(folder_path, folder)

        def no_card(*_, **__):
            raise EntryNotFoundError("none yet")

        for call in (create_repo, create_branch, upload_folder):
            monkeypatch.setattr(HfApi, call.__name__, call)
        monkeypatch.setattr(ModelCard, "load", no_card)


def test_all_of_a_model_is_sent_to_the_hub_or_nothing(tmp_path, monkeypatch):
    hub, model = Hub(tmp_path / "hub", monkeypatch), grown()
    with pytest.raises(
        UserError, match="the tokenizer of 'el_GR' is not at hand.*: hf upload me/mine FOLDER"
    ):
        model.push_to_hub("me/mine")
    model.save_pretrained(tmp_path / "saved")
    for code in model.config.vocabularies:
        (tmp_path / "saved" / "languages" / code / "tokenizer.json").write_text(code)
    model.add_language("ca_ES", "random")  # of the base vocabulary: a manifest is all that it has
    (tmp_path / "saved" / "languages" / "ca_ES").mkdir()
    (tmp_path / "saved" / "languages" / "ca_ES" / "manifest.json").write_text("{}")
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(
        UserError,
        match=r"save_pretrained\(push_to_hub=True\) would send nothing of "
        r"el_GR, sw_KE, ta_IN, ca_ES",
    ):
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/mine")
    assert hub.asked == []
    loaded = XmodForMaskedLM.from_pretrained(tmp_path / "saved")
    loaded.push_to_hub(
        "me/mine", private=True, revision="greek", commit_message="Greek", tags=["xmod"]
    )
    assert hub.asked == [
        ("repo", "me/mine", True),
        ("branch", "me/mine", "greek"),
        ("commit", "me/mine", "greek", "Greek"),
    ]
    sent, saved = (
        {str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (tmp_path / "hub", tmp_path / "saved")
    )
    assert b"xmod" in sent.pop("README.md") and sent == saved and len(saved) == 2 + 2 * 3 + 1
    again = XmodForMaskedLM.from_pretrained(tmp_path / "hub")
    assert tensor_digests(again) == tensor_digests(model)


def test_resizing_the_base_vocabulary_leaves_the_added_ones_alone():
    model = grown()
    before = tensor_digests(model)
    model.resize_token_embeddings(60)
    after = tensor_digests(model)
    assert {n for n, d in before.items() if after[n] != d} == {
        "roberta.embeddings.word_embeddings.weight",
        "lm_head.bias",
    }
    assert (
        model(rows(), lang_ids=ROWS).logits.shape[-1] == 70
        and model.config.vocabularies["sw_KE"] == 30
    )


def test_a_number_once_given_stays_and_orders_of_adding_differ_in_numbers_alone():
    orders = [("sw_KE", "el_GR", "ta_IN"), ("ta_IN", "sw_KE", "el_GR")]
    models = [tiny_model(), tiny_model()]
    for model, order in zip(models, orders, strict=True):
        for code in order:
            before = {known: model.lang_id(known) for known in model.languages}
            assert model.add_language(code, "mean", vocab_size=PIECES.get(code, 40)) == len(before)
            assert {known: model.lang_id(known) for known in before} == before
    a, b = models
    assert a.languages == ["en_XX", "de_DE", "fr_XX", *orders[0]] and b.languages[3:] == [
        *orders[1]
    ]
    in_order = [
        {
            **model.config.to_dict(),
            "languages": sorted(model.languages),
            "added": sorted(model.config.added),
        }
        for model in models
    ]
    assert in_order[0] == in_order[1] and tensor_digests(a) == tensor_digests(b)
    assert torch.equal(a(rows(), lang_ids=ROWS).logits, b(rows(), lang_ids=ROWS).logits)
    a.remove_language("el_GR")
    assert a.lang_id("sw_KE") == 3 and tensor_digests(a).items() < tensor_digests(b).items()


def test_every_language_reads_with_its_own_tokenizer(tmp_path, tokenizer_folder):
    base = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = tiny_model(vocab_size=len(base))
    with pytest.raises(UserError, match="was not loaded from a folder"):
        model.tokenizer_for("en_XX")
    save_tokenizer(
        train_sentencepiece(passages("sw", 400), vocab_size=300), tmp_path / "languages" / "sw_KE"
    )
    own = AutoTokenizer.from_pretrained(tmp_path / "languages" / "sw_KE")
    model.add_language("sw_KE", vocab_size=len(own))
    model.add_language("el_GR")
    model.save_pretrained(tmp_path)
    base.save_pretrained(tmp_path)
    model = XmodForMaskedLM.from_pretrained(tmp_path)
    for code in ("en_XX", "el_GR"):
        assert model.tokenizer_for(code).get_vocab() == base.get_vocab()
    for code in ("sw_KE", "sw", "swa"):  # in any spelling
        assert model.tokenizer_for(code).get_vocab() == own.get_vocab() != base.get_vocab()
    with pytest.raises(UnknownLanguageError):
        model.tokenizer_for("ta_IN")
    base.save_pretrained(tmp_path / "languages" / "sw_KE")
    with pytest.raises(UserError, match="the tokenizer of 'sw_KE'.* 400 tokens, the model 300"):
        model.tokenizer_for("sw_KE")
    for file in (tmp_path / "languages" / "sw_KE").glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="tokenizer of 'sw_KE'"):
        model.tokenizer_for("sw_KE")


def test_the_last_partial_batch_is_a_batch():
    """Peers' bug 11: routing by the sizes of an earlier batch fails on the smaller last one."""
    model, batch = grown(), tiny_batch(rows=len(ROWS), vocab_size=30)
    full = model(batch["input_ids"], lang_ids=ROWS).logits
    for count in (3, 1):
        assert_close(
            model(batch["input_ids"][:count], lang_ids=ROWS[:count]).logits,
            full[:count],
            atol=1e-6,
            rtol=1e-5,
        )


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch's own look at its inputs
def test_the_compiled_encoder_reads_several_vocabularies():
    model, ids = grown(), rows()
    expected = model(ids, lang_ids=ROWS).logits
    torch._dynamo.reset()
    model.roberta.compile_encoder(backend="eager")
    assert_close(model(ids, lang_ids=ROWS).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_decoder_goes_on_from_its_cache_in_several_vocabularies():
    model, ids = grown("ForCausalLM"), rows()
    whole = model(ids, lang_ids=ROWS).logits
    first = model(ids[:, :5], lang_ids=ROWS)
    rest = model(
        ids[:, 5:],
        lang_ids=ROWS,
        past_key_values=first.past_key_values,
        position_ids=torch.arange(5, 9)[None].expand(len(ROWS), -1) + 2,
    ).logits
    assert type(model) is XmodForCausalLM
    assert_close(torch.cat([first.logits, rest], 1), whole, atol=1e-5, rtol=1e-4)
