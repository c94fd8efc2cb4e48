"""Recurrent encoder–decoder with attention (Bahdanau 2014, Luong 2015) and without (Sutskever 2014).

Shapes: B batch, S source time, T target time, E embedding, D hidden, C = D or, of a bidirectional encoder, 2·D.
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.output_capturing import capture_outputs

from .configuration_attention_rnn_seq2seq import AttentionRNNSeq2SeqConfig
from .shared_base import SequencePreTrainedModel
from .shared_cache import check_holds_states
from .shared_heads_seq2seq import Seq2SeqLMHead
from .shared_inputs import blank_padding, embed_inputs, valid_tokens
from .shared_recurrence import Drawn, States, ValidSteps, find_valid_steps, init_embedding
from .shared_seq2seq import EncoderDecoderModel
from .shared_seq2seq_recurrent import Bridge, RecurrentEncoderOutput, Source, SourceAttention, StatefulLayer


class AttentionRNNSeq2SeqPreTrainedModel(SequencePreTrainedModel):
    """Loading, saving and initialisation of the recurrent encoder–decoder."""

    config: AttentionRNNSeq2SeqConfig
    _no_split_modules = ["StatefulLayer"]
    _is_stateful = True  # no assisted decoding: a state cannot take back rejected tokens

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings from N(0, 1), as in torch.nn.Embedding, but for those that are also the output layer."""
        super()._init_weights(module)
        if isinstance(module, nn.Embedding) and not self.embeds_for_output():
            init_embedding(module)

    def embeds_for_output(self) -> bool:
        """Whether this model's own embedding matrix is the output layer's too."""
        return self.config.tie_word_embeddings


