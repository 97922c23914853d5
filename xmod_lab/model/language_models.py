"""Language models on top of the encoder: masked and causal.

The loss needs logits at the labelled positions only.
"""

from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, pad
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin, GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from xmod_lab.codes import clashing
from xmod_lab.errors import UserError, reason
from xmod_lab.foreign import at_hand
from xmod_lab.labels import IGNORE
from xmod_lab.model.backbone import EncoderOutput, XmodModel
from xmod_lab.model.base import XmodPreTrainedModel
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.fast.loss import chunked_cross_entropy
from xmod_lab.model.fast.precision import in_float32
from xmod_lab.model.fast.tied_lookup import Matrices, as_made
from xmod_lab.model.fast.unpadding import TokenSelection
from xmod_lab.model.loss import labelled_cross_entropy, share_of_step
from xmod_lab.model.opening import read_config
from xmod_lab.model.packs import base_fault, expected_tensors, read_pack
from xmod_lab.model.routing import Languages, to_ids

# B batch rows, S sequence, D model, V vocabulary, M labelled positions


class XmodLMHead(nn.Module):
    """Dense, gelu (``config.head_act``), LayerNorm, then the output matrix of a vocabulary.

    All languages share the part before the output matrix.

    The output matrix is tied to the embedding table of the vocabulary.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.head_act]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) over the base vocabulary."""
        return self.decoder(self.transform(x))

    def transform(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D): the part of the head before the output matrix."""
        return self.layer_norm(self.act(self.dense(x)))


class XmodLanguageModel(XmodPreTrainedModel):
    """Encoder and head of a language model; one output matrix for each vocabulary."""

    accepts_loss_kwargs = True  # transformers' Trainer then gives num_items_in_batch
    _tied_weights_keys = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.roberta = XmodModel(self.config, add_pooling_layer=False)
        self.lm_head = XmodLMHead(self.config)
        self.post_init()

    def load_language(self, source: str | Path) -> str:
        """Add the language of a pack to this model, and return its code.

        It adds slot, vocabulary, tokenizer and manifest. Existing tensors do not change.

        Args:
            source: a pack's folder, or its id on the hub (``me/eu``).
        Raises:
            UserError: the pack is damaged or was made on another base, its code exists already, or
                a tensor has another shape or type.
        """
        folder = at_hand(source).absolute()
        manifest, tensors = read_pack(folder)
        code, vocab_size = manifest["code"], manifest["pieces"]
        if fault := base_fault(manifest, self):
            raise UserError(
                f"pack {source} {fault}; use the base it was made on, or add the language to this "
                "one with +lang"
            )
        if there := clashing(code, [*self.languages, *self.config.languages]):
            raise UserError(
                f"pack {source}: language '{code}' exists in this model already as '{there[0]}'; "
                "remove it first"
            )
        shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        expected = expected_tensors(self, code, vocab_size, manifest.get("extends"))
        if shapes != expected:
            name = min(
                n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n)
            )
            raise UserError(
                f"pack {source}: its tensors do not fit this model: {name} is "
                f"{shapes.get(name, 'missing')}, and should be {expected.get(name, 'absent')}; use "
                "the base it was made on"
            )
        self.add_language(code, "random", vocab_size=vocab_size, beside=manifest.get("extends"))
        with torch.no_grad():
            for name, parameter in self.language_parameters(code).items():
                parameter.copy_(tensors[name])
        self.language_folders[code] = folder
        return code

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head.decoder = value
        # after a change of size, the head's bias follows: the same tensor if tied, else a copy that
        # nothing reads
        if value.bias is not None:
            tied = self.config.tie_word_embeddings
            self.lm_head.bias = value.bias if tied else nn.Parameter(value.bias.detach().clone())

    def output_matrix(self, table: nn.Embedding) -> tuple[Tensor, Tensor]:
        """The output matrix (V, D), tied to ``table``, and its bias (V,)."""
        for vocabulary in self.roberta.embeddings.vocabularies.values():
            if vocabulary.word_embeddings is table:
                return table.weight, vocabulary.output_bias(self.lm_head.decoder.bias)
        return self.lm_head.decoder.weight, self.lm_head.decoder.bias

    def logits(self, out: EncoderOutput, positions: slice | Tensor = slice(None)) -> Tensor:
        """(B, S, V) in the caller's order, at ``positions``.

        V is the size of the largest vocabulary in the batch. A row with a smaller vocabulary has
        -inf, probability zero, after its own tokens. So V may differ between batches, and label
        smoothing gives an infinite loss if vocabularies are mixed.
        """
        tables = self.roberta.embeddings.tables(out.route)
        if len(tables) == 1:
            return self._over(tables[0][0], self.lm_head.transform(out.states[:, positions]))
        states = self.lm_head.transform(out.x[:, positions]).split([size for _, size in tables])
        parts = [self._over(table, x) for x, (table, _) in zip(states, tables, strict=True)]
        widest = max(part.shape[-1] for part in parts)
        parts = [pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in parts]
        return out.route.leave(torch.cat(parts))

    def _calls(self, table: nn.Embedding) -> bool:
        """Whether logits over ``table`` need a call of the head's decoder.

        They do if a library has wrapped it, for example for LoRA.
        """
        return table is self.get_input_embeddings() and not as_made(self.lm_head.decoder, nn.Linear)

    def _over(self, table: nn.Embedding, x: Tensor) -> Tensor:
        """Transformed states (..., D) -> logits (..., V)."""
        return (
            self.lm_head.decoder(x) if self._calls(table) else linear(x, *self.output_matrix(table))
        )

    def _wants_logits(self, asked: bool | None, labels: Tensor | None) -> bool:
        """Whether logits are computed: ``full_logits``, see :meth:`XmodForMaskedLM.forward`."""
        if labels is None:
            return True
        if asked is not None:
            return asked
        ignored = getattr(self.config, "keys_to_ignore_at_inference", ())
        return not torch.is_grad_enabled() and "logits" not in ignored

    def labelled_loss(
        self,
        out: EncoderOutput,
        labels: Tensor,
        matrices: Matrices,
        items: int | Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy at the labelled positions, in nats.

        Args:
            labels: (B, S) in the caller's order.
            matrices: as the encoder filled them.
            items: see :func:`share_of_step`. With ``items``, a batch without labels adds zero.
        Raises:
            UserError: no batch of the step has a label.
        """
        places = out.predicted or TokenSelection.labelled(labels, out.route, out.x.shape[:2])
        labels = out.route.enter(labels)
        if not len(places.flat):
            if not items:
                raise UserError(
                    "give the true token at one position or more: labels predict nothing, all are "
                    "-100"
                )
            # the sum over no positions is zero, and so are its gradients
            return in_float32(places.take(out.x)).sum()
        # (M, D)
        states = self.lm_head.transform(places.take(out.x) if out.predicted is None else out.x)[0]
        targets = labels.flatten().index_select(0, places.flat)
        tables = self.roberta.embeddings.tables(out.route)
        sizes = [size for _, size in tables] if len(tables) > 1 else [len(labels)]  # in rows
        counts = [int(part.sum()) for part in torch.tensor(places.counts).split(sizes)]
        total = out.x.new_zeros((), dtype=torch.float32)
        for (table, _), part, target in zip(
            tables, states.split(counts), targets.split(counts), strict=True
        ):
            if not len(part):
                continue
            if self._calls(table):
                loss = cross_entropy(
                    in_float32(self.lm_head.decoder(part)), target, reduction="sum"
                )
                total = total + loss / len(states)
            else:
                matrix, bias = self.output_matrix(table)
                if matrix is table.weight:
                    matrix = matrices.get(table, matrix)
                total = total + chunked_cross_entropy(
                    part, matrix, bias, target, divisor=len(states)
                )
        return share_of_step(total, labels, items)

    def _loss_of(self, logits: Tensor, labels: Tensor, items: int | Tensor | None) -> Tensor:
        """As :meth:`labelled_loss`, from logits (B, S, V) and labels (B, S) in the caller's order.

        It is nan without labels.
        """
        return labelled_cross_entropy(in_float32(logits.flatten(0, -2)), labels.flatten(), items)


