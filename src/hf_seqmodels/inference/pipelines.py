"""The pipeline "seq2seq-generation": translation, summarization and whatever else an encoder–decoder writes.

transformers 5 has no pipeline for them any more. `import hf_seqmodels` registers this one. The file imports nothing of
this package, so that `pipe.save_pretrained(folder)` can ship it: `pipeline(model=folder, trust_remote_code=True)` then
works where hf_seqmodels is not installed.
"""

from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import ModelOutput, logging

TASK = "seq2seq-generation"
NO_LIMIT = 10**9  # tokenizers without a limit give 10^30
logger = logging.get_logger(__name__)


class Seq2SeqGenerationPipeline(Pipeline):
    """Writes a text for each text, with an encoder–decoder of this package or of transformers (T5, BART, Marian, …).

        write = pipeline("seq2seq-generation", model="folder or user/name")
        write("a text")                                     # [{"generated_text": "…"}]
        write(["one", "two"], batch_size=2, num_beams=4)    # [[{"generated_text": "…"}], [{…}]]
        write("a text", streamer=TextStreamer(write.tokenizer))

    A row of a padded batch gives what it gives alone.

    Args (of the pipeline, or of one call):
        prefix: put in front of every text ("translate English to German: " for T5); default `config.prefix`.
        truncation: a text beyond what the model reads is cut there, with a warning (True, the default), or refused.
        return_text: give "generated_text"; default: unless `return_tensors`.
        return_tensors: give "generated_token_ids", as `generate` returned them.
        skip_special_tokens, clean_up_tokenization_spaces: of the tokenizer's `decode`; defaults True and its own.
        Anything else goes to `model.generate`: `num_beams`, `num_return_sequences`, `do_sample`, `streamer`, …
        Without a length in any of these or in the model's generation configuration, max_new_tokens is 256, or less
        where a table of learned positions ends.

    Raises:
        ValueError: a model of another kind, no tokenizer, an empty text, or one beyond the limit with
            `truncation=False`.
        TypeError: an input that is no text.
    """

    _pipeline_calls_generate = True
    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    model: Any
    tokenizer: Any
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __init__(self, *args: Any, **kwargs: Any):
        model: Any = kwargs.get("model", args[0] if args else None)
        config = getattr(model, "config", None)
        if not getattr(config, "is_encoder_decoder", False) or not model.can_generate():
            raise ValueError(
                f"{TASK} needs an encoder–decoder with a language model head, not {type(model).__name__}: "
                "take 'text-generation' for a model with one stack of layers"
            )
        if model.main_input_name != "input_ids":
            raise ValueError(f"{TASK} reads text, and {type(model).__name__} {model.main_input_name}")
        super().__init__(*args, **kwargs)
        if self.tokenizer is None:
            raise ValueError(f"{TASK} needs a tokenizer: save it beside the model, or pass tokenizer=")
        self.tokenizer.padding_side = "right"  # where encoders are trained with it: BART counts padding on the left

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As in transformers: model, tokenizer and this file, which config.json then names ("custom_pipelines").

        Such a folder gives this pipeline to `pipeline(model=folder, trust_remote_code=True)` without hf_seqmodels, and
        asks for that trust where hf_seqmodels is installed, too.
        """
        options = vars(self.model.config)
        before = options.get("custom_pipelines")
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:  # the model goes on as it was: saved alone it would name a file that is not there
            options.pop("custom_pipelines", None)
            if before is not None:
                options["custom_pipelines"] = before

    def _sanitize_parameters(
        self,
        prefix: str | None = None,
        truncation: bool | None = None,
        return_text: bool | None = None,
        return_tensors: bool | None = None,
        skip_special_tokens: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        **generate_options: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before = {"prefix": prefix, "truncation": truncation}
        after = {
            "return_text": return_text,
            "return_tensors": return_tensors,
            "skip_special_tokens": skip_special_tokens,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
        }
        if return_text is False and not return_tensors:
            raise ValueError("return_text=False without return_tensors=True returns nothing: set one of them")
        given = [{name: value for name, value in part.items() if value is not None} for part in (before, after)]
        return given[0], generate_options, given[1]

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Write for a text, a list of texts, or a data set or generator of texts.

        Returns:
            A list of dictionaries, one for each of `num_return_sequences`; for several texts a list of such lists (for
            data sets and generators an iterator over them).
        """
        if isinstance(inputs, list | tuple):
            if not inputs:
                raise ValueError(f"an empty list holds no text for {TASK}: pass at least one text")
            for index, text in enumerate(inputs):
                check_text(text, f"inputs[{index}]")
            inputs = list(inputs)
        elif isinstance(inputs, str) or not hasattr(inputs, "__iter__") or isinstance(inputs, bytes | dict):
            check_text(inputs, "the input")
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(  # type: ignore[override]
        self, text: Any, prefix: str | None = None, truncation: bool = True
    ) -> dict[str, torch.Tensor]:
        """A text → token ids and mask (1, S), cut to what the model reads."""
        check_text(text, "the input")
        text = (self.prefix or "" if prefix is None else prefix) + text
        tokens = self.tokenizer(text, return_tensors="pt", verbose=False)
        limit, length = source_limit(self.model.config, self.tokenizer), tokens["input_ids"].shape[1]
        if length > limit:
            if not truncation:
                raise ValueError(
                    f"a text of {length} tokens is beyond the {limit} that this model reads: shorten it, or pass "
                    "truncation=True"
                )
            logger.warning(
                f"A text of {length} tokens is beyond the {limit} that this model reads: {length - limit} of them are "
                "left out. Pass truncation=False to refuse such texts."
            )
            tokens = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)
        elif length == 0:
            raise ValueError(f"the text {text[:40]!r} holds no tokens: pass a text that this tokenizer knows")
        return {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, torch.Tensor], **generate_options: Any
    ) -> dict[str, torch.Tensor]:
        rows = len(model_inputs["input_ids"])
        chosen = self._get_set_generation_params(self._get_options(generate_options))
        room = learned_positions(self.model.config)
        cap = {}
        if room is not None and not {"max_new_tokens", "max_length"} & chosen.keys():
            cap = {"max_new_tokens": min(self._generation_defaults["max_new_tokens"], room)}
        written = self.model.generate(**model_inputs, **self._prepare_generate_kwargs(generate_options, **cap))
        if isinstance(written, ModelOutput):
            written = written["sequences"]
        return {"written": written.reshape(rows, -1, written.shape[-1])}

    def _get_options(self, generate_options: dict[str, Any]) -> dict[str, Any]:
        """The options of the call over those of the pipeline."""
        if "generation_config" in generate_options:  # stands in place of the pipeline's
            return generate_options
        return self._generate_kwargs | generate_options

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, torch.Tensor],
        return_text: bool | None = None,
        return_tensors: bool = False,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Token ids (1, sequences, T) → a dictionary for each sequence."""
        records = []
        for ids in model_outputs["written"][0]:
            record: dict[str, Any] = {"generated_token_ids": ids} if return_tensors else {}
            if return_text or (return_text is None and not return_tensors):
                record["generated_text"] = self.tokenizer.decode(
                    ids[1:],  # without the token that every target starts with, which some tokenizers would show
                    skip_special_tokens=skip_special_tokens,
                    clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                ).strip()
            records.append(record)
        return records


def check_text(text: Any, name: str) -> None:
    """Raise unless it is a text with something in it."""
    if not isinstance(text, str):
        raise TypeError(f"{name} is a {type(text).__name__} and not a text: pass a string, or a list of strings")
    if not text.strip():
        raise ValueError(f"{name} is an empty text: pass at least one word")


def learned_positions(config: Any) -> int | None:
    """Rows of the table of positions, beyond which there are none; None without such a table."""
    if getattr(config, "positions", "learned") != "learned":  # of this package's models, those alone have one
        return None
    return getattr(config, "max_position_embeddings", None)


def source_limit(config: Any, tokenizer: Any) -> int:
    """Tokens of a text that the model and its tokenizer allow."""
    positions = learned_positions(config)
    limit = min(tokenizer.model_max_length, NO_LIMIT)
    return limit if positions is None else min(limit, positions)


def register_pipelines() -> None:
    """Make the task known to `transformers.pipeline` (importing hf_seqmodels does this)."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=Seq2SeqGenerationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
        )
