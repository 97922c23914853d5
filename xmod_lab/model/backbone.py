"""The model without a head: from the ids and languages of a batch to its states."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.utils.generic import can_return_tuple

from xmod_lab.codes import NO_SLOT
from xmod_lab.errors import UserError
from xmod_lab.model.base import XmodPreTrainedModel
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.embeddings import XmodEmbeddings
from xmod_lab.model.encoder import AttentionContext, Trace, XmodEncoder
from xmod_lab.model.fast.precision import product_type
from xmod_lab.model.fast.tied_lookup import Matrices
from xmod_lab.model.fast.unpadding import TokenSelection, predicted_tokens, real_tokens
from xmod_lab.model.fast.varlen import Kernel, Spans, kernel_for, mask_of
from xmod_lab.model.routing import (
    NOTHING,
    Languages,
    Route,
    check_labels,
    plan_route,
    to_ids,
)

# B batch rows, S sequence, T sequence of an encoder, D model


@dataclass(frozen=True)
class EncoderInput:
    """The arguments of a forward pass, checked, with rows in the order of ``route``.

    Args:
        shape: (B, S).
        route: the languages of the rows, which choose their vocabularies.
        through: the slots that the rows go through.
        embedded: arguments of :meth:`XmodEmbeddings.forward`.
        mask: (B, P) ones and zeros, or a ready mask (B, 1, S, P).
        documents: (B, S) the document of each token, or ``None``.
        source, source_mask: (B, T, D) states of an encoder, and (B, T).
        cache: the cache of a decoder.
        returns_cache: whether the caller gets the cache.
        states, attentions: whether the caller gets those of every layer.
    """

    shape: tuple[int, int]
    route: Route
    through: Route
    embedded: dict[str, Tensor | int | None]
    mask: Tensor | None
    documents: Tensor | None
    source: Tensor | None
    source_mask: Tensor | None
    cache: Cache | None
    returns_cache: bool
    states: bool
    attentions: bool


@dataclass(frozen=True)
class Shortcuts:
    """What is computed in another way, or not at all.

    Without shortcuts, the states at all positions that are read would be the same.

    Args:
        grouped: all slots in one operator, for the compiled encoder.
        real: the positions that are computed; the others are padding. ``None``: all.
        predicted: the positions at which the last layer is computed. ``None``: all.
    """

    grouped: bool = False
    real: TokenSelection | None = None
    predicted: TokenSelection | None = None


@dataclass(frozen=True)
class EncoderOutput:
    """A batch after the encoder.

    Args:
        x: (B, S, D), with rows in the order of ``route``; or (1, M, D) at positions ``predicted``.
        extras: ``hidden_states`` and ``attentions`` in the caller's order, or ``None`` if they are
            not returned.
        crossed: attention weights to an encoder's states in the caller's order, or ``None``.
    """

    x: Tensor
    route: Route
    extras: dict[str, tuple[Tensor, ...] | None]
    crossed: tuple[Tensor, ...] | None
    cache: Cache | None
    predicted: TokenSelection | None = None

    @property
    def states(self) -> Tensor:
        """(B, S, D) in the caller's order."""
        return self.route.leave(self.x)


