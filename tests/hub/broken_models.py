"""Models with one fault each, for the doctor: this file is copied into a checkpoint as its own modelling code."""

import torch
from transformers import BertForTokenClassification, BertModel, GPT2ForTokenClassification, GPT2LMHeadModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import TokenClassifierOutput


class Healthy(GPT2LMHeadModel):
    """No fault: what the others would be."""


class UninitialisedBuffer(GPT2LMHeadModel):
    """A buffer that is in no file, and that loading therefore does not fill."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("offsets", torch.arange(3.0), persistent=False)
        self.post_init()


class WrongBuffer(GPT2LMHeadModel):
    """A buffer that loading fills with something else than building does."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("offsets", torch.arange(3.0), persistent=False)
        self.post_init()
        self.offsets = torch.arange(3.0)

    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            torch.nn.init.zeros_(self.offsets)


class ForgottenTensor(GPT2LMHeadModel):
    """A plain attribute made while the model is only described."""

    def __init__(self, config):
        super().__init__(config)
        self.table = {"sums": [torch.arange(3.0)]}
        self.post_init()


class DrawnAtLoading(GPT2LMHeadModel):
    """Declares that one of its own tensors need not be in the file: it is drawn anew each time."""

    _keys_to_ignore_on_load_missing = [r"extra"]

    def __init__(self, config):
        super().__init__(config)
        self.extra = torch.nn.Linear(2, 2)
        self.post_init()


class SeesPadding(BertForTokenClassification):
    """Leaves the mask out."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None):
        return super().forward(input_ids, position_ids=position_ids)


class SeesPaddingOnTheLeft(GPT2LMHeadModel):
    """Leaves the mask out; a model that sees the left only is not hurt by padding on the right."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        return super().forward(input_ids, position_ids=position_ids, past_key_values=past_key_values, **kwargs)


class SeesPaddingOnTheRight(GPT2ForTokenClassification):
    """Its last column goes into every token's score."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None):
        logits = super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids).logits
        return TokenClassifierOutput(logits=logits + logits[:, -1:])


class SeesTheBatch(BertModel):
    """Rows know of each other."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None):
        outputs = super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids)
        outputs.last_hidden_state = outputs.last_hidden_state + outputs.last_hidden_state[:1]
        return outputs


class NoNumberBesideThePadding(BertModel):
    """Rows with much padding become NaN, which comparisons with < and max() like to overlook."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None):
        outputs = super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids)
        if attention_mask is not None:
            outputs.last_hidden_state[(attention_mask == 0).sum(1) > 4] = float("nan")
        return outputs


class ForgetfulCache(GPT2LMHeadModel):
    """With a cache, steps after the first are off by a little: greedy text is still the same."""

    def forward(self, input_ids=None, past_key_values=None, **kwargs):
        steps = past_key_values is not None and past_key_values.get_seq_length() > 0
        outputs = super().forward(input_ids, past_key_values=past_key_values, **kwargs)
        if steps:
            outputs.logits = outputs.logits * 1.01
        return outputs


class ForgetsThePadding(GPT2LMHeadModel):
    """With a cache, steps after the first see the padding."""

    def forward(self, input_ids=None, past_key_values=None, attention_mask=None, position_ids=None, **kwargs):
        steps = past_key_values is not None and past_key_values.get_seq_length() > 0
        mask = None if steps else attention_mask
        return super().forward(input_ids, past_key_values, attention_mask=mask, position_ids=position_ids, **kwargs)


class UnaskedCache(GPT2LMHeadModel):
    """Returns a state although none was asked for."""

    def forward(self, input_ids=None, use_cache=None, past_key_values=None, **kwargs):
        return super().forward(input_ids, past_key_values=past_key_values, use_cache=True, **kwargs)


class StuckCache(DynamicCache):
    """Rows stay where they are when beams change places."""

    def reorder_cache(self, beam_idx):
        pass


class StuckBeams(GPT2LMHeadModel):
    """Beams read each other's past."""

    def forward(self, input_ids=None, past_key_values=None, **kwargs):
        if past_key_values is not None and not isinstance(past_key_values, StuckCache):
            past_key_values.__class__ = StuckCache
        return super().forward(input_ids, past_key_values=past_key_values, **kwargs)


class TiesWithoutBeingAsked(GPT2LMHeadModel):
    """Shares the embeddings whatever config.json says."""

    def tie_weights(self, *args, **kwargs):
        self.lm_head.weight = self.transformer.wte.weight


class NeverTies(GPT2LMHeadModel):
    """Keeps the embeddings apart whatever config.json says."""

    def tie_weights(self, *args, **kwargs):
        pass


class DropsTheCount(GPT2LMHeadModel):
    """Takes `num_items_in_batch` and forgets it, as many heads do."""

    def forward(self, input_ids=None, labels=None, num_items_in_batch=None, **kwargs):
        return super().forward(input_ids, labels=labels, **kwargs)


class MeansOfMeans(GPT2LMHeadModel):
    """Says that it takes no count: right for rows, wrong for tokens."""

    accepts_loss_kwargs = False


class GrowsWhenSaved(GPT2LMHeadModel):
    """Saves a little more than it has."""

    def save_pretrained(self, folder, **kwargs):
        more = type(self)(self.config)
        more.load_state_dict({key: value * (1 + 2**-20) for key, value in self.state_dict().items()})
        GPT2LMHeadModel.save_pretrained(more, folder, **kwargs)


class RefusesToLoad(GPT2LMHeadModel):
    """Its own from_pretrained fails."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        raise RuntimeError("this model cannot be loaded")
