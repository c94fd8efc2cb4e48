"""Heads over any backbone that predict tokens: causal and masked language model.

A head names its backbone class (`backbone_class`); exported files cannot ask the Auto classes for it.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from .shared_base import SequencePreTrainedModel
from .shared_inputs import may_look_at
from .shared_regularisation import mean_penalty


class TokenPredictionHead(SequencePreTrainedModel):
    """A backbone and a linear layer from its output to the vocabulary: what both kinds of language model share."""

    backbone_class: ClassVar[type[nn.Module]]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Any):
        super().__init__(config)
        if getattr(config, "num_features", None) is not None and not config.is_encoder_decoder:
            raise ValueError(
                f"{type(self).__name__}: num_features={config.num_features} makes a model of features, and a language "
                "model reads tokens: leave num_features out, or take a time-series head"
            )
        self.check_direction(config)
        self.loss_type = self.auto_model.removeprefix("AutoModel")  # "ForCausalLM", "ForMaskedLM"
        self.model = self.backbone_class(config)
        width = getattr(config, "embedding_size", config.hidden_size) if config.tie_word_embeddings else None
        # The embedding matrix can only be shared at its own width; the extra layer exists only where widths differ.
        self.lm_projection = None
        if width not in (None, config.output_size):
            self.lm_projection = nn.Linear(config.output_size, width, bias=False)
        self.lm_head = nn.Linear(width or config.output_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    def check_direction(self, config: Any) -> None:
        """Raise ValueError if the backbone sees more, or less, than this head may use."""

    def predict(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, output_size) → logits (B, T, V)."""
        if self.lm_projection is not None:
            hidden_states = self.lm_projection(hidden_states)
        return self.lm_head(hidden_states)


class CausalLMHead(TokenPredictionHead):
    """Predicts the next token from each position. Loss: mean of −log p over all targets that are not −100."""

    auto_model = "AutoModelForCausalLM"

    def check_direction(self, config: Any) -> None:
        if getattr(config, "bidirectional", False):
            raise ValueError(
                f"{type(self).__name__}: bidirectional=True sees the token it should predict; "
                "use bidirectional=False, or a masked language model"
            )
        if getattr(config, "encoder", None) is not None:
            raise ValueError(f"{type(self).__name__}: an encoder sees the token to predict; leave it out")

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

        Raises:
            ValueError: labels of another shape than the kept positions, or outside the vocabulary.
        """
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        shifted = kwargs.get("shift_labels")
        if labels is not None:
            wanted = target_shape(input_ids, inputs_embeds, kept=kept)
            check_labels(labels if shifted is None else shifted, wanted, self.config.vocab_size, of_vocabulary=True)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            position_ids=position_ids,
            **kwargs,
        )
        logits = self.predict(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            targets = labels[..., 1:] if shifted is None else shifted
            kwargs["num_items_in_batch"] = count_targets(targets, kwargs.get("num_items_in_batch"))
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            penalty = getattr(outputs, "activation_penalty", None)  # only in training, and with its options
            if penalty is not None:
                loss = loss + mean_penalty(penalty, targets, kwargs["num_items_in_batch"])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MaskedLMHead(TokenPredictionHead):
    """Predicts masked tokens from both sides. Loss: mean of −log p over all targets that are not −100."""

    auto_model = "AutoModelForMaskedLM"

    def check_direction(self, config: Any) -> None:
        if not getattr(config, "bidirectional", True):
            raise ValueError(
                f"{type(self).__name__}: bidirectional=False sees only the left of a masked token; "
                "use bidirectional=True, or a causal language model"
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Logits (B, T, V) of the token at each position.

        Args:
            labels (B, T): the token at each masked position, −100 elsewhere (nothing is shifted).
            num_items_in_batch: targets in the global batch, as in [`CausalLMHead`].
            Other arguments: see the backbone.

        Raises:
            ValueError: labels of another shape than (B, T), or outside the vocabulary.
        """
        if labels is not None:
            wanted = target_shape(input_ids, inputs_embeds)
            check_labels(labels, wanted, self.config.vocab_size, of_vocabulary=True)
        kwargs |= only_given(token_type_ids=token_type_ids, global_attention_mask=global_attention_mask)
        outputs = self.model(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        logits = self.predict(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            kwargs["num_items_in_batch"] = count_targets(labels, kwargs.get("num_items_in_batch"))
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def target_shape(*inputs: torch.Tensor | None, kept: Any = slice(None)) -> tuple[int, ...] | None:
    """(B, T) of the input that was given, of its `kept` positions; None where the backbone will refuse the input."""
    for given in inputs:
        if given is not None and given.ndim > 1:
            return tuple(given[:, kept].shape[:2])
    return None


def check_labels(labels: torch.Tensor, wanted: tuple[int, ...] | None, size: int, of_vocabulary: bool = False) -> None:
    """Raise ValueError unless the labels have the shape `wanted` (None: any) and are whole numbers from 0 to
    `size` − 1, or −100.

    torch's losses flatten labels, and so would take those of transposed rows.
    """
    if wanted is not None and tuple(labels.shape) != wanted:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit this batch: pass {wanted}, −100 where there is no label"
        )
    if labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype}: pass whole numbers, −100 where there is no label")
    if not may_look_at(labels):
        return
    wrong = labels[((labels < 0) | (labels >= size)) & (labels != -100)]
    if wrong.numel():
        outside, way_out = f"the {size} classes", "another num_labels"
        if of_vocabulary:
            outside, way_out = f"the vocabulary of {size}", "this model's tokenizer"
        raise ValueError(
            f"label {wrong[0].item()} is outside {outside}: use 0 to {size - 1}, −100 where there is no label, or "
            f"{way_out}"
        )


def count_targets(labels: torch.Tensor, in_global_batch: int | torch.Tensor | None) -> torch.Tensor:
    """What a summed loss is divided by: the global batch's targets, or this call's where nobody counted those.

    At least 1, so that the loss of a batch without targets is 0 and not 0/0.
    """
    count = (labels != -100).sum() if in_global_batch is None else torch.as_tensor(in_global_batch)
    return count.clamp(min=1)


def only_given(**arguments: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Those that are not None: token types and global tokens, for a backbone that may know neither.

    Heads name them since Trainer gives a model only the columns that its `forward` names.
    """
    return {name: value for name, value in arguments.items() if value is not None}