class AttentionRNNSeq2SeqEncoder(AttentionRNNSeq2SeqPreTrainedModel):
    """Embedding → recurrent layers over the source, with dropout between them."""

    _can_record_outputs = {"hidden_states": StatefulLayer}

    def __init__(self, config: AttentionRNNSeq2SeqConfig):
        super().__init__(config)
        width: int = config.embedding_size  # type: ignore[assignment]
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        inputs = [width] + [config.source_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList(
            [StatefulLayer(config, index, size, config.bidirectional) for index, size in enumerate(inputs)]
        )
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def embeds_for_output(self) -> bool:
        return self.config.tie_word_embeddings and self.config.share_embeddings

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> RecurrentEncoderOutput:
        """input_ids (B, S), or inputs_embeds (B, S, E), and the mask (B, S) → `last_hidden_state` (B, S, C), zero
        under padding, and `final_states`, which padding does not change. `input_features` are refused.
        """
        hidden_states, valid = embed_inputs(
            self.embed_tokens, self.config, input_ids, inputs_embeds, attention_mask, 0, input_features
        )
        steps = find_valid_steps(valid)
        finals = []
        for index, layer in enumerate(self.layers):
            hidden_states, *states = layer(self.dropout(hidden_states) if index else hidden_states, steps)
            finals.append(torch.stack([state.transpose(0, 1).flatten(1) for state in states], dim=1))
        return RecurrentEncoderOutput(last_hidden_state=hidden_states, final_states=torch.stack(finals, dim=1))


class AttentionRNNSeq2SeqDecoder(AttentionRNNSeq2SeqPreTrainedModel):
    """Embedding → recurrent layers over the target, which attend over the source. s_t: the top layer's hidden state.

    `score="none"` (Sutskever 2014):
        s_t = cell(x_t, s_{t−1}),  output s_t
    Luong 2015, section 3.1, global attention:
        s_t = cell(x_t, s_{t−1}),  c_t from s_t,  output h̃_t = tanh(W_c [c_t; s_t])                         (eq. 5)
    Luong 2015, section 3.3, `input_feeding`:
        s_t = cell([x_t; h̃_{t−1}], s_{t−1}), the rest as above, h̃_0 = 0
    Bahdanau 2014, appendix A.2.2, `score="additive"` with `input_feeding`; the context comes before the recurrence,
    from the state before:
        c_t from s_{t−1},  s_t = cell([x_t; c_t], s_{t−1}),
        output the larger of each pair of t̃_t = W_t [s_{t−1}; x_t; c_t] + b_t  (maxout; U_o, V_o, C_o side by side)

    x_t is the embedding of the target's token before; the states start from the [`Bridge`].
    """

    def __init__(self, config: AttentionRNNSeq2SeqConfig):
        super().__init__(config)
        width, embedded, source = config.hidden_size, config.embedding_size or 0, config.source_size
        self.embed_tokens = None
        if not config.share_embeddings:
            self.embed_tokens = nn.Embedding(config.vocab_size, embedded, config.pad_token_id)
        self.bridge = Bridge(config)
        self.attention = None if config.score == "none" else SourceAttention(config)
        self.attends_first = config.input_feeding and config.score == "additive"
        self.feeds_output = config.input_feeding and not self.attends_first
        inputs = [embedded + (source if self.attends_first else width if self.feeds_output else 0)]
        inputs += [width] * ((config.num_decoder_layers or 1) - 1)
        self.layers = nn.ModuleList([StatefulLayer(config, index, size, False) for index, size in enumerate(inputs)])
        if self.attends_first:
            self.readout = nn.Linear(width + embedded + source, 2 * width)
        elif self.attention is not None:
            self.combine = nn.Linear(source + width, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        embeddings: torch.Tensor,
        valid: torch.Tensor | None,
        encoder_outputs: RecurrentEncoderOutput | None = None,
        source_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Embeddings (B, T, E), valid (B, T), and the encoder's outputs or a cache that has read them → outputs
        (B, T, D), zero under padding; asked for, `cross_attentions`: one tensor (B, T, S).
        """
        started = past_key_values is not None and past_key_values.get_seq_length() > 0
        if started:
            states, fed, source = self.resume(embeddings, past_key_values)
        else:
            states, fed, source = self.start(embeddings, encoder_outputs, source_mask)
        run = self.run_together if not self.config.input_feeding else self.run_steps
        own: Any = self.layers
        drawn = [layer.rnn.draw_weights() for layer in own]  # once for all steps
        output, hidden, weights, states, fed = run(embeddings, find_valid_steps(valid), states, fed, source, drawn)
        if past_key_values is not None:
            self.write(past_key_values, embeddings.shape[1], states, fed, None if started else source)
        wants_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        wants_weights = self.config.output_attentions if output_attentions is None else output_attentions
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=output,
            hidden_states=(embeddings, *hidden[:-1], output) if wants_hidden else None,
            cross_attentions=(weights,) if wants_weights and weights is not None else None,
        )

    # -- the recurrence -------------------------------------------------------------------------------------------
    def run_together(
        self,
        x: torch.Tensor,
        steps: ValidSteps | None,
        states: list[States],
        fed: Any,
        source: Source | None,
        drawn: list[Drawn],
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None, list[States], None]:
        """All target steps at once, for nothing of the attention enters the recurrence.

        x (B, T, E), of each layer states (1, B, D) and the weights drawn for it → outputs (B, T, D), each layer's
        hidden states (B, T, D), attention weights (B, T, S), the states afterwards, and nothing to feed.
        """
        hidden, states = self.run_layers(x, steps, states, drawn)
        output, weights = self.attend_after(hidden[-1], source)
        return blank_padding(output, None if steps is None else steps.mask), hidden, weights, states, None

    def run_steps(
        self,
        x: torch.Tensor,
        steps: ValidSteps | None,
        states: list[States],
        fed: torch.Tensor | None,
        source: Source | None,
        drawn: list[Drawn],
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None, list[States], torch.Tensor | None]:
        """One target step after the other, with the arguments and results of `run_together`; `fed` (B, 1, D) is the
        output before. Without input feeding it is the slow twin of `run_together`.
        """
        outputs, layers = [], []
        alignment: list[Any] = []
        step = self.step_bahdanau if self.attends_first else self.step_luong
        for t in range(x.shape[1]):
            now = None if steps is None else ValidSteps(steps.mask[:, t : t + 1], None)
            output, hidden, weights, states = step(x[:, t : t + 1], now, states, fed, source, drawn)
            if fed is not None:
                fed = output if now is None else torch.where(now.mask[..., None], output, fed)
            outputs.append(blank_padding(output, None if now is None else now.mask))
            layers.append(torch.stack(hidden))
            alignment.append(weights)
        hidden = list(torch.cat(layers, dim=2))
        weights = None if alignment[0] is None else torch.cat(alignment, dim=1)
        return torch.cat(outputs, dim=1), hidden, weights, states, fed

    def step_luong(
        self,
        x: torch.Tensor,
        step: ValidSteps | None,
        states: list[States],
        fed: torch.Tensor | None,
        source: Source | None,
        drawn: list[Drawn],
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None, list[States]]:
        """x_t (B, 1, E), h̃_{t−1} or None → h̃_t (B, 1, D), hidden states, weights, states."""
        x = x if fed is None else torch.cat([x, fed.to(x.dtype)], dim=-1)
        hidden, states = self.run_layers(x, step, states, drawn)
        output, weights = self.attend_after(hidden[-1], source)
        return output, hidden, weights, states

    def step_bahdanau(
        self,
        x: torch.Tensor,
        step: ValidSteps | None,
        states: list[States],
        fed: Any,
        source: Any,
        drawn: list[Drawn],
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None, list[States]]:
        """x_t (B, 1, E) → the maxout layer's output (B, 1, D), hidden states, weights, states."""
        before = states[-1][0].transpose(0, 1)  # s_{t−1} of the top layer
        context, weights = self.attention(before, *source)  # type: ignore[misc]
        hidden, states = self.run_layers(torch.cat([x, context.to(x.dtype)], dim=-1), step, states, drawn)
        pairs = self.readout(torch.cat([before.to(x.dtype), x, context.to(x.dtype)], dim=-1))
        return pairs.unflatten(-1, (-1, 2)).amax(-1), hidden, weights, states

    def run_layers(
        self, x: torch.Tensor, steps: ValidSteps | None, states: list[States], drawn: list[Drawn]
    ) -> tuple[list[torch.Tensor], list[States]]:
        """Each layer's hidden states (B, T, D), and the states afterwards."""
        hidden: list[torch.Tensor] = []
        after: list[States] = []
        for layer, old, own in zip(self.layers, states, drawn, strict=True):
            output, *new = layer(self.dropout(hidden[-1]) if hidden else x, steps, tuple(own), *old, *own.values())
            hidden.append(output)
            after.append(tuple(new))
        return hidden, after

    def attend_after(self, hidden: torch.Tensor, source: Source | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """s_t → h̃_t, and the weights; without attention s_t itself."""
        if source is None or self.attention is None:
            return hidden, None
        context, weights = self.attention(hidden, *source)
        return torch.tanh(self.combine(torch.cat([context, hidden], dim=-1))), weights

    # -- state in, state out ---------------------------------------------------------------------------------------
    def start(
        self, x: torch.Tensor, encoder_outputs: RecurrentEncoderOutput | None, source_mask: torch.Tensor | None
    ) -> tuple[list[States], torch.Tensor | None, Source | None]:
        """The states of each layer, the output to feed, and what to attend to, after a source was read."""
        final_states = getattr(encoder_outputs, "final_states", None)
        if encoder_outputs is None or final_states is None or encoder_outputs.last_hidden_state is None:
            raise ValueError("encoder_outputs has no final states of the encoder: pass what model.get_encoder() gave")
        hidden = encoder_outputs.last_hidden_state
        if len(hidden) != len(x):
            raise ValueError(f"{len(hidden)} sources do not fit {len(x)} targets: pass one target for each source")
        if source_mask is not None and source_mask.shape != hidden.shape[:2]:
            raise ValueError(
                f"attention_mask of shape {tuple(source_mask.shape)} does not fit encoder_outputs of "
                f"{tuple(hidden.shape[:2])} positions: pass the one that the encoder was given"
            )
        fed = x.new_zeros(len(x), 1, self.config.hidden_size) if self.feeds_output else None
        source = None
        if self.attention is not None:
            source = self.attention.prepare(hidden, valid_tokens(source_mask, hidden.shape[1]))
        return self.bridge(final_states), fed, source

    def resume(self, x: torch.Tensor, cache: Any) -> tuple[list[States], torch.Tensor | None, Source | None]:
        """The same, from where a cache ended."""
        layers = cache.self_attention_cache.layers
        own: Any = self.layers
        states = [layer.rnn.initial_states(x, kept) for layer, kept in zip(own, layers, strict=False)]
        fed = layers[len(self.layers) - 1].states["fed"] if self.feeds_output else None
        if self.attention is None:
            return states, fed, None
        kept = cache.cross_attention_cache.layers[0].read_states(x.dtype, x.device)
        return states, fed, Source(kept["values"], kept.get("keys", kept["values"]), kept["allowed"])

    def write(
        self, cache: Any, length: int, states: list[States], fed: torch.Tensor | None, source: Source | None
    ) -> None:
        """Keep the states after `length` more tokens, the output to feed, and of a new source what is attended to."""
        own: Any = self.layers
        named = [layer.rnn.named(state) for layer, state in zip(own, states, strict=True)]
        if fed is not None:
            named[-1]["fed"] = fed
        for part, layer in zip(named, cache.self_attention_cache.layers, strict=False):
            layer.write_states(part, length)
        if source is not None:
            kept = source._asdict()
            if source.keys is source.values:
                del kept["keys"]
            cache.cross_attention_cache.layers[0].write_states(kept, source.values.shape[1])


class AttentionRNNSeq2SeqModel(EncoderDecoderModel, AttentionRNNSeq2SeqPreTrainedModel):
    """The recurrent encoder–decoder without a head: a source and a target to the decoder's outputs (B, T, D)."""

    encoder_class = AttentionRNNSeq2SeqEncoder
    decoder_class = AttentionRNNSeq2SeqDecoder

    def choose_cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Any:
        cache = super().choose_cache(past_key_values, use_cache)
        if cache is not None:
            for part in (cache.self_attention_cache, cache.cross_attention_cache):
                check_holds_states(part, len(self.decoder.layers))
        return cache


class AttentionRNNSeq2SeqForSeq2SeqLM(Seq2SeqLMHead, AttentionRNNSeq2SeqPreTrainedModel):
    """Recurrent encoder–decoder that writes a text from a text (Sutskever 2014, Bahdanau 2014, Luong 2015)."""

    backbone_class = AttentionRNNSeq2SeqModel


__all__ = ["AttentionRNNSeq2SeqForSeq2SeqLM", "AttentionRNNSeq2SeqModel"]
