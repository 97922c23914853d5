"""Heads for labelled tasks: sequences, choices, tokens, spans.

Arguments and losses are those of the reference documentation.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from xmod_lab.errors import UserError
from xmod_lab.labels import IGNORE
from xmod_lab.model.backbone import XmodModel, shape_of
from xmod_lab.model.base import XmodPreTrainedModel
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.fast.dropout import Dropout
from xmod_lab.model.loss import labelled_cross_entropy, share_of_step
from xmod_lab.model.routing import Languages, to_ids

# B batch rows, S sequence, C choices, K labels, D model


def _head_dropout(config: XmodConfig) -> Dropout:
    chosen = config.classifier_dropout
    return Dropout(config.hidden_dropout_prob if chosen is None else chosen)


class XmodClassificationHead(nn.Module):
    """First token -> dropout, dense, tanh, dropout, projection."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = _head_dropout(config)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, K)."""
        x = self.dropout(x[:, 0])
        return self.out_proj(self.dropout(torch.tanh(self.dense(x))))


class XmodForSequenceClassification(XmodPreTrainedModel):
    """Classification of sequences: one label, several labels, or a number.

    Raises:
        UserError: the configuration is causal.
    """

    causal = False  # the first token is read, which has to see the others
    accepts_loss_kwargs = True  # of transformers' Trainer: num_items_in_batch

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.roberta = XmodModel(self.config, add_pooling_layer=False)
        self.classifier = XmodClassificationHead(self.config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Languages = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        slot: str | None = None,
    ) -> SequenceClassifierOutput:
        """Classify sequences. The other arguments are those of :meth:`XmodModel.forward`.

        Args:
            labels: their form depends on ``config.problem_type``. single_label_classification: (B,)
                int64, with cross-entropy. multi_label_classification: (B, K) float, with binary
                cross-entropy. regression: (B,) or (B, K) float, with mean squared error. If the
                type is not set, a model with one label means regression. Else integers mean a
                single label, and floats mean several labels.
            num_items_in_batch: the number of labels in all batches of an optimiser step. The sum of
                the losses in this batch is divided by it. transformers' Trainer gives it.
        Returns:
            ``logits`` (B, K), and ``loss`` with labels.
        """
        out = self.roberta.encode(
            input_ids,
            lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            slot=slot,
        )
        logits = self.classifier(out.states)
        loss = None if labels is None else self._loss(logits, labels, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits, **out.extras)

    def _loss(self, logits: Tensor, labels: Tensor, items: int | Tensor | None) -> Tensor:
        kind = self.config.problem_type
        if kind is None:
            kind = (
                "multi_label_classification"
                if labels.is_floating_point()
                else "single_label_classification"
            )
            kind = "regression" if self.config.num_labels == 1 else kind
            # as in transformers: the first batch decides, and the type is saved
            self.config.problem_type = kind
        if kind == "single_label_classification":
            return labelled_cross_entropy(logits, labels.view(-1), items)
        losses = {
            "regression": mse_loss,
            "multi_label_classification": binary_cross_entropy_with_logits,
        }
        if kind not in losses:
            raise UserError(
                f"problem_type is '{kind}'; allowed are single_label_classification, "
                f"{', '.join(losses)}"
            )
        if labels.shape != logits.shape and (
            logits.shape[1] > 1 or labels.shape != logits.shape[:1]
        ):
            one = f" and {tuple(logits.shape[:1])}" if logits.shape[1] == 1 else ""
            raise UserError(
                f"labels have shape {tuple(labels.shape)}; allowed is {tuple(logits.shape)}{one} "
                f"({kind})"
            )
        return share_of_step(losses[kind](logits, labels.view_as(logits)), labels, items)