class XmodForMaskedLM(XmodLanguageModel):
    """X-MOD with a masked-language-modelling head.

    Raises:
        UserError: the configuration has ``is_decoder=True``. No token would see the next ones.
    """

    causal = False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Languages = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        full_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        slot: str | None = None,
        documents: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Predict masked tokens. The other arguments are those of :meth:`XmodModel.forward`.

        Args:
            labels: (B, S) int64, the true token where it is to be predicted, -100 elsewhere.
            full_logits: with labels, also compute logits at every position, (B, S, V); see
                :meth:`logits` for a batch of several vocabularies. False: the loss is computed at
                the labelled positions only, a chunk at a time, and ``logits`` are ``None``. With a
                vocabulary of 250k this is the largest saving of a training step. Default: False if
                gradients are enabled, in training and evaluation mode. True under
                ``torch.no_grad()``, where metrics are computed, unless
                ``config.keys_to_ignore_at_inference`` has "logits". Without labels, logits are
                always computed.
            num_items_in_batch: the number of labelled positions in all batches of an optimiser
                step. The sum of the losses in this batch is divided by it. transformers' Trainer
                gives it. Default: the number in this batch.
        Returns:
            ``loss``: mean negative log-likelihood at the labelled positions, in nats, in float32 or
            float64.
        Raises:
            UserError: the labels predict no token and ``num_items_in_batch`` is not given. (With
                logits the loss is nan instead, as in transformers.) Also the errors of
                :meth:`XmodModel.forward`.
        """
        whole = self._wants_logits(full_logits, labels)
        matrices: Matrices | None = None if whole else {}
        out = self.roberta.encode(
            input_ids,
            lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            slot=slot,
            documents=documents,
            labels=None if whole else labels,
            read=labels != IGNORE if whole and labels is not None else None,
            matrices=matrices,
        )
        logits, loss = None, None
        if matrices is not None:
            loss = self.labelled_loss(out, labels, matrices, num_items_in_batch)
        else:
            logits = self.logits(out)
            if labels is not None:
                loss = self._loss_of(logits, labels, num_items_in_batch)
        return MaskedLMOutput(loss=loss, logits=logits, **out.extras)


class Shifted(TypedDict, total=False):
    """Arguments of :meth:`XmodForCausalLM.forward` that are given by name only.

    They are not in its signature: transformers' Trainer expects every parameter with "label" in its
    name in each batch that it evaluates.
    """

    shift_labels: Tensor | None


class XmodForCausalLM(XmodLanguageModel, GenerationMixin):
    """X-MOD as a left-to-right language model: causal mask, key-value cache, ``generate``.

    Raises:
        UserError: the configuration has ``is_decoder=False``. Every token would see the next one.
    """

    causal = True

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Languages = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        full_logits: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        slot: str | None = None,
        documents: Tensor | None = None,
        **shifted: Unpack[Shifted],
    ) -> CausalLMOutputWithCrossAttentions:
        """Predict every next token. The other arguments are those of :meth:`XmodModel.forward`.

        Args:
            labels: (B, S) int64, the tokens themselves, which are shifted here; -100 where nothing
                is predicted.
            logits_to_keep: the number of last positions that get logits (0: all), or indices.
            full_logits: as in :meth:`XmodForMaskedLM.forward`.
            num_items_in_batch: as in :meth:`XmodForMaskedLM.forward`. It counts the predicted
                tokens, so not the first token of a row.
            shift_labels: (B, S) int64, the token that each position predicts, -100 for nothing.
                These labels are shifted already, for rows that are parts of a longer sequence. They
                replace ``labels`` if both are given.
        Returns:
            ``loss``: mean negative log-likelihood of the predicted tokens, in nats, in float32 or
            float64.
        Raises:
            UserError: as :meth:`XmodForMaskedLM.forward`.
            TypeError: an argument is unknown.
        """
        after = _next_tokens(labels, shifted)
        with_logits = self._wants_logits(full_logits, after)
        matrices: Matrices | None = None if with_logits else {}
        out = self.roberta.encode(
            input_ids,
            lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=False if after is not None else use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            slot=slot,
            documents=documents,
            read=None if after is None else after != IGNORE,
            matrices=matrices,
        )
        logits, loss = None, None
        last = (
            logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep, None)
        )
        if matrices is not None:
            loss = self.labelled_loss(out, after, matrices, num_items_in_batch)
        elif after is not None:
            whole = self.logits(out)
            loss = self._loss_of(whole, after, num_items_in_batch)
            logits = whole[:, last]
        else:
            logits = self.logits(out, last)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=out.cache,
            cross_attentions=out.crossed,
            **out.extras,
        )

    def generate(self, inputs: Tensor | None = None, *args, lang_ids: Languages = None, **kwargs):
        """As in transformers; ``lang_ids`` as in :meth:`forward`, one language per sequence."""
        if lang_ids is not None:
            given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
            rows = next((len(tensor) for tensor in given if tensor is not None), 1)
            kwargs["lang_ids"] = to_ids(lang_ids, self.config, rows)
            if kwargs["lang_ids"].shape != (rows,):
                raise UserError(
                    f"lang_ids has shape {tuple(kwargs['lang_ids'].shape)}; what is generated has "
                    f"one language a sequence: ({rows},)"
                )
        return super().generate(inputs, *args, **kwargs)

    def _prepare_cache_for_generation(
        self, config: GenerationConfig, inputs: dict, mode: GenerationMode, rows: int, longest: int
    ) -> bool:
        """Raise UserError before generating if the longest sequence exceeds the position table.

        ``longest`` counts neither padding nor the final token, which is never fed back.
        """
        mask, positions = inputs.get("attention_mask"), self.roberta.embeddings.longest
        padding = int((mask == 0).sum(1).min()) if mask is not None and mask.dim() == 2 else 0
        if longest - padding > positions:
            raise UserError(
                f"lower max_new_tokens (or max_length), or truncate the input: {longest - padding} "
                f"tokens would be read, and the model has {positions} positions"
            )
        return super()._prepare_cache_for_generation(config, inputs, mode, rows, longest)

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict
    ) -> Tensor:
        """Positions count from ``pad_token_id + 1``, as in :meth:`forward`.

        In transformers, ``generate`` counts from 0.
        """
        first = self.config.pad_token_id + 1
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs) + first


def _next_tokens(labels: Tensor | None, shifted: Shifted) -> Tensor | None:
    """(B, S), the token that each position predicts.

    Raises TypeError for unknown keys in ``shifted``.
    """
    unknown = shifted.keys() - Shifted.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"XmodForCausalLM.forward() got an unexpected keyword argument '{min(unknown)}'"
        )
    given = shifted.get("shift_labels")
    if given is not None or labels is None:
        return given
    return torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORE)], dim=1)


def language_model_class(config: XmodConfig) -> type[XmodLanguageModel]:
    """The causal class with ``is_decoder``, else the masked one."""
    return XmodForCausalLM if config.is_decoder else XmodForMaskedLM


def language_model(config: XmodConfig) -> XmodLanguageModel:
    """A language model with random weights."""
    return language_model_class(config)(config)


def load_language_model(source: str, what: str) -> XmodLanguageModel:
    """The language model in a folder or on the hub, in evaluation mode.

    It is masked or causal, as it was saved.

    Args:
        what: the name of the model in messages.
    Raises:
        UserError: it is of another type, cannot be read, or lacks tensors.
    """
    remedy = (
        "give a folder that save_pretrained of an X-MOD language model wrote, or a run that is "
        "finished"
    )
    try:
        model, info = language_model_class(read_config(source)).from_pretrained(
            source, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers and the network raise
        raise UserError(f"{what} cannot be loaded ({reason(error)}); {remedy}") from error
    if info["missing_keys"]:
        raise UserError(
            f"{what} lacks tensors of a language model: {sorted(info['missing_keys'])[:3]}; "
            f"{remedy}"
        )
    return model.eval()
