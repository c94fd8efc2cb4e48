"""GPT-2, BERT and T5 of transformers into our Transformers.

Positions count a row's tokens in ours and columns in theirs, so outputs agree with padding on the right (T5: on either
side); where padding stands on the left or between tokens, ours gives what the row gives alone.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from ..models import ARCHITECTURES
from .files import read_tensors
from .report import ImportReport, make_report, random_tokens
from .tensors import Tensors, build

ACTIVATIONS = {"gelu": "gelu", "relu": "relu"} | dict.fromkeys(("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
GATES = dict.fromkeys(("gelu_new", "gelu_pytorch_tanh"), "geglu") | dict.fromkeys(("silu", "swish"), "swiglu")
KEPT = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
LABELS = ("id2label", "label2id", "problem_type")
# Tensors in published checkpoints that belong to none of the classes below: BERT's next-sentence head and pooler,
# GPT-2's constant masks.
LEFT_OUT = re.compile(r"(cls\.seq_relationship|(bert\.)?pooler)\..*|(.*\.)?attn\.(bias|masked_bias)")
BATCH, TIME = 3, 12  # of the random input

Weights = dict[str, torch.Tensor]


def from_transformers(source: PreTrainedModel) -> tuple[PreTrainedModel, ImportReport]:
    """A model of transformers as one of ours.

    - GPT2Model, GPT2LMHeadModel → seq_transformer_decoder
    - BertModel (without its pooler), BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification,
      BertForQuestionAnswering, T5EncoderModel → seq_transformer_encoder
    - T5Model, T5ForConditionalGeneration (v1.0 and v1.1) → seq_transformer

    T5 does not divide its scores by √K: its query projections are multiplied by it instead. Where it divides the
    decoder's output by √D before the output layer, the decoder's last norm is.

    Returns:
        Our model in eval mode and fp32, and its report: the largest output difference on random tokens with padding.

    Raises:
        ValueError: another class, an option that ours lacks, the first tensor that does not fit, or other outputs.
    """
    name = type(source).__name__
    if name not in READERS:
        raise ValueError(f"{name} cannot be imported: the classes that can are {', '.join(READERS)}")
    source = copy.deepcopy(source).cpu().float().eval()
    tensors = Tensors(source.state_dict(), name)
    model_type, head, options, weights = READERS[name](source.config, tensors, name)
    kept = {key: getattr(source.config, key, None) for key in KEPT}
    options |= {key: value for key, value in kept.items() if value is not None}
    if head in ("sequence-classification", "token-classification"):
        options |= {key: getattr(source.config, key) for key in LABELS}
    tensors.finish()
    architecture = ARCHITECTURES[model_type]
    model = build(architecture.models[head], architecture.config(**options), weights)
    return model, _compare(name, tensors.taken, model, source)


def import_folder(path: str | Path, *, torch_load: bool = False) -> tuple[PreTrainedModel, ImportReport]:
    """[`from_transformers`] for a checkpoint's folder (`hf-seqmodels import --from transformers`).

    The class is the one that config.json names in `architectures`. Nothing is downloaded and no code is run.
    """
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json: name the folder of a checkpoint of transformers")
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    name = (config.architectures or ["?"])[0]
    if name not in READERS:
        raise ValueError(f"{path} holds a {name}: the classes that can be imported are {', '.join(READERS)}")
    loaded, info = _load(name, config, read_tensors(path, torch_load))
    missing = [key for key in sorted(info["missing_keys"]) if name != "BertModel" or not key.startswith("pooler.")]
    unexpected = [key for key in sorted(info["unexpected_keys"]) if not LEFT_OUT.fullmatch(key)]
    for kind, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            raise ValueError(f"{name}: tensor '{keys[0]}' is {kind}, {len(keys)} such in all")
    for key, found, expected in sorted(info["mismatched_keys"]):
        raise ValueError(f"{name}: tensor '{key}' has shape {tuple(found)}, expected {tuple(expected)}")
    return from_transformers(loaded)


def _load(name: str, config: Any, tensors: Weights) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The source, and what did not fit, of which transformers would print a table beside the one line of ours."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return getattr(transformers, name).from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named with the rest
            dtype=torch.float32,
        )
    finally:
        logging.set_verbosity(verbosity)


class _Reader:
    """Takes a source's linear layers and norms, and notes them under our names."""

    def __init__(self, tensors: Tensors, bias: bool = True, transposed: bool = False):
        self.tensors, self.bias, self.transposed = tensors, bias, transposed
        self.weights: Weights = {}

    def linear(self, ours: str, theirs: str, rows: int, columns: int) -> None:
        """A layer from `columns` to `rows` values."""
        shape = (columns, rows) if self.transposed else (rows, columns)
        weight = self.tensors.take(f"{theirs}.weight", *shape)
        self.weights[f"{ours}.weight"] = weight.T.contiguous() if self.transposed else weight
        if self.bias:
            self.weights[f"{ours}.bias"] = self.tensors.take(f"{theirs}.bias", rows)

    def vector(self, ours: str, theirs: str, width: int, ends: tuple[str, ...] = ("weight", "bias")) -> None:
        """A norm."""
        for end in ends:
            self.weights[f"{ours}.{end}"] = self.tensors.take(f"{theirs}.{end}", width)

    def scale(self, ours: str, factor: float) -> None:
        """Multiply what was read; not in place, since the source may keep its numbers in the same memory."""
        self.weights[ours] = self.weights[ours] * factor

    def table(self, ours: str, theirs: str, rows: int, width: int) -> None:
        """An embedding."""
        self.weights[f"{ours}.weight"] = self.tensors.take(f"{theirs}.weight", rows, width)


