"""transformers' common tests on every architecture, made from the table ARCHITECTURES.

One test class for all heads that one configuration fits: tokens; features (`_features`); both directions, for the
masked language model of recurrent networks (`_bidirectional`); series (`_series`); the attention patterns of the
Transformers (`_sliding_window`, `_lsh`).

Run with `make common-tests`, not collected by `make test` (the upstream tests are downloaded).
"""

import tempfile
import unittest
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from hf_seqmodels.models import ARCHITECTURES, Architecture
from hf_seqmodels.models.shared_base import SequencePreTrainedModel

# The upstream tests ask these tables which labels a class takes.
NAME_TABLES = {
    "backbone": modeling_auto.MODEL_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq-lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question-answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "ctc": modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES,
    "audio-classification": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "time-series-prediction": modeling_auto.MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING_NAMES,
}
RECURRENT = ("seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn")

# Upstream tests that we choose not to run, and why: for all architectures, those without tokens, encoder–decoders.
OWN_SKIPS = {
    "test_generation_tester_mixin_inheritance": (
        "asks for upstream's generation tests, which the source archive does not have; ours are in tests/"
    ),
}

NO_TOKENS = dict.fromkeys(
    ("test_model_get_set_embeddings", "test_resize_tokens_embeddings", "test_resize_embeddings_untied"),
    "reads no tokens: there is no table of them",
) | {"test_training_overfit": "upstream trains on tokens only"}
NO_CONTINUATION = {
    "test_training_overfit": (
        "upstream has the text continued from its own first token, which an encoder–decoder does not do; "
        "`make smoke-learning` trains ours"
    ),
}

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}
FEATURES = 32  # upstream asks for hidden_size in the first hidden states, which are the features
FRAME = (1, 5, 6)  # channels, height and width of a picture
# Windows and chunks that are shorter than the text.
PATTERNS: dict[str, dict[str, Any]] = {
    "sliding_window": {"attention_pattern": "sliding_window", "attention_window": 2, "num_global_tokens": 1},
    "lsh": {"attention_pattern": "lsh", "num_buckets": 2, "lsh_chunk_length": 2},
}
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BLANK = {"pad_token_id": 98}  # upstream's labels are zeros, which must not be the blank of CTC


class Tester:
    """Sizes, configuration and inputs of one test class, under the names that the upstream tests read."""

    is_training = True
    batch_size = 13
    seq_length = 7
    num_attention_heads = 1  # an attention-RNN attends with one; a Transformer's configuration says otherwise

    def __init__(self, architecture: Architecture, heads: list[str], options: dict[str, Any]):
        self.config_class = architecture.config
        self.options = options
        self.base_model_class = architecture.models["backbone"]
        self.heads = heads
        if "causal-lm" in heads:
            self.causal_lm_class = architecture.models["causal-lm"]
        config = self.get_config()
        self.is_encoder_decoder = config.is_encoder_decoder
        for name, value in config.to_dict().items():
            if name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
                setattr(self, name, value)
        if "num_channels" in config.to_dict():  # the last two axes of its hidden states are those of a frame
            _, self.encoder_seq_length, self.hidden_size = FRAME

    def get_config(self) -> Any:
        return self.config_class(**(SIZES | TOKEN_IDS | self.options))

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """A batch of rows of 1 to 7 tokens, padded on the right."""
        return self.get_config(), self.make_inputs()

    def make_inputs(self) -> dict[str, torch.Tensor]:
        """What the heads read, by name; upstream adds the labels that it knows of."""
        shape = (self.batch_size, self.seq_length)
        mask = torch.ones(shape, dtype=torch.long).tril()
        if "num_channels" in self.get_config().to_dict():
            return {"pixel_values": torch.rand(*shape, *FRAME), "attention_mask": mask}
        if self.heads == ["time-series-prediction"]:
            return {"past_values": torch.randn(*shape, FEATURES), "attention_mask": mask}
        if "num_features" in self.options:
            return {"input_features": torch.randn(*shape, FEATURES), "attention_mask": mask}
        ids = torch.randint(1, SIZES["vocab_size"], shape)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.is_encoder_decoder:
            inputs |= {"decoder_input_ids": ids.flip(0), "decoder_attention_mask": mask}
        return inputs