class XmodModel(XmodPreTrainedModel):
    """The routed encoder, or decoder, without a head.

    Arguments and outputs are those of the reference documentation.
    """

    def __init__(self, config: XmodConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = XmodEmbeddings(self.config)
        self.encoder = XmodEncoder(self.config)
        self.pooler = XmodPooler(self.config) if add_pooling_layer else None
        self.compiled = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def compile_encoder(self, **options) -> None:
        """Compile the stack of layers as one graph without a break, for every mixture of languages.

        torch makes another graph for each of these: a mask, several languages, several languages in
        one row, a single row, gradients. Together they can be more than eight graphs. There torch
        stops compiling, so this method raises that limit for the whole process.

        Args:
            options: options of ``torch.compile``.
        """
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        self.encoder.compile(fullgraph=True, **options)
        self.compiled = True

    def leave_compiled(self) -> None:
        """Undo :meth:`compile_encoder`."""
        self.compiled, self.encoder._compiled_call_impl = False, None

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Meanwhile the layers run as they are written, for example to score."""
        compiled, graph = self.compiled, self.encoder._compiled_call_impl
        self.leave_compiled()
        try:
            yield
        finally:
            self.compiled, self.encoder._compiled_call_impl = compiled, graph

    def route_of(
        self, lang_ids: Languages, rows: int, length: int, *, keep_order: bool = False
    ) -> Route:
        """The batch's route. Without ``lang_ids`` all rows are in the default language.

        Raises:
            UserError: no language, or a wrong shape or dtype.
            UnknownLanguageError: the model does not have a code or number.
        """
        slots = self.encoder.slots
        if slots is not None and slots != list(self.config.languages):
            raise UserError(
                "use model.add_language() and remove_language() instead of editing the config, and "
                "do not share one config between models (copy.deepcopy it): config.languages is "
                f"{list(self.config.languages)}, but the model has slots for {slots}"
            )
        if lang_ids is None:
            default = self.config.default_language
            if default is None:
                raise UserError(
                    "no input language: pass lang_ids or call set_default_language() with one of "
                    f"{self.languages}"
                )
            return Route((self.config.slot(default),), (rows,))
        lang_ids = to_ids(lang_ids, self.config, rows)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return self._exported(lang_ids)
        return plan_route(
            lang_ids,
            rows=rows,
            length=length,
            languages=list(self.config.languages),
            keep_order=keep_order,
        )

    def _through(self, route: Route, slot: str | None, rows: int) -> Route:
        """The route through the slots: those of the rows' languages, or ``slot`` for all rows."""
        if slot is None:
            return route
        return Route((NOTHING if slot == NO_SLOT else self.config.slot(slot),), (rows,))

    def _exported(self, lang_ids: Tensor) -> Route:
        """The route of a model that is being exported: its graph must hold for all languages."""
        if lang_ids.dim() != 1:
            raise UserError(
                f"lang_ids has shape {tuple(lang_ids.shape)}; a model is exported with (rows,), "
                "one a sequence"
            )
        check_vocabularies(self.config)
        # an index of -1 would be the last language: send it out of range
        checked = torch.where(lang_ids < 0, len(self.config.languages), lang_ids)
        return Route((), (), exported=checked)

    def encode(
        self,
        input_ids: Tensor | None,
        lang_ids: Languages = None,
        *,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        slot: str | None = None,
        documents: Tensor | None = None,
        labels: Tensor | None = None,
        skip_padding: bool = True,
        read: Tensor | None = None,
        matrices: Matrices | None = None,
    ) -> EncoderOutput:
        """Embed a batch and run the layers, in three steps: prepare, plan the shortcuts, run.

        Heads call this and not :meth:`forward`, since some of them do not need all states. The
        other arguments are those of :meth:`forward`.

        Args:
            labels: (B, S); the caller needs states at the labelled positions only.
            skip_padding: the caller does not read states at padding. They are zero if padding is
                skipped.
            read: (B, S); positions that the caller reads, even at padding.
            matrices: filled for the loss, see :func:`xmod_lab.model.fast.tied_lookup.look_up`.
        Raises:
            UserError, UnknownLanguageError: as :meth:`forward`.
        """
        batch = self.prepare(
            input_ids,
            lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            slot=slot,
            documents=documents,
        )
        shortcuts = self.plan(batch, labels=labels, read=read, skip_padding=skip_padding)
        return self.run(batch, shortcuts, matrices)

    def prepare(
        self,
        input_ids: Tensor | None,
        lang_ids: Languages,
        *,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        slot: str | None,
        documents: Tensor | None,
    ) -> EncoderInput:
        """Step 1: check the arguments, and bring the rows into the order of their languages."""
        rows, length = shape_of(input_ids, inputs_embeds, ("rows", "sequence"))
        wanted = self._wants_cache(use_cache)
        cache = self._cache(past_key_values, wanted, crosses=encoder_hidden_states is not None)
        past = 0 if cache is None else cache.get_seq_length()
        attention_mask = check_mask(attention_mask, rows, length, past)
        check_documents(documents, attention_mask, (rows, length), past)
        attentions = self._wanted(output_attentions, "output_attentions")
        self._check_backend(attention_mask, attentions)
        route = self.route_of(lang_ids, rows, length, keep_order=cache is not None)
        return EncoderInput(
            shape=(rows, length),
            route=route,
            through=self._through(route, slot, rows),
            embedded={
                "input_ids": route.enter(input_ids),
                "token_type_ids": route.enter(_of_rows(token_type_ids)),
                "position_ids": route.enter(_of_rows(position_ids)),
                "inputs_embeds": route.enter(inputs_embeds),
                "past": past,
            },
            mask=route.enter(attention_mask),
            documents=route.enter(documents),
            source=route.enter(encoder_hidden_states),
            source_mask=route.enter(encoder_attention_mask),
            cache=cache,
            returns_cache=wanted,
            states=self._wanted(output_hidden_states, "output_hidden_states"),
            attentions=attentions,
        )

    def plan(
        self,
        batch: EncoderInput,
        *,
        labels: Tensor | None,
        read: Tensor | None,
        skip_padding: bool,
    ) -> Shortcuts:
        """Step 2: choose the shortcuts that this batch allows. Arguments as in :meth:`encode`."""
        if read is not None:
            check_labels(read, batch.shape)
        # A compiled encoder takes all slots in one operator, so that one graph serves every batch.
        grouped = self.compiled and batch.through.slots != (NOTHING,)
        every_position = (
            # States and attentions are returned for every position.
            batch.states
            or batch.attentions
            # Every position attends to the states of the encoder.
            or batch.source is not None
            # The cache holds keys and values of every position.
            or batch.cache is not None
            # Each number of positions would be a graph of its own.
            or self.compiled
            # A selection counts positions by row, so each row must have one slot.
            or batch.through.per_token
            # The graph that is being written must hold for other batches too.
            or batch.through.exported is not None
            or torch.jit.is_tracing()
            # A model without layers has nothing to skip.
            or not self.encoder.layer
        )
        if every_position:
            return Shortcuts(grouped)
        # The loss reads labelled positions. If they are few, the last layer computes only these.
        if labels is not None:
            return Shortcuts(predicted=predicted_tokens(labels, batch.route, batch.shape))
        # Nothing reads states at padding, so they are skipped if there are many. A ready mask does
        # not say which positions are padding.
        plain = batch.mask is not None and batch.mask.shape == batch.shape
        if skip_padding and plain and not torch.compiler.is_compiling():
            return Shortcuts(real=real_tokens(batch.mask, batch.route.enter(read)))
        return Shortcuts()

    def run(
        self, batch: EncoderInput, shortcuts: Shortcuts, matrices: Matrices | None = None
    ) -> EncoderOutput:
        """Step 3: embed the batch and run the layers."""
        x = self.embeddings(route=batch.route, matrices=matrices, **batch.embedded)
        mask, spans = batch.mask, None
        if batch.documents is not None:
            by_length, kernel = self._kernel(x, batch.attentions)
            if by_length:
                spans = Spans.of(batch.documents, x.device, kernel)
        if batch.documents is not None and spans is None:
            mask = mask_of(batch.documents.to(x.device), causal=self.config.is_decoder)
        context = AttentionContext(
            None if spans else self._mask(x, mask, batch.cache),
            batch.cache,
            *self._source(x, batch.source, batch.source_mask),
            spans=spans,
            want_weights=batch.attentions,
            real=shortcuts.real,
        )
        way = batch.through
        if shortcuts.grouped:
            way = self.encoder.grouped(way, batch.shape[1], x.device)
        trace = Trace() if batch.states or batch.attentions else None
        x = self.encoder(x, context, way, trace, shortcuts.predicted)

        def returned(name: str, wanted: bool) -> tuple[Tensor, ...] | None:
            return tuple(map(batch.route.leave, getattr(trace, name))) if wanted else None

        return EncoderOutput(
            x,
            batch.route,
            extras={
                "hidden_states": returned("states", batch.states),
                "attentions": returned("attentions", batch.attentions),
            },
            crossed=returned("crossed", batch.attentions and batch.source is not None),
            cache=batch.cache if batch.returns_cache else None,
            predicted=shortcuts.predicted,
        )

    def _wanted(self, asked: bool | None, name: str) -> bool:
        return getattr(self.config, name) if asked is None else asked

    def _kernel(self, x: Tensor, attentions: bool) -> tuple[bool, Kernel | None]:
        """Whether attention takes the lengths of documents, where others need a mask; and the
        kernel for them, if it is another one than the backend's."""
        if "flash" in (self.config._attn_implementation or ""):
            return True, None
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        kernel = None if attentions else kernel_for(x, product_type(x), head_dim, dropout)
        return kernel is not None, kernel

    def _check_backend(self, mask: Tensor | None, attentions: bool) -> None:
        """Raises UserError for what flash attention cannot do."""
        backend = self.config._attn_implementation or ""
        wanted = "attentions are to be returned" if attentions else "attention_mask is ready-made"
        if "flash" in backend and (attentions or (mask is not None and mask.dim() > 2)):
            raise UserError(
                f"{wanted}, but the attention backend is {backend}, which knows masks (rows, "
                "sequence) alone and keeps no weights; call set_attn_implementation('sdpa'). Of "
                "training rows, task or data, data.attention=row needs no ready-made mask"
            )

    def _wants_cache(self, asked: bool | None) -> bool:
        wanted = self.config.use_cache if asked is None else asked
        return self.config.is_decoder and wanted and not self._recomputes()

    def _recomputes(self) -> bool:
        """Whether layers are computed again in the backward pass: gradient checkpointing."""
        return self.training and any(layer.gradient_checkpointing for layer in self.encoder.layer)

    def _cache(self, given: Cache | None, wanted: bool, *, crosses: bool) -> Cache | None:
        """The key-value cache of a decoder: the given cache, or a new one if it is wanted."""
        if given is not None:
            if not self.config.is_decoder or self._recomputes():
                raise UserError(
                    "call model.eval(), or pass use_cache=False: past_key_values needs "
                    "config.is_decoder=True and no gradient checkpointing"
                )
            return given
        if not wanted:
            return None
        new = DynamicCache(config=self.config)
        return EncoderDecoderCache(new, DynamicCache(config=self.config)) if crosses else new

    def _mask(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor | None:
        """The mask for the attention backend, from (B, P) ones and zeros or a ready mask."""
        if self.config.is_decoder:
            return create_causal_mask(self.config, x, mask, past_key_values=cache)
        return None if mask is None else create_bidirectional_mask(self.config, x, mask)

    def _source(
        self, x: Tensor, states: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """An encoder's states, and their mask."""
        if states is None:
            return None, None
        if not self.config.add_cross_attention:
            raise UserError(
                "encoder_hidden_states need a decoder with cross-attention: an XmodModel or "
                "XmodForCausalLM with is_decoder=True and add_cross_attention=True in its "
                "configuration"
            )
        if mask is not None:
            mask = create_bidirectional_mask(self.config, x, mask, encoder_hidden_states=states)
        return states, mask

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
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        slot: str | None = None,
        documents: Tensor | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encode a batch.

        Args:
            input_ids: (B, S) int64 token ids in each row's vocabulary.
            lang_ids: (B,) or (B, S) int64 in any order, see :meth:`lang_id`; or a code for all
                rows; or a list of B codes. Default: the default language.
            attention_mask: (B, S), 1 = real token; or a ready mask (B, 1, S, S).
            encoder_hidden_states: (B, T, D), for a decoder with cross-attention.
            encoder_attention_mask: (B, T).
            past_key_values: the cache of a decoder.
            use_cache: return the cache with the new tokens; default: ``config.use_cache``.
            slot: the code of a language. Every row goes through the slot of this language in place
                of its own. ``"none"``: no slot. Rows keep the vocabularies of their languages.
            documents: (B, S) int64, in place of ``attention_mask``: the number of each token's
                document, which stands together. A token attends within its document alone. Flash
                attention computes nothing else; other backends get a mask. Give it on the CPU.
        Returns:
            ``last_hidden_state`` (B, S, D), ``pooler_output`` (B, D); on request ``hidden_states``
            and ``attentions``.
        Raises:
            UserError: no language, no rows, or a sequence longer than the positions.
            UnknownLanguageError: the model does not have a code or number.
        """
        out = self.encode(
            input_ids,
            lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            slot=slot,
            documents=documents,
        )
        x = out.states
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else self.pooler(x),
            past_key_values=out.cache,
            cross_attentions=out.crossed,
            **out.extras,
        )


def shape_of(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, sizes: tuple[str, ...]
) -> list[int]:
    """The ``sizes`` of a batch, from ``input_ids`` or ``inputs_embeds``.

    Raises:
        UserError: both or neither are given, the number of dimensions differs, or the batch is
            empty.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise UserError("give exactly one of input_ids and inputs_embeds")
    name, given = (
        ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    )
    wanted = sizes if inputs_embeds is None else (*sizes, "hidden size")
    if given.dim() != len(wanted) or 0 in given.shape:
        raise UserError(
            f"{name} has shape {tuple(given.shape)}; allowed is ({', '.join(wanted)}), of each at "
            "least one"
        )
    return list(given.shape[: len(sizes)])


def check_vocabularies(config: XmodConfig) -> None:
    """Raises UserError for vocabularies of added languages.

    A graph has one table, in which their ids would mean other tokens.
    """
    if config.vocabularies:
        own = ", ".join(config.vocabularies)
        raise UserError(
            f"{own} have vocabularies of their own, and an exported model has the base's alone; "
            "remove these languages with remove_language(), and make each a model of its own: "
            "python -m xmod_lab.packs export"
        )


def check_mask(mask: Tensor | None, rows: int, length: int, past: int) -> Tensor | None:
    """``mask`` after a check of its shape. Integers of a ready mask become booleans.

    Raises:
        UserError: the shape is neither (``rows``, ``past + length``) nor that of a ready mask,
            (``rows`` or 1, heads or 1, ``length``, keys).
    """
    if not isinstance(mask, Tensor):
        return mask
    flat = mask.dim() == 2 and mask.shape[0] == rows and mask.shape[1] == past + length
    if not flat and (mask.dim() != 4 or mask.shape[0] not in (1, rows) or mask.shape[2] != length):
        raise UserError(
            f"attention_mask has shape {tuple(mask.shape)}; allowed are ({rows}, {past + length}), "
            f"one a token, cached ones too, and a ready mask ({rows}, 1, {length}, keys)"
        )
    return mask if flat or mask.is_floating_point() else mask.bool()


def check_documents(
    documents: Tensor | None, mask: Tensor | None, shape: tuple[int, int], past: int
) -> None:
    """Raises UserError if ``documents`` are of another shape, or stand beside a mask or a cache."""
    if documents is None:
        return
    if mask is not None or past:
        raise UserError(
            "leave attention_mask and past_key_values out where documents are given: these say "
            "already which tokens attend to which"
        )
    if tuple(documents.shape) != shape or documents.is_floating_point():
        raise UserError(
            f"documents have shape {tuple(documents.shape)}, {documents.dtype}; allowed are "
            f"integers of shape {shape}, one for each token"
        )


def _of_rows(numbers: Tensor | None) -> Tensor | None:
    """(S,), the same for all rows -> (1, S). Other shapes stay."""
    return numbers[None] if numbers is not None and numbers.dim() == 1 else numbers


class XmodPooler(nn.Module):
    """First token -> dense -> tanh."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))
