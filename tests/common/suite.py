"""transformers' common tests on every architecture: one test class each, made from the table ARCHITECTURES.

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
from hf_seqmodels.models._base import SequencePreTrainedModel

# The upstream tests ask these tables which labels a class takes.
NAME_TABLES = {
    "backbone": modeling_auto.MODEL_MAPPING_NAMES,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}

# Upstream tests that we choose not to run: architecture ("*": all) → test → why.
OWN_SKIPS: dict[str, dict[str, str]] = {
    "*": {
        "test_generation_tester_mixin_inheritance": (
            "asks for upstream's generation tests, which the source archive does not have; ours are in tests/"
        ),
    },
}

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}


class Tester:
    """Sizes, configuration and inputs of one architecture, under the names that the upstream tests read."""

    is_training = True
    batch_size = 13
    seq_length = 7
    num_attention_heads = 1  # an attention-RNN attends with one; the Transformer's configuration says otherwise

    def __init__(self, architecture: Architecture):
        self.config_class = architecture.config
        self.base_model_class = architecture.models["backbone"]
        self.causal_lm_class = architecture.models["causal-lm"]
        for name, value in self.get_config().to_dict().items():
            if name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
                setattr(self, name, value)

    def get_config(self) -> Any:
        return self.config_class(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """A batch of rows of 1 to 7 tokens, padded on the right."""
        input_ids = torch.randint(1, SIZES["vocab_size"], (self.batch_size, self.seq_length))
        attention_mask = torch.ones_like(input_ids).tril()
        return self.get_config(), {"input_ids": input_ids, "attention_mask": attention_mask}


class CommonTests(ModelTesterMixin, TrainingTesterMixin):
    """What the test classes of all architectures have."""

    architecture: ClassVar[Architecture]
    model_tester: Any = None
    test_can_init_all_missing_weights_before_2023 = True  # upstream skips models of unknown age without it
    training_overfit_learning_rate = 1e-2  # upstream's 1e-3 is a Transformer's; 300 steps of it leave an LSTM half-way

    def setUp(self) -> None:
        self.model_tester = Tester(self.architecture)

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


def make_test_class(model_type: str, architecture: Architecture) -> type:
    """The test class of one architecture."""
    backbone = architecture.models["backbone"]
    for head, model in architecture.models.items():
        NAME_TABLES[head][model_type] = model.__name__
    body: dict[str, Any] = {
        "architecture": architecture,
        "all_model_classes": tuple(architecture.models.values()),
        "has_attentions": "attentions" in backbone._can_record_outputs,
    }
    own_skips = OWN_SKIPS["*"] | OWN_SKIPS.get(model_type, {})
    tests = {name: unittest.skip(f"ours: {reason}")(getattr(CommonTests, name)) for name, reason in own_skips.items()}
    return type(model_type, (CommonTests, unittest.TestCase), body | tests)


globals().update({name: make_test_class(name, architecture) for name, architecture in ARCHITECTURES.items()})