class CommonTests(ModelTesterMixin, TrainingTesterMixin):
    """What the test classes of all architectures have."""

    architecture: ClassVar[Architecture]
    heads: ClassVar[list[str]]
    options: ClassVar[dict[str, Any]]
    model_tester: Any = None
    has_attentions: bool
    test_can_init_all_missing_weights_before_2023 = True  # upstream skips models of unknown age without it
    training_overfit_learning_rate = 1e-2  # upstream's 1e-3 is a Transformer's; 300 steps of it leave an LSTM half-way

    def setUp(self) -> None:
        self.model_tester = Tester(self.architecture, self.heads, self.options)

    def _prepare_config_and_inputs_for_retain_grad_hidden_states_attentions(self) -> tuple[Any, dict]:
        """Features are the first hidden states, and get a gradient only if they are asked to."""
        config, inputs = super()._prepare_config_and_inputs_for_retain_grad_hidden_states_attentions()
        for value in inputs.values():
            if value.is_floating_point():
                value.requires_grad_()
        return config, inputs

    def _prepare_for_class(self, inputs_dict: dict, model_class: Any, return_labels: bool = False) -> dict:
        """Upstream knows the labels of all heads but of the one that predicts series."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is self.architecture.models.get("time-series-prediction"):
            config = self.model_tester.get_config()
            values = inputs[model_class.main_input_name]
            inputs["future_values"] = torch.zeros(len(values), config.prediction_length, *values.shape[2:])
        return inputs

    def _get_trainable_model_class(self) -> Any:
        """What upstream trains on tokens: a language model."""
        models = self.architecture.models
        return models["causal-lm" if "causal-lm" in self.heads else "masked-lm"]

    def test_inputs_embeds_matches_input_ids(self, **options: Any) -> None:
        """Upstream embeds source and target with one table, which ours do if they are told to."""
        if self.is_encoder_decoder:
            self.model_tester = Tester(self.architecture, self.heads, self.options | {"share_embeddings": True})
        super().test_inputs_embeds_matches_input_ids(**options)

    def test_retain_grad_hidden_states_attentions(self) -> None:
        """The weights of an attention pattern have no gradient: a copy, in the order of the text, of those that are
        computed with.
        """
        self.has_attentions = self.has_attentions and "attention_pattern" not in self.options
        super().test_retain_grad_hidden_states_attentions()

    def test_config(self) -> None:
        properties = ["hidden_size", "num_hidden_layers"]
        ConfigTester(self, self.architecture.config, common_properties=properties, **SIZES).run_common_tests()

    def test_model_weights_reload_no_missing_tied_weights(self) -> None:
        """Upstream loads a file without any of the weights and compares the report with the parameters. Ours is a
        refusal, so the test runs on transformers' own loader, and then ours has to refuse the same file.
        """
        upstream_loader = classmethod(PreTrainedModel.from_pretrained.__func__)
        with patch.object(SequencePreTrainedModel, "from_pretrained", upstream_loader):
            super().test_model_weights_reload_no_missing_tied_weights()
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                save_file({"tensor": torch.zeros(1)}, Path(folder, "model.safetensors"), metadata={"format": "pt"})
                with self.assertRaisesRegex(ValueError, f"lacks {len(model.state_dict())} tensors"):
                    model_class.from_pretrained(folder)


def make_test_class(model_type: str, architecture: Architecture, heads: list[str], options: dict[str, Any]) -> type:
    """The test class of those heads of an architecture that one configuration fits."""
    backbone = architecture.models["backbone"]
    for head in heads:
        NAME_TABLES[head][model_type] = architecture.models[head].__name__
    is_encoder_decoder = architecture.config().is_encoder_decoder
    reads_tokens = model_type != "seq_conv_lstm" and "num_features" not in options
    body: dict[str, Any] = {
        "architecture": architecture,
        "heads": heads,
        "options": options,
        "all_model_classes": tuple(architecture.models[head] for head in heads),
        "is_encoder_decoder": is_encoder_decoder,
        "has_attentions": "attentions" in (backbone._can_record_outputs or {}) and not options.get("bidirectional"),
    }
    own_skips = OWN_SKIPS | ({} if reads_tokens else NO_TOKENS) | (NO_CONTINUATION if is_encoder_decoder else {})
    tests = {name: unittest.skip(f"ours: {reason}")(getattr(CommonTests, name)) for name, reason in own_skips.items()}
    return type(model_type, (CommonTests, unittest.TestCase), body | tests)


def make_test_classes() -> dict[str, type]:
    """Name → class, over the whole table."""
    found = {}
    for model_type, architecture in ARCHITECTURES.items():
        groups: dict[str, tuple[list[str], dict[str, Any]]] = {}
        if model_type != "seq_conv_lstm":
            groups["_features"] = (["ctc", "audio-classification"], {"num_features": FEATURES} | BLANK)
            groups["_series"] = (["time-series-prediction"], {"num_features": FEATURES})
        if model_type in RECURRENT:
            groups["_bidirectional"] = (["masked-lm"], {"bidirectional": True})
        special = {head for heads, _ in groups.values() for head in heads}
        plain = [head for head in architecture.models if head not in special]
        groups = {"": (plain, {})} | groups
        if "attention_pattern" in architecture.config().to_dict():
            groups |= {f"_{pattern}": (plain, options) for pattern, options in PATTERNS.items()}
        for suffix, (heads, options) in groups.items():
            present = [head for head in heads if head in architecture.models]
            if present:
                found[model_type + suffix] = make_test_class(model_type, architecture, present, options)
    return found


globals().update(make_test_classes())
