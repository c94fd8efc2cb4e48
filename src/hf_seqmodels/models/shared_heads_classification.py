"""Heads over any backbone that label: a sequence, a sound, every token, or a span that answers a question."""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from .shared_base import SequencePreTrainedModel
from .shared_crf import LinearChainCRF
from .shared_heads import check_labels, count_targets, only_given, target_shape
from .shared_inputs import argument_names, may_look_at, valid_tokens

Pooled = tuple[torch.Tensor, torch.Tensor | None]


class SequenceClassificationHead(SequencePreTrainedModel):
    """One label (or several, or a number) for a whole sequence, read from the state after its last token.

    Loss: the mean over the rows that have a label. transformers' Trainer averages its accumulation steps, which is
    the mean over their rows only where each step has as many rows with a label; `SeqTrainer` counts them.
    """

    auto_model = "AutoModelForSequenceClassification"
    accepts_loss_kwargs = False  # Trainer cannot count the rows with a label, and divides by the accumulation steps
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
        input_features: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, num_labels).

        Args:
            attention_mask (B, T): tells the padding; without it every position counts as a token.
            labels: class ids (B,), −100 where a row has no label; zeros and ones (B, num_labels) for several labels;
                or numbers for regression, (B,) or with num_labels > 1 (B, num_labels). `config.problem_type` says
                which; unset, it is inferred from the first batch: with one label regression, else whole numbers are
                class ids and others several labels.
            num_items_in_batch: rows with a label in the global batch (`count_targets`), by which the summed loss is
                divided; without it the loss is the mean over this call's.

        Raises:
            ValueError: labels of another shape or kind, a class id outside 0 … num_labels − 1, one of several labels
                that is neither 0 nor 1, or a number that is not finite.
        """
        in_global_batch = kwargs.pop("num_items_in_batch", None)
        if labels is not None:
            given = next(given for given in (input_ids, inputs_embeds, input_features, labels) if given is not None)
            labels = self.check_targets(labels, len(given))
        kwargs |= only_given(token_type_ids=token_type_ids, global_attention_mask=global_attention_mask)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            input_features=input_features,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        pooled, weights = self.pool(hidden_states, valid_tokens(attention_mask, hidden_states.shape[1]))
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            count = self.count_targets(labels).clamp(min=1)  # read by the loss of class ids alone
            loss = self.loss_function(
                labels=labels, pooled_logits=at_least_fp32(logits), config=self.config, num_items_in_batch=count
            )
            if in_global_batch is not None:
                loss = loss * count / torch.as_tensor(in_global_batch, device=loss.device).clamp(min=1)
        return self.pack_output(
            weights if kwargs.get("output_attentions", self.config.output_attentions) else None,
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def check_targets(self, labels: torch.Tensor, rows: int) -> torch.Tensor:
        """The labels in the dtype of their loss, after a look at whether they fit the problem type and `rows` rows.

        torch would broadcast numbers of another shape, and take numbers that are no class ids for such.
        """
        problem = self.problem_of(labels)
        class_ids = problem == "single_label_classification"
        one = class_ids or (problem == "regression" and self.num_labels == 1)
        shapes = [(rows,), (rows, 1)] if one else [(rows, self.num_labels)]
        if tuple(labels.shape) not in shapes or (class_ids and labels.is_floating_point()):
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not fit problem_type='{problem}' with "
                f"num_labels={self.num_labels}: pass {'whole' if class_ids else 'real'} numbers of shape {shapes[0]}, "
                "or set the problem_type that is meant"
            )
        if class_ids:
            check_labels(labels, None, self.num_labels)
        elif may_look_at(labels):
            several = problem == "multi_label_classification"
            wrong = labels[(labels != 0) & (labels != 1) if several else ~torch.isfinite(labels)]
            if wrong.numel():
                rule = "0 or 1 for each of several labels" if several else "finite numbers"
                raise ValueError(f"label {wrong[0].item()} does not fit problem_type='{problem}': pass {rule}")
        return labels.long() if class_ids else labels.to(torch.promote_types(self.dtype, torch.float32))

    def problem_of(self, labels: torch.Tensor) -> str:
        """`config.problem_type`, or where it is unset what the labels are by the rule of transformers' loss."""
        if self.config.problem_type is not None:
            return self.config.problem_type
        kind = "single" if labels.dtype in (torch.int32, torch.int64) else "multi"
        return "regression" if self.num_labels == 1 else f"{kind}_label_classification"

    def count_targets(self, labels: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        """Rows that the loss of this batch is a mean over: all, or those whose class id is not −100."""
        if labels is None:
            return torch.tensor(0)
        if self.problem_of(labels) == "single_label_classification":
            return (labels != -100).sum()
        return torch.tensor(len(labels), device=labels.device)

    def pack_output(self, weights: torch.Tensor | None, **fields: Any) -> SequenceClassifierOutputWithPast:
        """The output; heads that pool with attention add their weights."""
        return SequenceClassifierOutputWithPast(**fields)


class AudioClassificationHead(SequenceClassificationHead):
    """One label for a sound: the mean of the outputs over its frames, then a linear layer."""

    auto_model = "AutoModelForAudioClassification"
    main_input_name = "input_features"

    def __init__(self, config: Any):
        super().__init__(config)
        require_features(self, config)

    def pool(self, hidden_states: torch.Tensor, valid: torch.Tensor | None) -> Pooled:
        return mean_of_tokens(hidden_states, valid), None

    def forward(
        self,
        input_features: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, num_labels) of input_features (B, T, F); labels as in [`SequenceClassificationHead`]."""
        return super().forward(input_features=input_features, attention_mask=attention_mask, labels=labels, **kwargs)


class TokenClassificationHead(SequencePreTrainedModel):
    """A label for every token. Loss: mean of −log p over all labels that are not −100.

    With `config.crf` the labels of a row are scored together (Huang 2015, Lample 2016; see [`LinearChainCRF`]):

    - The chain is the row's tokens, padding left out. A token whose label is −100 (the later sub-words of a word)
      stays in it with its label unknown, so that the chain in training is the one in use.
    - Loss: the sum over rows of −log p(labels of the row), divided by the number of labels that are not −100, so that
      its scale is the softmax's. With `num_items_in_batch` the divisor is the global batch's.
    - Logits in training (`model.train()`) are the emissions, each token's own scores. In evaluation (`model.eval()`)
      they are the max-marginals: how much worse than the best path the best one through each label is. Their argmax at
      each token is the Viterbi path, so pipelines, metrics and whatever takes an argmax decode with Viterbi.
    - What computes a loss of its own from the logits (label smoothing, distillation) trains the emissions only.
    """

    auto_model = "AutoModelForTokenClassification"
    backbone_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.backbone_class(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.output_size, config.num_labels)
        self.crf = LinearChainCRF(config.num_labels) if config.crf else None
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
        input_features: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Logits (B, T, num_labels); labels (B, T), −100 where there is no token to label.

        Raises:
            ValueError: labels of another shape, or outside 0 … num_labels − 1.
        """
        if labels is not None:
            check_labels(labels, target_shape(input_ids, inputs_embeds, input_features), self.num_labels)
        kwargs |= only_given(token_type_ids=token_type_ids, global_attention_mask=global_attention_mask)
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            input_features=input_features,
            **kwargs,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if self.crf is not None:
            valid = valid_tokens(attention_mask, logits.shape[1])
            if valid is None:
                valid = logits.new_ones(logits.shape[:2], dtype=torch.bool)
            if labels is not None:
                likelihood = self.crf.log_likelihood(logits, labels, valid)
                targets = labels.masked_fill(~valid, -100)
                loss = -likelihood.sum() / count_targets(targets, kwargs.get("num_items_in_batch"))
            if not self.training:
                logits = self.crf.max_marginals(logits, valid)
        elif labels is not None:
            kwargs["num_items_in_batch"] = count_targets(labels, kwargs.get("num_items_in_batch"))
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class QuestionAnsweringHead(SequencePreTrainedModel):
    """The span of the text that answers a question: a score for each token to be its first, and to be its last.

    Loss: the mean of two means of −log p, over the rows whose answer begins in the text and over those whose answer
    ends there. No single count divides that: a trainer averages its accumulation steps (and its processes), which
    weighs a row more where the other rows of its step have no answer.
    """

    auto_model = "AutoModelForQuestionAnswering"
    accepts_loss_kwargs = False  # a mean over rows: Trainer divides it by the accumulation steps
    backbone_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        super().__init__(config)
        self.model = self.backbone_class(config)
        self.without_cache = without_cache(self.backbone_class)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.qa_outputs = nn.Linear(config.output_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Scores `start_logits` and `end_logits` (B, T), the lowest number under padding, where no answer is.

        Args:
            input_ids (B, T): question and text, one after the other as the tokenizer joins them.
            start_positions, end_positions (B,): the answer's first and last token. A position outside the T tokens,
                of an answer that was cut off, or under padding has no loss.

        Raises:
            ValueError: one of start_positions and end_positions without the other, positions that are not (B,) whole
                numbers, or `labels`.
        """
        if kwargs.get("labels") is not None:
            raise ValueError("question answering learns from start_positions and end_positions: leave labels out")
        if (start_positions is None) != (end_positions is None):
            raise ValueError("an answer has two ends: pass both start_positions and end_positions, or neither")
        wanted = target_shape(input_ids, inputs_embeds)
        for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
            if positions is not None and wanted is not None:
                check_positions(name, positions, wanted[0])
        kwargs |= (
            only_given(token_type_ids=token_type_ids, global_attention_mask=global_attention_mask) | self.without_cache
        )
        outputs = self.model(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        logits = self.qa_outputs(self.dropout(outputs.last_hidden_state))
        valid = valid_tokens(attention_mask, logits.shape[1])
        if valid is not None:
            logits = torch.where(valid[..., None], logits, torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            starts = span_loss(start_logits, start_positions, valid)
            loss = (starts + span_loss(end_logits, end_positions, valid)) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def span_loss(logits: torch.Tensor, positions: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean −log p of `positions` (B,) under scores (B, T), over the rows whose position is one of their tokens."""
    positions = positions.reshape(-1)
    inside = (positions >= 0) & (positions < logits.shape[1])
    if valid is not None:
        inside &= valid.gather(1, torch.where(inside, positions, 0)[:, None])[:, 0]
    targets = torch.where(inside, positions, -100)
    return nn.functional.cross_entropy(at_least_fp32(logits), targets, reduction="sum") / inside.sum().clamp(min=1)


def check_positions(name: str, positions: torch.Tensor, rows: int) -> None:
    """Raise ValueError unless the positions are `rows` whole numbers."""
    if tuple(positions.shape) not in ((rows,), (rows, 1)) or positions.is_floating_point():
        raise ValueError(
            f"{name} of shape {tuple(positions.shape)} and {positions.dtype} do not fit {rows} rows: pass whole "
            f"numbers of shape {(rows,)}"
        )


def without_cache(backbone_class: Any) -> dict[str, bool]:
    """What a head that reads a text once, and returns no state, tells a backbone that could build one."""
    return {"use_cache": False} if "use_cache" in argument_names(backbone_class) else {}


def at_least_fp32(logits: torch.Tensor) -> torch.Tensor:
    """What a loss is computed from: half precision is too coarse for a sum of exponentials."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def require_features(head: nn.Module, config: Any) -> None:
    """Raise ValueError unless the model reads features, as sounds and series are."""
    if config.num_features is None:
        raise ValueError(
            f"{type(head).__name__} reads features: set num_features to the width of a frame (80 for log-mel)"
        )


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


def mean_of_tokens(hidden_states: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """(B, T, D) → (B, D): the mean over each row's tokens, zero for a row of padding only."""
    if valid is None:
        return hidden_states.mean(1)
    total = torch.where(valid[..., None], hidden_states, 0.0).sum(1)
    return total / valid.sum(1, keepdim=True).clamp(min=1)
