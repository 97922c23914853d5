"""transformers' Trainer, collators and pipelines on our classes, beside its own, same weights."""

import gc
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import pad
from torch.testing import assert_close
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

import xmod_lab.model
from tests.heads import HEADS, LANGUAGES, batch, pair
from tests.helpers import passages, tiny_batch, tiny_config, tiny_model
from xmod_lab.errors import UserError
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForCausalLM, XmodForMaskedLM, XmodLanguageModel
from xmod_lab.scoring.held_out import Targets

TRAINED = [head for head in HEADS if head != "Model"]
LM = ["ForMaskedLM", "ForCausalLM"]
QUIET = {
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
}


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Every run of the Trainer looks for rubbish among all objects that there are."""
    gc.freeze()
    yield
    gc.unfreeze()


def rows(head: str, count: int = 48, length: int = 9, *, languages: int = 3) -> datasets.Dataset:
    """``count`` rows, languages in turn. If each token has a label, the last rows have the most."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda high, *shape: torch.randint(0, high, shape, generator=generator)  # noqa: E731
    shape = (count, 3, length) if head == "ForMultipleChoice" else (count, length)
    columns = {"input_ids": 5 + draw(45, *shape)}
    if (
        head != "ForMultipleChoice"
    ):  # where transformers fails with languages: all in the default one
        columns["lang_ids"] = torch.arange(count) % languages
    if head == "ForQuestionAnswering":
        columns |= {"start_positions": draw(length, count), "end_positions": draw(length, count)}
    elif head in ("ForSequenceClassification", "ForMultipleChoice"):
        columns["labels"] = draw(2, count)
    else:
        labels = columns["input_ids"] if head in LM else draw(2, count, length)
        chosen = (
            torch.rand(count, length, generator=generator)
            < torch.linspace(0.1, 0.9, count)[:, None]
        )
        chosen[:, 1] = True
        columns["labels"] = torch.where(chosen, labels, -100)
    return datasets.Dataset.from_dict({name: tensor.tolist() for name, tensor in columns.items()})


def trainer(model, folder, data=None, *, more: dict | None = None, **settings) -> Trainer:
    """For ten steps of twelve rows, unless ``settings`` differ; ``more``: for the Trainer."""
    settings = {
        "max_steps": 10,
        "per_device_train_batch_size": 12,
        "learning_rate": 1e-2,
        **QUIET,
        **settings,
    }
    return Trainer(
        model, TrainingArguments(str(folder), **settings), train_dataset=data, **(more or {})
    )


