"""Head over any encoder–decoder that writes text: the sequence-to-sequence language model, and its shifted labels."""

from typing import Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from .shared_heads import TokenPredictionHead, count_targets
from .shared_seq2seq import EmbeddingTables, check_decoder_inputs


class Seq2SeqLMHead(EmbeddingTables, TokenPredictionHead, GenerationMixin):
    """An encoder–decoder and a linear layer from the decoder's output to the vocabulary.

    Loss: mean of −log p over all targets that are not −100. The output layer shares the decoder's embedding matrix
    with `tie_word_embeddings`; encoder and decoder share one with `share_embeddings`.
    """

    auto_model = "AutoModelForSeq2SeqLM"

    def __init__(self, config: Any):
        shared = getattr(config, "share_embeddings", False)  # another architecture's configuration is refused below
        table = "encoder" if shared else "decoder"  # where the decoder's embedding matrix is
        self._tied_weights_keys = {"lm_head.weight": f"model.{table}.embed_tokens.weight"}
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # the same loss, given targets that need no shift

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        input_features: torch.FloatTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits (B, T, V) of the next target token after each of the decoder's inputs.

        Args:
            labels (B, T): the target's token ids, −100 where there is none; `logits[:, t]` predicts `labels[:, t]`.
                Without decoder inputs they are made from the labels, shifted right by one (teacher forcing); without
                a decoder mask, decoder inputs that are the shifted labels are masked as the labels are.
            input_features (B, S, F), decoder_position_ids (B, T): read by backbones that have such. Named here because
                Trainer and `generate()` give them only to models that name them.
            num_items_in_batch: targets in the global batch, by which the summed loss is divided (Trainer passes it);
                without it the loss is the mean over this call's targets.
            Other arguments: see the backbone.

        Returns:
            `loss`, `logits`, `past_key_values`, `decoder_hidden_states`, `cross_attentions`,
            `encoder_last_hidden_state`, …

        Raises:
            ValueError: neither decoder inputs nor labels, a label outside the vocabulary, or labels of another shape.
        """
        if labels is not None:
            check_targets(labels, self.config.vocab_size)
        if labels is not None and decoder_inputs_embeds is None:
            decoder_input_ids, mask = self.read_labels(labels, decoder_input_ids)
            if decoder_attention_mask is None and past_key_values is None:
                decoder_attention_mask = mask
        check_decoder_inputs(decoder_input_ids, decoder_inputs_embeds, "labels, ")
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            input_features=input_features,
            decoder_position_ids=decoder_position_ids,
            **kwargs,
        )
        logits = self.predict(outputs.last_hidden_state)
        return Seq2SeqLMOutput(
            loss=None if labels is None else self.compute_loss(logits, labels, **kwargs),
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )

    def read_labels(
        self, labels: torch.LongTensor, decoder_input_ids: torch.LongTensor | None
    ) -> tuple[torch.LongTensor, torch.Tensor | None]:
        """The decoder's inputs (B, T), made from the labels (B, T) if there are none, and their mask if they are that.

        `DataCollatorForSeq2Seq` gives inputs that are made from the labels, and no mask.
        """
        shifted, targets = self.prepare_decoder_input_ids_from_labels(labels), labels != -100
        if decoder_input_ids is None:
            return shifted, targets.long()
        if decoder_input_ids.shape != labels.shape:
            return decoder_input_ids, None
        same = (decoder_input_ids == shifted).all()  # not looked at here, which would wait for the device
        return decoder_input_ids, (targets | ~same).long()

    def compute_loss(self, logits: torch.Tensor, labels: torch.LongTensor, **kwargs: Any) -> torch.Tensor:
        """The loss of logits (B, T, V) and labels (B, T), which are shifted already: position t predicts label t."""
        if labels.shape != logits.shape[:2]:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit decoder inputs of {tuple(logits.shape[:2])}: "
                "give every input the token that comes next, or −100"
            )
        kwargs["num_items_in_batch"] = count_targets(labels, kwargs.get("num_items_in_batch"))
        kwargs |= {"labels": labels, "shift_labels": labels}
        return self.loss_function(logits=logits, vocab_size=self.config.vocab_size, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers, which would read all of a continued target again where it has no mask to count by."""
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if next_sequence_length is None and past_length:
            next_sequence_length = input_ids.shape[1] - past_length
            if next_sequence_length < 1:
                raise ValueError(
                    f"past_key_values holds {past_length} tokens and decoder_input_ids only {input_ids.shape[1]}: "
                    "pass the whole target, those tokens and at least one more"
                )
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, next_sequence_length, past_key_values, *args, **kwargs
        )

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Labels (B, T) → decoder inputs (B, T); `DataCollatorForSeq2Seq(model=…)` calls this."""
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id or 0)


def shift_right(labels: torch.LongTensor, start_token_id: int, pad_token_id: int) -> torch.LongTensor:
    """The decoder's inputs for `labels` (B, T): before each target the row's target before it, at first the start.

    With −100 at the end only, this is the usual shift by one column; −100 elsewhere (padding on the left) becomes
    `pad_token_id`, and the row's targets still follow on one another.
    """
    targets = labels != -100
    columns = torch.arange(labels.shape[1], device=labels.device)
    latest = torch.where(targets, columns, -1).cummax(dim=1).values  # the last target up to each column, −1: none yet
    before = torch.cat([torch.full_like(latest[:, :1], -1), latest[:, :-1]], dim=1)
    previous = labels.gather(1, before.clamp(min=0)).masked_fill(before < 0, start_token_id)
    reads = targets | (before == columns - 1) & (before >= 0)  # one step after the last target, as everybody does
    return previous.masked_fill(~reads, pad_token_id)  # type: ignore[return-value]


def check_targets(labels: torch.Tensor, vocab_size: int) -> None:
    """Name the label that is no token; on the CPU only, elsewhere the look would wait for the device."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    wrong = labels[((labels < 0) | (labels >= vocab_size)) & (labels != -100)]
    if wrong.numel():
        raise ValueError(
            f"label {wrong[0].item()} is outside the vocabulary of {vocab_size} (ids 0 to {vocab_size - 1}): use this "
            "model's tokenizer, and −100 where there is no target"
        )


__all__ = ["Seq2SeqLMHead", "shift_right"]
