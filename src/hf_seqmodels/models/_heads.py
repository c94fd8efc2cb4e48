"""Heads over any backbone: causal language model, sequence classification, token classification.

A head names its backbone class (`backbone_class`); exported files cannot ask the Auto classes for it.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from ._base import SequencePreTrainedModel
from ._inputs import valid_tokens

Pooled = tuple[torch.Tensor, torch.Tensor | None]


class CausalLMHead(SequencePreTrainedModel):
    """Predicts the next token from each position. Loss: mean of −log p over all targets that are not −100."""

    auto_model = "AutoModelForCausalLM"
    backbone_class: ClassVar[type[nn.Module]]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any):
        super().__init__(config)
        if getattr(config, "bidirectional", False):
            raise ValueError(
                f"{type(self).__name__}: bidirectional=True sees the token it should predict; "
                "use bidirectional=False, or a classification head"
            )
        self.model = self.backbone_class(config)
        width = getattr(config, "embedding_size", config.hidden_size) if config.tie_word_embeddings else None
        # The embedding matrix can only be shared at its own width; the extra layer exists only where widths differ.
        self.lm_projection = None
        if width not in (None, config.output_size):
            self.lm_projection = nn.Linear(config.output_size, width, bias=False)
        self.lm_head = nn.Linear(width or config.output_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        position_ids: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Next-token logits.

        Args:
            labels (B, T): the token ids again (they are shifted here); −100 is not a target.
            position_ids (B, T): read by backbones that have positions. Named here because `generate()` gives them only
                to models that name them, and its static cache hides the padding they are counted from.
            logits_to_keep: compute only the last so many positions (0: all), or the positions in a tensor.
            num_items_in_batch: targets in the global batch, by which the summed loss is divided (Trainer passes it);
                without it the loss is the mean over this call's targets.
            Other arguments: see the backbone.

        Returns:
            `loss`, `logits` (B, T, V), `past_key_values`, `hidden_states`, `attentions`.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            position_ids=position_ids,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state[:, kept]
        if self.lm_projection is not None:
            hidden_states = self.lm_projection(hidden_states)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            shifted = kwargs.get("shift_labels")
            targets = labels[..., 1:] if shifted is None else shifted
            kwargs["num_items_in_batch"] = count_targets(targets, kwargs.get("num_items_in_batch"))
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SequenceClassificationHead(SequencePreTrainedModel):
    """One label (or several, or a number) for a whole sequence, read from the state after its last token."""

    auto_model = "AutoModelForSequenceClassification"
    accepts_loss_kwargs = False  # a mean over sequences: Trainer divides it by the accumulation steps
    backbone_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.backbone_class(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.output_size, config.num_labels)
        self.loss_type = "ForSequenceClassification"
        self.post_init()

    def pool(self, hidden_states: torch.Tensor, valid: torch.Tensor | None) -> Pooled:
        """(B, T, output_size) → (B, output_size), and the weights if the pooling has any."""
        return last_token(hidden_states, valid, getattr(self.config, "bidirectional", False)), None

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, num_labels).

        Args:
            attention_mask (B, T): tells the padding; without it every position counts as a token.
            labels: (B,) class ids, (B, num_labels) floats for several labels, or (B,) floats for regression
                (`config.problem_type` says which, and is inferred from the first batch if unset).
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        pooled, weights = self.pool(hidden_states, valid_tokens(attention_mask, hidden_states.shape[1]))
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return self.pack_output(
            weights if kwargs.get("output_attentions", self.config.output_attentions) else None,
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def pack_output(self, weights: torch.Tensor | None, **fields: Any) -> SequenceClassifierOutputWithPast:
        """The output; heads that pool with attention add their weights."""
        return SequenceClassifierOutputWithPast(**fields)


class TokenClassificationHead(SequencePreTrainedModel):
    """A label for every token. Loss: mean of −log p over all labels that are not −100."""

    auto_model = "AutoModelForTokenClassification"
    backbone_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.backbone_class(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.output_size, config.num_labels)
        self.loss_type = "ForTokenClassification"
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Logits (B, T, num_labels); labels (B, T), −100 where there is no token to label."""
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            kwargs["num_items_in_batch"] = count_targets(labels, kwargs.get("num_items_in_batch"))
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def count_targets(labels: torch.Tensor, in_global_batch: int | torch.Tensor | None) -> torch.Tensor:
    """What a summed loss is divided by: the global batch's targets, or this call's where nobody counted those.

    At least 1, so that the loss of a batch without targets is 0 and not 0/0.
    """
    count = (labels != -100).sum() if in_global_batch is None else torch.as_tensor(in_global_batch)
    return count.clamp(min=1)


def last_token(hidden_states: torch.Tensor, valid: torch.Tensor | None, bidirectional: bool) -> torch.Tensor:
    """(B, output_size): the output at each row's last token; of a backward half, the one at its first token."""
    batch, length, width = hidden_states.shape
    rows = torch.arange(batch, device=hidden_states.device)
    if valid is None:
        valid = torch.ones(batch, length, dtype=torch.bool, device=hidden_states.device)
    last = (valid * torch.arange(length, device=hidden_states.device)).argmax(-1)
    first = valid.int().argmax(-1)
    if not bidirectional:
        return hidden_states[rows, last]
    return torch.cat([hidden_states[rows, last, : width // 2], hidden_states[rows, first, width // 2 :]], dim=-1)