def curve(trainer: Trainer, **options) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    trainer.train(**options)
    return [(log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]


def close(found, expected, tolerance: float = 1e-5) -> None:
    assert_close(torch.tensor(found), torch.tensor(expected), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("head", TRAINED)
def test_ten_steps_are_those_of_transformers_own_class(head, tmp_path):
    models = pair(head, tmp_path, default_language="de_DE")
    ours, theirs = (curve(trainer(model, tmp_path, rows(head))) for model in models)
    assert len({loss for loss, _ in ours}) == 10
    close(ours, theirs)


@pytest.mark.parametrize("head", TRAINED)
def test_accumulated_batches_are_one_large_batch_whatever_their_labels(head, tmp_path):
    """As transformers' causal models; its other classes add the losses up, k times too large."""
    ours, theirs = pair(head, tmp_path, default_language="de_DE")
    small = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "max_steps": 2}
    start = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    large = curve(trainer(ours, tmp_path, rows(head), max_steps=2))
    ours.load_state_dict(start)
    accumulated = curve(trainer(ours, tmp_path, rows(head), **small))
    close(accumulated, large)
    there = curve(trainer(theirs, tmp_path, rows(head), **{**small, "max_steps": 1}))[0][0]
    assert there == pytest.approx(
        large[0][0] * (1 if head in ("ForCausalLM", "ForQuestionAnswering") else 4), rel=0.05
    )


@pytest.mark.parametrize(
    "problem", ["single_label_classification", "multi_label_classification", "regression"]
)
def test_parts_of_a_step_add_up_to_its_mean(problem):
    torch.manual_seed(0)
    model = xmod_lab.model.XmodForSequenceClassification(tiny_config(problem_type=problem)).eval()
    ids, numbers = tiny_batch(rows=5)["input_ids"], torch.randn(5, 2)
    labels = numbers if problem == "regression" else (numbers > 0).float()
    labels = labels[:, 0].long() if problem.startswith("single") else labels
    whole = model(ids, labels=labels, lang_ids="de_DE").loss
    parts = [
        model(
            ids[part], labels=labels[part], lang_ids="de_DE", num_items_in_batch=labels.numel()
        ).loss
        for part in (slice(0, 2), slice(2, 5))
    ]
    assert_close(sum(parts), whole)


@pytest.mark.parametrize("head", LM)
def test_a_batch_without_labels_adds_nothing_to_a_step_and_is_an_error_alone(head, tmp_path):
    ours, theirs = pair(head, tmp_path)
    inputs, labels = batch(head, LANGUAGES["mixed"], "full")
    nothing = torch.full_like(labels["labels"], -100)
    for items in (7, torch.tensor(7)):
        loss = ours(**inputs, labels=nothing, num_items_in_batch=items).loss
        loss.backward()
        assert loss == 0 and not any(p.grad.any() for p in ours.parameters() if p.grad is not None)
        with torch.no_grad():
            assert ours(**inputs, labels=nothing, num_items_in_batch=items).loss == 0
    for alone in ({}, {"num_items_in_batch": torch.tensor(0)}):
        with pytest.raises(UserError, match="all are -100"):
            ours(**inputs, labels=nothing, **alone)
        with torch.no_grad():
            assert ours(**inputs, labels=nothing, **alone).loss.isnan()
            assert theirs(**inputs, labels=nothing, **alone).loss.isnan()


@pytest.mark.parametrize("head", LM)
def test_logits_are_made_beside_the_loss_where_there_are_no_gradients(head, tmp_path):
    ours, theirs = pair(head, tmp_path)
    inputs, labels = batch(head, LANGUAGES["mixed"], "padded")
    real, expected = inputs["attention_mask"].bool(), theirs(**inputs, **labels)
    for training in (False, True):  # a frozen body is trained in evaluation mode
        alone = ours.train(training)(**inputs, **labels)
        assert alone.logits is None and alone.loss.requires_grad
        assert_close(alone.loss, expected.loss, atol=1e-5, rtol=0)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            both, alone = ours(**inputs, **labels), ours(**inputs, **labels, full_logits=False)
            assert_close(both.logits[real], expected.logits[real], atol=1e-5, rtol=0)
            for loss in (both.loss, alone.loss):
                assert_close(loss, expected.loss, atol=1e-5, rtol=0)
            assert alone.logits is None
            ours.config.keys_to_ignore_at_inference = ["past_key_values", "logits"]
            assert ours(**inputs, **labels).logits is None and ours(**inputs).logits is not None
            assert ours(**inputs, **labels, full_logits=True).logits is not None
            del ours.config.keys_to_ignore_at_inference
    assert ours(**inputs).logits.requires_grad


@pytest.mark.parametrize("head", LM)
def test_our_own_scores_need_no_logits_of_every_position(head, monkeypatch):
    model = getattr(xmod_lab.model, f"Xmod{head}")(
        tiny_config(is_decoder=head == "ForCausalLM")
    ).eval()
    made, given = [], tiny_batch()
    given["labels"][:, 0] = -100  # nothing comes before it
    monkeypatch.setattr(XmodLanguageModel, "logits", lambda *_: made.append(1))
    targets = Targets(
        "en_XX", np.zeros((5, 1)), [(row, row) for row in given["labels"].numpy()], None
    )
    targets.batches = lambda model: [
        (slice(0, 5), {**given, "lang_ids": torch.zeros(5, dtype=torch.long)})
    ]
    assert (
        targets.loss(model) == pytest.approx(model(**given, lang_ids="en_XX").loss.item())
        and not made
    )


def right(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """A metric of everything gathered: the share right, and a number that any logits change."""
    logits = prediction.predictions
    labels = prediction.label_ids
    if isinstance(logits, tuple):  # of questions
        return {
            "sum": float(sum(np.abs(part).sum() for part in logits)),
            "labels": float(np.sum(labels)),
        }
    shown = np.where((labels != -100)[..., None], logits, 0.0) if labels.ndim > 1 else logits
    return {"right": float((logits.argmax(-1) == labels).mean()), "sum": float(np.abs(shown).sum())}


@pytest.mark.parametrize("head", TRAINED)
def test_metrics_of_an_evaluation_are_those_of_transformers_own_class(head, tmp_path):
    """Of batches of several languages, the last of them smaller."""
    models = pair(head, tmp_path, default_language="de_DE")
    data, found = rows(head, 20), []
    for model in models:
        tool = trainer(
            model, tmp_path, more={"compute_metrics": right}, per_device_eval_batch_size=6
        )
        found.append(tool.evaluate(data))
        alone = trainer(
            model, tmp_path, prediction_loss_only=True, per_device_eval_batch_size=6
        ).evaluate(data)
        assert alone["eval_loss"] == pytest.approx(found[-1]["eval_loss"], abs=1e-6)
    for name in (
        ("loss", "sum", "labels") if head == "ForQuestionAnswering" else ("loss", "sum", "right")
    ):
        assert found[0][f"eval_{name}"] == pytest.approx(found[1][f"eval_{name}"], rel=1e-5)


def chosen(logits, labels):
    return logits.argmax(-1)


def test_an_evaluation_over_several_vocabularies_keeps_what_was_chosen(tmp_path):
    """Logits of different vocabularies cannot be joined; the tokens that they choose can."""
    model = tiny_model()
    model.add_language("el_GR", vocab_size=70)
    data, seen = (
        rows("ForMaskedLM", 12, languages=4).select([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]),
        [],
    )
    tool = trainer(
        model,
        tmp_path,
        per_device_eval_batch_size=3,
        more={
            "preprocess_logits_for_metrics": chosen,
            "compute_metrics": lambda p: seen.append(p.predictions) or {},
        },
    )
    tool.evaluate(data)  # the first batches have 50 tokens, the last one 70
    by_hand = data.with_format("torch")[:]
    with torch.no_grad():
        expected = model(by_hand["input_ids"], lang_ids=by_hand["lang_ids"]).logits.argmax(-1)
    assert torch.equal(torch.from_numpy(seen[0]), expected)


@pytest.mark.parametrize("head", LM)
def test_an_evaluation_of_the_loss_alone_makes_no_logits(head, tmp_path, monkeypatch):
    ours, _ = pair(head, tmp_path)
    expected = trainer(ours, tmp_path).evaluate(rows(head, 20))["eval_loss"]
    ours.config.keys_to_ignore_at_inference = ["past_key_values", "logits"]
    monkeypatch.setattr(XmodLanguageModel, "logits", None)
    assert trainer(ours, tmp_path).evaluate(rows(head, 20))["eval_loss"] == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForCausalLM", "ForSequenceClassification"])
def test_smoothed_labels_are_those_of_transformers_own_class(head, tmp_path):
    ours, theirs = (
        curve(trainer(model, tmp_path, rows(head), max_steps=3, label_smoothing_factor=0.2))
        for model in pair(head, tmp_path)
    )
    close(ours, theirs)


def test_labels_that_are_shifted_already_are_honoured(tmp_path):
    """They replace labels, as in transformers; there they give no loss alone, here they do."""
    ours, theirs = pair("ForCausalLM", tmp_path)
    inputs, labels = batch("ForCausalLM", LANGUAGES["mixed"], "padded")
    labels = labels["labels"]
    shifted = pad(labels, (0, 1), value=-100)[:, 1:]
    other = torch.where(shifted == -100, -100, (shifted + 7) % 50)
    plain, items = ours(**inputs, labels=labels).loss, torch.tensor(40)
    for more in (
        {"full_logits": False},
        {"full_logits": True},
        {"full_logits": True, "num_items_in_batch": items},
    ):
        given = {k: v for k, v in more.items() if k == "num_items_in_batch"}
        same, changed = (
            ours(**inputs, labels=labels, shift_labels=s, **more).loss for s in (shifted, other)
        )
        assert_close(same, ours(**inputs, labels=labels, **more).loss)
        expected = theirs(**inputs, labels=labels, shift_labels=other, **given).loss
        assert_close(changed, expected, atol=1e-5, rtol=0)
        assert abs(changed - same) > 1e-2
        assert_close(ours(**inputs, shift_labels=other, **more).loss, expected, atol=1e-5, rtol=0)
    assert_close(ours(**inputs, labels=labels, shift_labels=None).loss, plain)
    assert theirs(**inputs, shift_labels=other).loss is None
    assert ours(**inputs, shift_labels=other).past_key_values is None
    with pytest.raises(TypeError, match="unheard_of"):
        ours(**inputs, labels=labels, unheard_of=1)
    with pytest.raises(UserError, match=r"\(4, 8\); allowed is \(4, 9\)"):
        ours(**inputs, shift_labels=shifted[:, 1:])
    assert trainer(ours, tmp_path).label_names == ["labels"]


def test_shifted_labels_train_as_they_do_in_transformers_own_class(tmp_path):
    """They are a column of their own; a step's mean is counted."""
    data = rows("ForCausalLM").map(lambda row: {"shift_labels": [*row["labels"][2:], -100, 7]})
    ours, theirs = (
        curve(
            trainer(
                model,
                tmp_path,
                data,
                max_steps=3,
                per_device_train_batch_size=3,
                gradient_accumulation_steps=4,
                remove_unused_columns=False,
            )
        )
        for model in pair("ForCausalLM", tmp_path)
    )
    close(ours, theirs)


def test_gradient_checkpointing_changes_no_step(tmp_path):
    plain, theirs = pair("ForMaskedLM", tmp_path)
    again, _ = pair("ForMaskedLM", tmp_path)
    data = rows("ForMaskedLM")
    without = curve(trainer(plain, tmp_path, data, max_steps=3))
    close(
        curve(trainer(again, tmp_path, data, max_steps=3, activation_checkpointing=True)), without
    )
    assert again.is_activation_checkpointing


def grown(head: str = "ForMaskedLM"):
    """With dropout, and a language that has its own vocabulary."""
    torch.manual_seed(0)
    changes = {
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.2,
        "is_decoder": head == "ForCausalLM",
    }
    model = getattr(xmod_lab.model, f"Xmod{head}")(tiny_config(**changes))
    model.add_language("el_GR", vocab_size=70)
    return model


@pytest.mark.parametrize("head", LM)
def test_a_run_that_resumes_ends_in_the_same_bits(head, tmp_path):
    """Added vocabularies too: our folders have files for them that the Trainer does not read."""
    data = rows(head, languages=4)
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(grown(head), tmp_path, data, **settings)
    losses = curve(whole)
    rest = trainer(grown(head), tmp_path / "again", data, **settings)
    assert curve(rest, resume_from_checkpoint=str(tmp_path / "checkpoint-3")) == losses
    assert tensor_digests(rest.model) == tensor_digests(whole.model) != tensor_digests(grown(head))


def test_the_best_model_of_a_run_is_loaded_with_its_added_vocabulary(tmp_path):
    data = rows("ForMaskedLM", languages=4)
    settings = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "max_steps": 3,
    }
    tool = trainer(
        grown(),
        tmp_path,
        data,
        load_best_model_at_end=True,
        greater_is_better=True,
        metric_for_best_model="loss",
        learning_rate=1e-3,
        **settings,
        more={"eval_dataset": data},
    )
    curve(tool)
    best = Path(tool.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"  # the greatest loss is the first
    assert tensor_digests(tool.model) == tensor_digests(XmodForMaskedLM.from_pretrained(best))
    assert tensor_digests(tool.model) != tensor_digests(
        XmodForMaskedLM.from_pretrained(tmp_path / "checkpoint-3")
    )


def test_what_the_trainer_saves_is_a_model_folder_like_any_other(tmp_path):
    """Tied weights once; an added vocabulary beside the rest, and of a checkpoint too."""
    tool = trainer(
        grown(),
        tmp_path,
        rows("ForMaskedLM", languages=4),
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    curve(tool)
    tool.save_model(tmp_path / "end")
    tool.model.save_pretrained(tmp_path / "by_hand")
    assert (tmp_path / "end/model.safetensors").read_bytes() == (
        tmp_path / "by_hand/model.safetensors"
    ).read_bytes()
    for folder in ("end", "checkpoint-1"):
        again, info = XmodForMaskedLM.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert (
            tensor_digests(again) == tensor_digests(tool.model)
            and (tmp_path / folder / "languages/el_GR").is_dir()
        )
    theirs = transformers.XmodForMaskedLM.from_pretrained(tmp_path / "checkpoint-1").eval()
    inputs = {"input_ids": tiny_batch()["input_ids"], "lang_ids": torch.tensor([0, 1, 2, 1, 0])}
    assert_close(theirs(**inputs).logits, tool.model.eval()(**inputs).logits, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.mark.parametrize("head", LM)
def test_text_by_the_collator_of_transformers_trains_as_its_own_class_does(
    head, tokenizer, tmp_path
):
    """Rows of all lengths, grouped; a language column of numbers is kept, one of codes is not."""
    models = pair(head, tmp_path, vocab_size=len(tokenizer))
    text = [
        (code, line[:60])
        for code, name in (("en_XX", "en"), ("de_DE", "de"))
        for line in passages(name, 24)
    ]
    encoded = [tokenizer(line, truncation=True, max_length=30) for _, line in text]
    data = datasets.Dataset.from_list(
        [
            {**row, "language": code, "lang_ids": models[0].lang_id(code)}
            for row, (code, _) in zip(encoded, text, strict=True)
        ]
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=head == "ForMaskedLM")
    found = []
    for model in models:
        tool = trainer(
            model,
            tmp_path,
            data,
            more={"data_collator": collator},
            max_steps=4,
            train_sampling_strategy="group_by_length",
            optim="sgd",
            max_grad_norm=1e9,
        )
        found.append(curve(tool))
        assert set(next(iter(tool.get_train_dataloader()))) == {
            "input_ids",
            "attention_mask",
            "lang_ids",
            "labels",
        }
    close(*found)


def test_choices_by_the_collator_of_transformers_have_a_language_each(tokenizer, tmp_path):
    model = xmod_lab.model.XmodForMultipleChoice(tiny_config(vocab_size=len(tokenizer)))
    one = [
        tokenizer(line, truncation=True, max_length=20)["input_ids"] for line in passages("en", 24)
    ]
    data = [
        {"input_ids": one[i : i + 2], "lang_ids": [i % 3] * 2, "label": i % 2}
        for i in range(0, 24, 2)
    ]
    collator = transformers.DataCollatorForMultipleChoice(tokenizer)
    tool = trainer(
        model,
        tmp_path,
        datasets.Dataset.from_list(data),
        more={"data_collator": collator},
        max_steps=2,
    )
    assert next(iter(tool.get_train_dataloader()))["lang_ids"].shape == (12, 2, 1)
    assert len(curve(tool)) == 2
    ids, lang_ids = torch.randint(5, 50, (2, 2, 7)), torch.tensor([[0, 1], [2, 0]])
    assert torch.equal(
        model(ids, lang_ids=lang_ids[..., None]).logits, model(ids, lang_ids=lang_ids).logits
    )


PIPELINES = {
    "fill-mask": "ForMaskedLM",
    "feature-extraction": "Model",
    "text-classification": "ForSequenceClassification",
    "zero-shot-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "text-generation": "ForCausalLM",
}


def numbers(found):
    """The numbers in what a pipeline gives, in order; and the text."""
    if isinstance(found, dict):
        return [leaf for key in sorted(found) for leaf in numbers(found[key])]
    if isinstance(found, list | tuple):
        return [leaf for part in found for leaf in numbers(part)]
    return (
        [pytest.approx(float(found), abs=1e-4)]
        if isinstance(found, float | np.floating)
        else [found]
    )


@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines_give_what_they_give_with_transformers_own_class(task, tokenizer, tmp_path):
    models = pair(
        PIPELINES[task],
        tmp_path,
        vocab_size=len(tokenizer),
        default_language="de_DE",
        label2id={"contradiction": 0, "entailment": 1},
    )
    text = (
        ["open the <mask> window", "a short <mask>"]
        if task == "fill-mask"
        else ["open the window", "and close it"]
    )
    more = {
        "zero-shot-classification": {"candidate_labels": ["file", "window"]},
        "text-generation": {"max_new_tokens": 1, "do_sample": False},
    }.get(task, {})
    ours, theirs = (
        numbers(
            transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")(
                text, batch_size=2, **more
            )
        )
        for model in models
    )
    assert len(ours) > 1
    if task == "text-generation":  # positions count from zero there, see test_differences
        ids = tokenizer(text[0], return_tensors="pt")["input_ids"]
        piece = models[0](ids, lang_ids="de_DE").logits[0, -1].argmax()
        assert ours[0] == tokenizer.decode(
            torch.cat([ids[0], piece[None]]), skip_special_tokens=True
        )
        models[0].set_default_language("en_XX")
        assert isinstance(models[0], XmodForCausalLM)
    else:
        assert ours == theirs