def _refuse(name: str, config: Any, **wanted: Any) -> None:
    """Raise ValueError for the first option that is set to something ours lacks."""
    for option, value in wanted.items():
        if getattr(config, option, value) != value:
            raise ValueError(f"{name}: {option}={getattr(config, option)!r} is not supported, only {value!r}")


def _activation(name: str, option: str, value: str, known: dict[str, str]) -> str:
    if value not in known:
        raise ValueError(f"{name}: {option}={value!r} is not supported, only {', '.join(known)}")
    return known[value]


def _read_gpt2(config: Any, tensors: Tensors, name: str) -> tuple[str, str, dict[str, Any], Weights]:
    """Radford 2019: linear layers are kept transposed, and query, key and value in one."""
    _refuse(name, config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    with_head = name == "GPT2LMHeadModel"
    theirs, ours = ("transformer.", "model.") if with_head else ("", "")
    width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    read = _Reader(tensors, transposed=True)
    read.table(f"{ours}embed_tokens", f"{theirs}wte", config.vocab_size, width)
    read.table(f"{ours}embed_positions", f"{theirs}wpe", config.n_positions, width)
    read.vector(f"{ours}norm", f"{theirs}ln_f", width)
    for index in range(config.n_layer):
        layer, block = f"{ours}layers.{index}", f"{theirs}h.{index}"
        tensors.leave_out(f"{block}.attn.bias", f"{block}.attn.masked_bias")
        read.linear("fused", f"{block}.attn.c_attn", 3 * width, width)
        for end in ("weight", "bias"):
            parts = read.weights.pop(f"fused.{end}").chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                read.weights[f"{layer}.self_attn.{letter}_proj.{end}"] = part
        read.linear(f"{layer}.self_attn.o_proj", f"{block}.attn.c_proj", width, width)
        read.linear(f"{layer}.mlp.up_proj", f"{block}.mlp.c_fc", inner, width)
        read.linear(f"{layer}.mlp.down_proj", f"{block}.mlp.c_proj", width, inner)
        read.vector(f"{layer}.attention_norm", f"{block}.ln_1", width)
        read.vector(f"{layer}.mlp_norm", f"{block}.ln_2", width)
    options = {
        "vocab_size": config.vocab_size,
        "hidden_size": width,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "intermediate_size": inner,
        "hidden_act": _activation(name, "activation_function", config.activation_function, ACTIVATIONS),
        "max_position_embeddings": config.n_positions,
        "norm_eps": config.layer_norm_epsilon,
        "dropout": config.resid_pdrop,
        "attention_dropout": config.attn_pdrop,
        "initializer_range": config.initializer_range,
    }
    if with_head:
        options["tie_word_embeddings"] = config.tie_word_embeddings
        _read_output(read, "lm_head", config, width)
    return "seq_transformer_decoder", "causal-lm" if with_head else "backbone", options, read.weights


def _read_output(read: _Reader, theirs: str, config: Any, width: int) -> None:
    """The output layer's matrix; tied, it is the embedding again."""
    if config.tie_word_embeddings:
        read.tensors.leave_out(f"{theirs}.weight")
    else:
        read.table("lm_head", theirs, config.vocab_size, width)


BERT_HEADS = {
    "BertModel": "backbone",
    "BertForMaskedLM": "masked-lm",
    "BertForSequenceClassification": "sequence-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
}


def _read_bert(config: Any, tensors: Tensors, name: str) -> tuple[str, str, dict[str, Any], Weights]:
    """Devlin 2019."""
    _refuse(name, config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    head = BERT_HEADS[name]
    theirs, ours = ("", "") if head == "backbone" else ("bert.", "model.")
    width, inner, types = config.hidden_size, config.intermediate_size, config.type_vocab_size
    read = _Reader(tensors)
    read.table(f"{ours}embed_tokens", f"{theirs}embeddings.word_embeddings", config.vocab_size, width)
    positions = config.max_position_embeddings
    read.table(f"{ours}embed_positions", f"{theirs}embeddings.position_embeddings", positions, width)
    read.table(f"{ours}embed_token_types", f"{theirs}embeddings.token_type_embeddings", types, width)
    read.vector(f"{ours}embedding_norm", f"{theirs}embeddings.LayerNorm", width)
    tensors.leave_out(f"{theirs}embeddings.position_ids")
    for index in range(config.num_hidden_layers):
        layer, block = f"{ours}layers.{index}", f"{theirs}encoder.layer.{index}"
        for part in ("query", "key", "value"):
            read.linear(f"{layer}.self_attn.{part[0]}_proj", f"{block}.attention.self.{part}", width, width)
        read.linear(f"{layer}.self_attn.o_proj", f"{block}.attention.output.dense", width, width)
        read.vector(f"{layer}.attention_norm", f"{block}.attention.output.LayerNorm", width)
        read.linear(f"{layer}.mlp.up_proj", f"{block}.intermediate.dense", inner, width)
        read.linear(f"{layer}.mlp.down_proj", f"{block}.output.dense", width, inner)
        read.vector(f"{layer}.mlp_norm", f"{block}.output.LayerNorm", width)
    options = {
        "vocab_size": config.vocab_size,
        "hidden_size": width,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": inner,
        "hidden_act": _activation(name, "hidden_act", config.hidden_act, ACTIVATIONS),
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": types,
        "norm_eps": config.layer_norm_eps,
        "dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
        "initializer_range": config.initializer_range,
    }
    if config.classifier_dropout is not None or head != "backbone":
        dropout = config.classifier_dropout
        options["classifier_dropout"] = config.hidden_dropout_prob if dropout is None else dropout
    if head == "backbone":
        tensors.leave_out(f"{theirs}pooler.dense.weight", f"{theirs}pooler.dense.bias")
    elif head == "masked-lm":
        options |= {"tie_word_embeddings": config.tie_word_embeddings, "lm_head_bias": True}
        read.linear("transform.dense", "cls.predictions.transform.dense", width, width)
        read.vector("transform.norm", "cls.predictions.transform.LayerNorm", width)
        _read_output(read, "cls.predictions.decoder", config, width)
        read.weights["lm_head.bias"] = tensors.take("cls.predictions.decoder.bias", config.vocab_size)
        tensors.leave_out("cls.predictions.bias")  # the same numbers again, or not read
    elif head == "question-answering":
        read.linear("qa_outputs", "qa_outputs", 2, width)
    else:
        read.linear("score", "classifier", config.num_labels, width)
        if head == "sequence-classification":
            read.linear("pooler", "bert.pooler.dense", width, width)
    return "seq_transformer_encoder", head, options, read.weights


def _read_t5(config: Any, tensors: Tensors, name: str) -> tuple[str, str, dict[str, Any], Weights]:
    """Raffel 2020; v1.1: Shazeer 2020."""
    known = GATES if config.is_gated_act else ACTIVATIONS
    decoder_layers = config.num_decoder_layers or config.num_layers
    encoder_only, with_head = name == "T5EncoderModel", name == "T5ForConditionalGeneration"
    ours = "" if encoder_only else "model.encoder." if with_head else "encoder."
    read = _Reader(tensors, bias=False)
    read.table(f"{ours}embed_tokens", "shared", config.vocab_size, config.d_model)
    tensors.leave_out("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    _read_t5_stack(read, config, ours, "encoder", config.num_layers, ("SelfAttention", "DenseReluDense"))
    options = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "head_dim": config.d_kv,
        "intermediate_size": config.d_ff,
        "hidden_act": _activation(name, "feed_forward_proj", config.dense_act_fn, known),
        "use_bias": False,
        "norm": "rmsnorm",
        "norm_position": "pre",
        "norm_eps": config.layer_norm_epsilon,
        "positions": "relative",
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "dropout": config.dropout_rate,
        "attention_dropout": config.dropout_rate,
    }
    if encoder_only:
        options |= {"type_vocab_size": 0, "embedding_norm": False}
        return "seq_transformer_encoder", "backbone", options, read.weights
    ours = ours.replace("encoder", "decoder")
    parts = ("SelfAttention", "EncDecAttention", "DenseReluDense")
    _read_t5_stack(read, config, ours, "decoder", decoder_layers, parts)
    options |= {"num_decoder_layers": decoder_layers, "share_embeddings": True}
    if with_head:
        options["tie_word_embeddings"] = config.tie_word_embeddings
        _read_output(read, "lm_head", config, config.d_model)
        if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
            read.scale("model.decoder.norm.weight", 1 / math.sqrt(config.d_model))
    return "seq_transformer", "seq2seq-lm" if with_head else "backbone", options, read.weights


def _read_t5_stack(
    read: _Reader, config: Any, ours: str, theirs: str, num_layers: int, parts: tuple[str, ...]
) -> None:
    """One half: the bias of its first layer serves all; each block lists its sub-layers in `parts`."""
    width, inner, heads, gated = config.d_model, config.d_ff, config.num_heads, config.is_gated_act
    attended = heads * config.d_kv
    first = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias"
    read.table(f"{ours}relative_bias", first, config.relative_attention_num_buckets, heads)
    read.vector(f"{ours}norm", f"{theirs}.final_layer_norm", width, ("weight",))
    names = {"SelfAttention": ("self_attn", "attention_norm")}
    names |= {"EncDecAttention": ("cross_attn", "cross_attention_norm")}
    for index in range(num_layers):
        for place, part in enumerate(parts):
            layer, block = f"{ours}layers.{index}", f"{theirs}.block.{index}.layer.{place}"
            attention, norm = names.get(part, ("", "mlp_norm"))
            read.vector(f"{layer}.{norm}", f"{block}.layer_norm", width, ("weight",))
            if attention:
                for letter in "qkv":
                    read.linear(f"{layer}.{attention}.{letter}_proj", f"{block}.{part}.{letter}", attended, width)
                read.scale(f"{layer}.{attention}.q_proj.weight", math.sqrt(config.d_kv))
                read.linear(f"{layer}.{attention}.o_proj", f"{block}.{part}.o", width, attended)
                continue
            read.linear(f"{layer}.mlp.up_proj", f"{block}.{part}.{'wi_1' if gated else 'wi'}", inner, width)
            if gated:
                read.linear(f"{layer}.mlp.gate_proj", f"{block}.{part}.wi_0", inner, width)
            read.linear(f"{layer}.mlp.down_proj", f"{block}.{part}.wo", width, inner)


READERS: dict[str, Callable[[Any, Tensors, str], tuple[str, str, dict[str, Any], Weights]]] = {
    **dict.fromkeys(("GPT2Model", "GPT2LMHeadModel"), _read_gpt2),
    **dict.fromkeys(BERT_HEADS, _read_bert),
    **dict.fromkeys(("T5Model", "T5ForConditionalGeneration", "T5EncoderModel"), _read_t5),
}


@torch.no_grad()
def _compare(name: str, taken: int, model: PreTrainedModel, source: PreTrainedModel) -> ImportReport:
    """Run both on the same random tokens, two rows of which are padded on the right."""
    length = min(TIME, getattr(source.config, "max_position_embeddings", None) or TIME)
    ids = random_tokens(source.config.vocab_size, BATCH, length)
    mask = (torch.arange(length) < torch.tensor([[length], [(length + 1) // 2], [max(1, length - 2)]])).long()
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if source.config.model_type == "bert":
        inputs["token_type_ids"] = (torch.arange(length) * source.config.type_vocab_size // length).expand_as(ids)
    if model.config.is_encoder_decoder:
        inputs |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": mask.flip(0)}
    ours, theirs = (_output(network(**inputs), inputs) for network in (model, source))
    return make_report(name, taken, model, ours, theirs)


def _output(outputs: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What is compared: (tokens, …) without the padding, or one answer a row (B, …)."""
    if "start_logits" in outputs:
        output = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    else:
        output = outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]
    mask = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
    return output[mask] if output.shape[:2] == mask.shape else output