class XmodForMultipleChoice(XmodPreTrainedModel):
    """The choice of one sequence among several.

    Raises:
        UserError: the configuration is causal.
    """

    causal = False  # the first token is read, which has to see the others
    accepts_loss_kwargs = True  # of transformers' Trainer: num_items_in_batch

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.roberta = XmodModel(self.config)
        self.dropout = Dropout(self.config.hidden_dropout_prob)
        self.classifier = nn.Linear(self.config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Languages = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        slot: str | None = None,
    ) -> MultipleChoiceModelOutput:
        """Tensors (B, C, S) -> ``logits`` (B, C), and ``loss`` with labels.

        Args:
            lang_ids: (B,), one language for all choices of a question; (B, C) or (B, C, 1), one for
                each choice; (B, C, S), one for each token; or codes of the B questions.
            labels: (B,) int64, the right choice.
            num_items_in_batch: as in :meth:`XmodForSequenceClassification.forward`.
        """
        rows, choices, _ = shape_of(input_ids, inputs_embeds, ("rows", "choices", "sequence"))

        def flat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.flatten(0, 1)

        if lang_ids is not None:
            lang_ids = to_ids(lang_ids, self.config, rows)
            if lang_ids.shape[:1] != (rows,) or (
                lang_ids.dim() > 1 and lang_ids.shape[1] != choices
            ):
                raise UserError(
                    f"lang_ids has shape {tuple(lang_ids.shape)}; allowed are ({rows},), ({rows}, "
                    f"{choices}) and ({rows}, {choices}, sequence)"
                )
            per_choice = (
                lang_ids[:, None].expand(rows, choices) if lang_ids.dim() == 1 else lang_ids
            )
            lang_ids = per_choice.flatten(0, 1)
            # one for each choice, as transformers' collator writes it
            if lang_ids.dim() == 2 and lang_ids.shape[1] == 1:
                lang_ids = lang_ids[:, 0]
        out = self.roberta.encode(
            flat(input_ids),
            lang_ids,
            attention_mask=flat(attention_mask),
            token_type_ids=flat(token_type_ids),
            position_ids=flat(position_ids),
            inputs_embeds=flat(inputs_embeds),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            slot=slot,
        )
        logits = self.classifier(self.dropout(self.roberta.pooler(out.states))).view(rows, choices)
        loss = (
            None if labels is None else labelled_cross_entropy(logits, labels, num_items_in_batch)
        )
        return MultipleChoiceModelOutput(loss=loss, logits=logits, **out.extras)


class XmodForTokenClassification(XmodPreTrainedModel):
    """A label for every token."""

    accepts_loss_kwargs = True  # of transformers' Trainer: num_items_in_batch

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.roberta = XmodModel(self.config, add_pooling_layer=False)
        self.dropout = _head_dropout(self.config)
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Languages = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        slot: str | None = None,
    ) -> TokenClassifierOutput:
        """Label tokens. The other arguments are those of :meth:`XmodModel.forward`.

        Args:
            labels: (B, S) int64, -100 at positions without a label.
            num_items_in_batch: as in :meth:`XmodForSequenceClassification.forward`.
        Returns:
            ``logits`` (B, S, K), and ``loss`` with labels.
        """
        out = self.roberta.encode(
            input_ids,
            lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            slot=slot,
            read=None if labels is None else labels != IGNORE,
        )
        logits = self.classifier(self.dropout(out.states))
        loss = None
        if labels is not None:
            loss = labelled_cross_entropy(
                logits.flatten(0, 1), labels.flatten(), num_items_in_batch
            )
        return TokenClassifierOutput(loss=loss, logits=logits, **out.extras)


class XmodForQuestionAnswering(XmodPreTrainedModel):
    """Start and end of an answer in its context."""

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.roberta = XmodModel(self.config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(self.config.hidden_size, self.config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Languages = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        slot: str | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Find answers. The other arguments are those of :meth:`XmodModel.forward`.

        Args:
            start_positions, end_positions: (B,) int64. As in transformers, positions after the
                sequence are ignored, and negative ones count as 0.
        Returns:
            ``start_logits`` and ``end_logits`` (B, S), and ``loss`` with both positions.
        """
        out = self.roberta.encode(
            input_ids,
            lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            slot=slot,
            skip_padding=False,  # as in transformers, the softmax is over padding too
        )
        start, end = self.qa_outputs(out.states).unbind(-1)  # (B, S) each
        loss = None
        if start_positions is not None and end_positions is not None:
            outside = start.shape[1]
            targets = [p.view(-1).clamp(0, outside) for p in (start_positions, end_positions)]
            loss = (
                sum(
                    cross_entropy(x, t, ignore_index=outside)
                    for x, t in zip((start, end), targets, strict=True)
                )
                / 2
            )
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, **out.extras
        )
