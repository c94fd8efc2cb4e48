"""A transformers encoder under a recurrent network, as RoBERTa-LSTM (Tan 2022): its configuration, building, loading.

The encoder is always built from its configuration. Only [`load_encoder`] reads a checkpoint, the one that its caller
names; a path or code that stands in a file is never followed.
"""

import copy
import inspect
import os
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
)

from .shared_configuration import refuse_unknown_kernels
from .shared_versions import PreTrainedConfig

SUB_CONFIGS = {"encoder": AutoConfig}  # how transformers reads the encoder's part of a configuration
POINTERS = ("_name_or_path", "name_or_path", "auto_map")  # to weights and code elsewhere


def make_encoder_config(value: dict | PreTrainedConfig) -> PreTrainedConfig:
    """The encoder's own configuration, from a dictionary with its `model_type` or from one of transformers.

    Raises:
        ValueError: a type that is unknown or does not encode text, or kernels of a name that is not transformers' own.
    """
    if isinstance(value, PreTrainedConfig):
        config = copy.deepcopy(value)
        for name in POINTERS:
            vars(config).pop(name, None)
        config._name_or_path = ""
    else:
        settings = _without_pointers(value)
        model_type = settings.pop("model_type", None)
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f"encoder: model_type={model_type!r} is not known to transformers: name one of its encoders ('bert', "
                "'roberta', …), or import the package that registers this one"
            )
        config = CONFIG_MAPPING[model_type](**settings)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING and type(config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise ValueError(
            f"encoder: model_type={config.model_type!r} does not encode text: take a type that has a masked language "
            "model or a text encoder in transformers, such as 'bert', 'roberta' or 't5'"
        )
    if config.is_encoder_decoder and type(config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise ValueError(
            f"encoder: transformers has no class for the encoder of {config.model_type!r} alone: take 't5', 'mt5', "
            "'umt5', or an encoder such as 'roberta'"
        )
    if isinstance(MODEL_MAPPING.get(type(config), None), tuple):  # Funnel, which pools over neighbours, padding or not
        raise ValueError(
            f"encoder: model_type={config.model_type!r} has several models in transformers: take a type that has one, "
            "such as 'roberta'"
        )
    return config


def _without_pointers(settings: dict) -> dict:
    """A copy without pointers to other places, at any depth; raises ValueError at kernels of unknown names."""
    refuse_unknown_kernels(settings)
    return {
        key: _without_pointers(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in POINTERS
    }


def _auto_class(config: PreTrainedConfig) -> tuple[Any, dict[str, Any]]:
    """The Auto class of a configuration's encoder (T5's without the decoder), and options that leave out a pooler."""
    encodes_text = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
    auto, mapping = (
        (AutoModelForTextEncoding, MODEL_FOR_TEXT_ENCODING_MAPPING) if encodes_text else (AutoModel, MODEL_MAPPING)
    )
    model: Any = mapping[type(config)]
    pools = "add_pooling_layer" in inspect.signature(model.__init__).parameters
    return auto, {"add_pooling_layer": False} if pools else {}


def build_encoder(config: PreTrainedConfig) -> Any:
    """An encoder with fresh weights, in the dtype of the model that is being built around it."""
    auto, options = _auto_class(config)
    encoder = auto.from_config(config, dtype=torch.get_default_dtype(), **options)
    if encoder.main_input_name != "input_ids" or "attention_mask" not in inspect.signature(encoder.forward).parameters:
        raise ValueError(
            f"encoder: {type(encoder).__name__} does not take input_ids with an attention_mask: take one that does, "
            "such as 'roberta'"
        )
    return encoder


def check_encoder_inputs(encoder: Any, inputs: dict[str, torch.Tensor]) -> None:
    """Name what does not fit into the encoder's tables; on the CPU only, elsewhere the look would wait for the device.

    Args:
        inputs: `input_ids` (B, T), with the encoder's padding token for padding, or `inputs_embeds` (B, T, E); and
            `token_type_ids` or `position_ids` (B, T), if given.

    Raises:
        ValueError: more tokens than the encoder has positions, or a token type that it does not have.
    """
    given = inputs["inputs_embeds"] if "inputs_embeds" in inputs else inputs["input_ids"]
    if given.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    tables = {name.rpartition(".")[2]: module for name, module in encoder.named_modules()}
    positions = tables.get("position_embeddings", tables.get("embed_positions"))
    most = getattr(encoder.config, "max_position_embeddings", None)
    if positions is not None and most is not None and "position_ids" not in inputs:
        tokens, pad = given.shape[1], getattr(positions, "padding_idx", None)
        if pad is not None:  # as RoBERTa: the first token's position is pad + 1, and padding is not counted
            most -= pad + 1
            tokens = tokens if given.ndim == 3 else int((given != pad).sum(1).max())
        if tokens > most:
            raise ValueError(f"a text of {tokens} tokens is beyond the encoder's {most} positions: cut it off there")
    kinds, table = inputs.get("token_type_ids"), tables.get("token_type_embeddings")
    if kinds is not None and table is not None:
        number = table.weight.shape[0]
        wrong = kinds[(kinds < 0) | (kinds >= number)]
        if wrong.numel():
            raise ValueError(
                f"token_type_ids: the encoder has no type {wrong[0].item()}, it has {number} (0 to {number - 1})"
            )


def load_encoder(source: Any) -> Any:
    """A pretrained encoder: of a checkpoint's name or path (safetensors only), or a model of transformers, as it is.

    Raises:
        ValueError: tensors of the encoder are missing in the checkpoint.
    """
    if isinstance(source, nn.Module):
        return source.base_model
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"encoder={source!r} is not allowed: it must be the name or path of a checkpoint, or a model")
    config = AutoConfig.from_pretrained(source)
    auto, options = _auto_class(make_encoder_config(config))
    encoder, info = auto.from_pretrained(
        source, config=config, use_safetensors=True, output_loading_info=True, **options
    )
    _refuse_missing(source, info["missing_keys"])
    return encoder


def copy_encoder(source: Any, encoder: Any) -> None:
    """Copy the weights of a pretrained model into `encoder`; what it has no place for (a pooler) is left out."""
    found = encoder.load_state_dict(source.state_dict(), strict=False)
    _refuse_missing(type(source).__name__, found.missing_keys)


def _refuse_missing(source: Any, missing: Any) -> None:
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} tensors of the encoder, the first is '{min(missing)}': take a checkpoint "
            "of the whole encoder"
        )
