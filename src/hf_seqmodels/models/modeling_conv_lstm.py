"""ConvLSTM: an LSTM whose products are convolutions, for sequences of frames (Shi 2015).

Shapes: B batch, T time, T' predicted frames, C channels of a frame, D hidden channels, H height, W width, k kernel.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, SampleTSPredictionOutput
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_conv_lstm import ConvLSTMConfig
from .shared_base import SequencePreTrainedModel
from .shared_cache import check_holds_states
from .shared_frames import check_frames, check_pixels, fill_missing, observed_pixels
from .shared_inputs import blank_padding, valid_tokens
from .shared_recurrence import _fill_per_gate


@dataclass
class ConvLSTMPredictionOutput(ModelOutput):
    """Predicted frames.

    Args:
        loss (): mean over all observed pixels of `future_values`, if these are given.
        prediction_outputs (B, T', C, H, W): the predicted frames; with `loss="bce"` probabilities.
        past_key_values: the encoder's state after the last frame; with `use_cache`.
        hidden_states: the encoder's input and the output of each of its layers; with `output_hidden_states`.
    """

    loss: torch.Tensor | None = None
    prediction_outputs: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class ConvLSTMLayer(GradientCheckpointingLayer):
    """Shi 2015, equation 3, gates in the order i, f, g, o (∗ convolution with 'same' padding, ∘ Hadamard product):

    i_t = σ(W_xi ∗ X_t + W_hi ∗ H_{t−1} + W_ci ∘ C_{t−1} + b_i)        input gate
    f_t = σ(W_xf ∗ X_t + W_hf ∗ H_{t−1} + W_cf ∘ C_{t−1} + b_f)        forget gate
    g_t = tanh(W_xc ∗ X_t + W_hc ∗ H_{t−1} + b_c)                      new content
    C_t = f_t ∘ C_{t−1} + i_t ∘ g_t                                    cell state
    o_t = σ(W_xo ∗ X_t + W_ho ∗ H_{t−1} + W_co ∘ C_t + b_o)            output gate
    H_t = o_t ∘ tanh(C_t)                                              hidden state

    Parameters: W_x is `weight_ih` (4·D, I, k, k), W_h is `weight_hh` (4·D, D, k, k), b is `bias_ih` (4·D,), the only
    bias. With `peephole=True` W_ci, W_cf, W_co are `peephole_i`, `peephole_f`, `peephole_o`, each (D, H, W).

    Args:
        input_channels: channels I of X_t; 0 for a layer that reads nothing and has no `weight_ih`.
    """

    def __init__(self, config: ConvLSTMConfig, input_channels: int):
        super().__init__()
        channels, kernel = config.hidden_size, (config.kernel_size, config.kernel_size)
        self.padding = config.kernel_size // 2
        self.peephole = config.peephole
        self.weight_ih = nn.Parameter(torch.empty(4 * channels, input_channels, *kernel)) if input_channels else None
        self.weight_hh = nn.Parameter(torch.empty(4 * channels, channels, *kernel))
        self.bias_ih = nn.Parameter(torch.empty(4 * channels))
        if config.peephole:
            self.peephole_i = nn.Parameter(torch.empty(channels, *config.frame_size))
            self.peephole_f = nn.Parameter(torch.empty(channels, *config.frame_size))
            self.peephole_o = nn.Parameter(torch.empty(channels, *config.frame_size))

    def forward(
        self, frames: torch.Tensor, h: torch.Tensor, c: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The layer over T frames, the convolution of all inputs in one call.

        Args:
            frames (B, T, I, H, W), or (B, T, 0, H, W) for a layer that reads nothing.
            h, c (B, D, H, W): the states to start from.
            mask (B, T) bool: False for padding, under which the states stand still. None: no padding.

        Returns:
            the hidden states (B, T, D, H, W), zero under padding, and h and c after each row's last frame.
        """
        gates = self.convolve_input(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self._scan(gates.unbind(1), h, c, mask)

    def run_frames(
        self, frames: torch.Tensor, h: torch.Tensor, c: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The slow twin of `forward`: each frame is convolved when its turn comes."""
        return self._scan((self.convolve_input(frame) for frame in frames.unbind(1)), h, c, mask)

    def _scan(
        self, gates: Iterable[torch.Tensor], h: torch.Tensor, c: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        outputs = []
        for t, x in enumerate(gates):
            new_h, new_c = self.step(x, h, c)
            if mask is not None:
                valid = mask[:, t, None, None, None]
                new_h, new_c = torch.where(valid, new_h, h), torch.where(valid, new_c, c)
            h, c = new_h, new_c
            outputs.append(h)
        return blank_padding(torch.stack(outputs, dim=1), mask), h, c

    def convolve_input(self, frames: torch.Tensor) -> torch.Tensor:
        """W_x ∗ X + b: (N, I, H, W) → (N, 4·D, H, W)."""
        if self.weight_ih is None:  # torch's convolution of no channels does not give the bias
            return self.bias_ih[:, None, None].expand(frames.shape[0], -1, *frames.shape[2:])
        return F.conv2d(frames, self.weight_ih, self.bias_ih, padding=self.padding)

    def step(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: x (B, 4·D, H, W) is W_x ∗ X_t + b, the states h and c are (B, D, H, W)."""
        i, f, g, o = (x + F.conv2d(h, self.weight_hh, padding=self.padding)).chunk(4, dim=1)
        if self.peephole:
            i = i + self.peephole_i * c
            f = f + self.peephole_f * c
        i, f, g = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g)
        c = f * c + i * g
        if self.peephole:
            o = o + self.peephole_o * c
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, c

    def init_weights(self, config: ConvLSTMConfig) -> None:
        """Fill every parameter that was not loaded: `weight_ih` Xavier-uniform (Glorot 2010), `weight_hh` with
        orthonormal rows of D·k·k (Saxe 2014), each per gate; peepholes closed; biases zero but for the forget gate."""
        if self.weight_ih is not None:
            _fill_per_gate(self.weight_ih, 4, nn.init.xavier_uniform_)
        _fill_per_gate(self.weight_hh, 4, nn.init.orthogonal_)
        bias = torch.zeros(4, config.hidden_size)
        bias[1] = config.forget_bias
        init.copy_(self.bias_ih, bias.flatten().to(self.bias_ih))
        if self.peephole:
            for weight in (self.peephole_i, self.peephole_f, self.peephole_o):
                init.zeros_(weight)


class ConvLSTMPreTrainedModel(SequencePreTrainedModel):
    """Loading, saving and initialisation of the ConvLSTM."""

    config: ConvLSTMConfig
    main_input_name = "pixel_values"
    input_modalities = "video"
    _no_split_modules = ["ConvLSTMLayer"]
    _is_stateful = True
    _can_record_outputs = {"hidden_states": ConvLSTMLayer}


class ConvLSTMModel(ConvLSTMPreTrainedModel):
    """The encoder: frames (B, T, C, H, W) to hidden states (B, T, D, H, W)."""

    def __init__(self, config: ConvLSTMConfig):
        super().__init__(config)
        inputs = [config.num_channels] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.layers = nn.ModuleList([ConvLSTMLayer(config, channels) for channels in inputs])
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        past_observed_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Read a batch of frame sequences.

        Args:
            pixel_values (B, T, C, H, W): floating-point pixels, [0, 1] by custom.
            attention_mask (B, T) or (B, past + T): 1 for frames, 0 for padding, in any pattern. None: no padding.
            past_key_values: the state to continue from, as a call with `use_cache=True` returned it. It is updated.
            use_cache: return the state after the last frame; padding does not change it.
            past_observed_mask (B, T, C, H, W), any axis 1 where all its places are alike: 1 observed, 0 missing. A
                missing pixel, which may be NaN, is read as 0. None: all observed.
            output_hidden_states: as in transformers.

        Returns:
            `last_hidden_state` (B, T, D, H, W), zero under padding; `past_key_values` if `use_cache`.

        Raises:
            ValueError: frames, mask or state of a wrong shape, no frames, or pixels that are not floating-point or,
                where observed, not finite.
        """
        frames = check_frames("pixel_values", pixel_values, self.config).to(self.dtype)
        frames = fill_missing(frames, observed_pixels("past_observed_mask", past_observed_mask, frames))
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache(config=self.config)
        valid = self._valid_frames(attention_mask, frames, past_key_values)
        frames = blank_padding(frames, valid)
        check_pixels("pixel_values", "past_observed_mask", frames)
        if self.training and self.gradient_checkpointing and not frames.requires_grad:
            # Re-entrant checkpoints give gradients only to what follows an input that has one.
            frames = frames.detach().requires_grad_()
        for index, layer in enumerate(self.layers):
            cache: Any = None if past_key_values is None else past_key_values.layers[index]
            h, c = self._initial_states(frames, cache)
            # The states go in and out by hand: a layer under gradient checkpointing would lose a cache.
            frames, h, c = layer(self.dropout(frames) if index else frames, h, c, valid)
            if cache is not None:
                cache.write_states({"h": h, "c": c}, frames.shape[1])
        return BaseModelOutputWithPast(
            last_hidden_state=frames, past_key_values=past_key_values if use_cache else None
        )

    def _valid_frames(
        self, attention_mask: torch.Tensor | None, frames: torch.Tensor, past_key_values: Cache | None
    ) -> torch.Tensor | None:
        """(B, T) bool, or None without a mask; the cache is looked at too."""
        (batch, length), past = frames.shape[:2], 0
        if past_key_values is not None:
            check_holds_states(past_key_values, len(self.layers))
            past = past_key_values.get_seq_length()
        wanted = ((batch, length), (batch, past + length))
        if attention_mask is not None and tuple(attention_mask.shape) not in wanted:
            raise ValueError(
                f"attention_mask of shape {tuple(attention_mask.shape)} does not fit {batch} rows of {length} frames "
                f"after {past} cached ones: pass {wanted[1]} with 1 for frames and 0 for padding"
            )
        return valid_tokens(attention_mask, length)

    def _initial_states(self, frames: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The cached h and c, or zeros, each (B, D, H, W)."""
        shape = (frames.shape[0], self.config.hidden_size, *frames.shape[3:])
        cached = {} if cache is None else cache.read_states(frames.dtype, frames.device)
        if not cached:
            return frames.new_zeros(shape), frames.new_zeros(shape)
        if cached["h"].shape != shape:
            raise ValueError(
                f"past_key_values holds a state of shape {tuple(cached['h'].shape)} and these frames need {shape}: "
                "pass the cache that belongs to this batch"
            )
        return cached["h"], cached["c"]


class ConvLSTMForTimeSeriesPrediction(ConvLSTMPreTrainedModel):
    """Encoder and forecaster (Shi 2015, section 3.2 and figure 3): predicts the `prediction_length` next frames.

    Each layer of the forecaster starts from the last H and C of the encoder's layer at its height. Its first layer
    reads nothing (the unconditional predictor of Srivastava 2015, whose form the paper takes), so that training and
    prediction are the same computation; every other layer reads the one below. All layers' hidden states are
    concatenated, and a 1 × 1 convolution makes each frame of them.
    """

    auto_model = "AutoModelForTimeSeriesPrediction"
    # Trainer cannot count observed pixels, and averages its accumulation steps: the mean over their pixels only where
    # each has as many. `SeqTrainer` asks `count_targets`.
    accepts_loss_kwargs = False

    def __init__(self, config: ConvLSTMConfig):
        super().__init__(config)
        self.model = ConvLSTMModel(config)
        inputs = [0] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.forecaster = nn.ModuleList([ConvLSTMLayer(config, channels) for channels in inputs])
        self.dropout = nn.Dropout(config.dropout)
        self.prediction = nn.Conv2d(config.hidden_size * config.num_hidden_layers, config.num_channels, kernel_size=1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        future_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        past_observed_mask: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Any,
    ) -> ConvLSTMPredictionOutput:
        """Predict the frames that follow the last one.

        Args:
            future_values (B, T', C, H, W): the true next frames, T' = `prediction_length`; they give the loss and are
                read for nothing else. With `loss="bce"` in [0, 1].
            future_observed_mask (B, T', C, H, W), any axis 1 where all its places are alike: 1 observed, 0 missing.
                A missing pixel, which may be NaN, is left out of the loss. None: all observed.
            num_items_in_batch: observed pixels of future_values in the global batch, by which the summed loss is
                divided; without it the loss is the mean over this call's.
            return_loss: compute the loss. (Trainer evaluates models whose default is True.)
            Other arguments: see the backbone. `past_key_values` holds the encoder's state: as frames come in, the
                next ones are predicted without reading the old ones again.

        Raises:
            ValueError: what the backbone refuses, `future_values` of a wrong shape or range, or their mask alone.
        """
        config, targets, observed = self.config, None, None
        batch, _, _, height, width = check_frames("pixel_values", pixel_values, config).shape
        if future_values is not None:
            wanted = (batch, config.prediction_length, config.num_channels, height, width)
            check_frames("future_values", future_values, config, wanted)
            observed = observed_pixels("future_observed_mask", future_observed_mask, future_values)
            targets = fill_missing(future_values, observed)
            check_pixels("future_values", "future_observed_mask", targets, bounded=config.loss == "bce")
        elif future_observed_mask is not None:
            raise ValueError("future_observed_mask was given without future_values: pass both, or neither")
        cache = DynamicCache(config=config) if past_key_values is None else past_key_values
        encoded = self.model(
            pixel_values,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=False,
            past_observed_mask=past_observed_mask,
            **kwargs,
        )
        outputs = self.forecast(cache, encoded.last_hidden_state)
        loss = None
        if targets is not None and return_loss:
            loss = self._loss(outputs, targets, observed, num_items_in_batch)
        return ConvLSTMPredictionOutput(
            loss=loss,
            prediction_outputs=torch.sigmoid(outputs) if config.loss == "bce" else outputs,
            past_key_values=cache if (config.use_cache if use_cache is None else use_cache) else None,
            hidden_states=encoded.hidden_states,
        )

    def _loss(
        self,
        outputs: torch.Tensor,
        targets: torch.Tensor,
        observed: torch.Tensor | None,
        num_items_in_batch: int | torch.Tensor | None,
    ) -> torch.Tensor:
        """The error of each observed pixel, summed and divided by their number; in fp32 at least."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        error = F.binary_cross_entropy_with_logits if self.config.loss == "bce" else F.mse_loss
        each = error(outputs, targets.to(outputs.dtype), reduction="none")
        if num_items_in_batch is None:
            num_items_in_batch = self.count_targets(targets, observed)
        count = torch.as_tensor(num_items_in_batch, device=each.device).clamp(min=1)
        return fill_missing(each, observed).sum() / count

    def count_targets(
        self, future_values: torch.Tensor | None = None, future_observed_mask: torch.Tensor | None = None, **_: Any
    ) -> torch.Tensor:
        """Pixels that the loss of this batch is a mean over; takes the arguments of `forward`."""
        if future_values is None:
            return torch.tensor(0)
        observed = observed_pixels("future_observed_mask", future_observed_mask, future_values)
        if observed is None:
            return torch.tensor(future_values.numel(), device=future_values.device)
        return observed.sum()

    def forecast(self, cache: Any, encoded: torch.Tensor) -> torch.Tensor:
        """The next frames (B, T', C, H, W), before any σ, from the encoder's states in `cache`.

        `encoded` (B, T, D, H, W), the encoder's output, lends its type, its device and its sizes.
        """
        batch, _, _, height, width = encoded.shape
        frames = encoded.new_zeros(batch, self.config.prediction_length, 0, height, width)
        hidden_states: list[torch.Tensor] = []
        for layer, encoder_layer in zip(self.forecaster, cache.layers, strict=True):
            states = encoder_layer.read_states(encoded.dtype, encoded.device)
            frames, _, _ = layer(self.dropout(frames) if hidden_states else frames, states["h"], states["c"])
            hidden_states.append(frames)
        all_hidden = torch.cat(hidden_states, dim=2)
        return self.prediction(all_hidden.flatten(0, 1)).unflatten(0, all_hidden.shape[:2])

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> SampleTSPredictionOutput:
        """The predicted frames as the time-series models of transformers return them.

        Nothing is drawn: there is one path. Call `model.eval()` first if the model has dropout.

        Returns:
            `sequences` (B, 1, T', C, H, W).
        """
        outputs = self(
            pixel_values,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **(kwargs | {"use_cache": False, "return_dict": True}),
        )
        return SampleTSPredictionOutput(sequences=outputs.prediction_outputs[:, None])


__all__ = ["ConvLSTMForTimeSeriesPrediction", "ConvLSTMModel"]
