"""CTC: frames of sound to text without an alignment (Graves 2006)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils.generic import can_return_tuple

from .shared_base import SequencePreTrainedModel
from .shared_heads import check_labels, target_shape
from .shared_heads_classification import require_features, without_cache
from .shared_inputs import may_look_at, valid_tokens


class CTCHead(SequencePreTrainedModel):
    """Connectionist temporal classification (Graves 2006, section 3): each frame emits a symbol or the blank.

    p(l|x) = Σ_π Π_t y_{π_t}^t over all paths π that collapse to the labels l. The blank is `pad_token_id`, as in
    transformers' tokenizers and pipelines for CTC.

    Loss: a mean over rows (or a sum, `ctc_loss_reduction`). A trainer averages its accumulation steps, which is the
    mean over all rows where the steps have as many rows each.
    """

    auto_model = "AutoModelForCTC"
    main_input_name = "input_features"
    accepts_loss_kwargs = False  # a mean over rows: Trainer divides it by the accumulation steps
    backbone_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        super().__init__(config)
        require_features(self, config)
        if config.pad_token_id is None:
            raise ValueError(
                f"{type(self).__name__}: pad_token_id=None leaves no blank: set it to the tokenizer's pad_token_id"
            )
        self.model = self.backbone_class(config)
        self.without_cache = without_cache(self.backbone_class)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.lm_head = nn.Linear(config.output_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits (B, T, V) of the symbols at each frame; the best path of a padded row collapses to the row's own.

        Args:
            input_features (B, T, F); attention_mask (B, T): 1 for frames, 0 for padding, in any pattern.
            labels (B, L): token ids of the text, −100 after its end.

        Raises:
            ValueError: labels of another batch, a label that is not a token id, or the blank.
        """
        if labels is not None:
            self._check_labels(labels, target_shape(input_features))
        kwargs |= self.without_cache
        outputs = self.model(input_features=input_features, attention_mask=attention_mask, **kwargs)
        logits = self.lm_head(self.dropout(outputs.last_hidden_state))
        valid = valid_tokens(attention_mask, logits.shape[1])
        loss = None if labels is None else self.ctc_loss(logits, valid, labels)
        if valid is not None:
            logits = silence_padding(logits, valid, self.config.pad_token_id)
        return CausalLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def ctc_loss(self, logits: torch.Tensor, valid: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
        """−log p(l|x) of each row over its valid frames, reduced as `ctc_loss_reduction` says."""
        config, is_label = self.config, labels != -100
        log_probs = F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        lengths = torch.full((len(logits),), logits.shape[1], device=logits.device)
        if valid is not None:  # torch takes the first frames of each row: move the valid ones there
            order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
            log_probs = log_probs.gather(1, order[..., None].expand_as(log_probs))
            lengths = valid.sum(1)
        return F.ctc_loss(
            log_probs.transpose(0, 1),
            labels[is_label],
            lengths,
            is_label.sum(1),
            blank=config.pad_token_id,
            reduction=config.ctc_loss_reduction,
            zero_infinity=config.ctc_zero_infinity,
        )

    def _check_labels(self, labels: torch.Tensor, batch: tuple[int, ...] | None) -> None:
        """Raise ValueError unless the labels are rows of symbols, as many as the `batch` (B, T) has."""
        wanted = None if batch is None else (batch[0], *labels.shape[-1:])
        check_labels(labels, wanted, self.config.vocab_size, of_vocabulary=True)
        blank = self.config.pad_token_id
        if may_look_at(labels) and (labels == blank).any():
            raise ValueError(
                f"label {blank} is not a symbol of CTC but its blank, pad_token_id: leave it out, and mark positions "
                "after the text with −100"
            )


def silence_padding(logits: torch.Tensor, valid: torch.Tensor, blank: int) -> torch.Tensor:
    """Logits (B, T, V) whose frames of padding spell nothing, since those who decode do not look at the mask.

    Before the first and after the last valid frame they are the blank. Between valid frames they repeat the frame
    before them: a blank there would make two symbols of one that goes on behind the hole.
    """
    frames = torch.arange(valid.shape[1], device=valid.device)
    before = torch.where(valid, frames, -1).cummax(1).values  # the last valid frame so far, −1 where there is none
    inside = (before >= 0) & (frames <= before[:, -1:])
    logits = logits.gather(1, before.clamp(min=0)[..., None].expand_as(logits))
    silence = logits.new_full(logits.shape[-1:], torch.finfo(logits.dtype).min)
    silence[blank] = 0.0
    return torch.where(inside[..., None], logits, silence)
