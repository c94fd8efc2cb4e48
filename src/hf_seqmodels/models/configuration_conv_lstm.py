"""Configuration of the ConvLSTM."""

import math

from .shared_configuration import MOST_WIDTH, SequenceConfig
from .shared_versions import strict


@strict
class ConvLSTMConfig(SequenceConfig):
    """Configuration of a [`ConvLSTMModel`]: Shi 2015, "Convolutional LSTM Network".

    The defaults are the paper's network for radar echoes (section 4.2: two layers of 64 channels, kernels of 3 × 3)
    without the peepholes. Options shared by all architectures are described in `shared_configuration.py`; those that
    speak of tokens (`vocab_size`, `tie_word_embeddings`, the token ids) have no meaning for frames.

    Args:
        hidden_size (`int`, defaults to 64): channels D of the hidden state and of the cell state, in every layer.
        num_hidden_layers (`int`, defaults to 2): layers of the encoder; the forecaster has as many.
        num_channels (`int`, defaults to 1): channels C of a frame.
        kernel_size (`int`, defaults to 3): side of all kernels, odd, so that 'same' padding is symmetric.
        peephole (`bool`, defaults to False): the Hadamard products W_ci ∘ C, W_cf ∘ C and W_co ∘ C of the paper's
            equation 3. They have one weight per channel and pixel and so need `image_size`.
        image_size (`int` or `[height, width]`, *optional*): side or sides of the frames, in pixels. Without it, one
            model reads frames of any size.
        forget_bias (`float`, defaults to 1.0): initial bias of the forget gate (Jozefowicz 2015).
        prediction_length (`int`, defaults to 10): frames T' that the forecaster predicts.
        loss (`str`, defaults to `"mse"`): `"mse"`, mean squared error; or `"bce"`, the paper's cross-entropy, for
            pixels in [0, 1]: predictions are then σ(logits).
        dropout: on what each layer of the encoder and of the forecaster hands to the next one.
        initializer_range (`float`, defaults to 0.1): standard deviation of the 1 × 1 convolution that predicts.

    Example:
        >>> from hf_seqmodels import ConvLSTMConfig, ConvLSTMForTimeSeriesPrediction
        >>> model = ConvLSTMForTimeSeriesPrediction(ConvLSTMConfig(hidden_size=16, prediction_length=5, loss="bce"))
    """

    model_type = "seq_conv_lstm"

    hidden_size: int = 64
    num_hidden_layers: int = 2
    initializer_range: float | int = 0.1
    num_channels: int = 1
    kernel_size: int = 3
    peephole: bool = False
    image_size: int | list[int] | tuple[int, int] | None = None
    forget_bias: float | int = 1.0
    prediction_length: int = 10
    loss: str = "mse"

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require("num_channels", f"between 1 and {MOST_WIDTH}", 1 <= self.num_channels <= MOST_WIDTH)
        rule = f"odd and between 1 and {MOST_WIDTH}"
        self.require("kernel_size", rule, 1 <= self.kernel_size <= MOST_WIDTH and self.kernel_size % 2 == 1)
        rule = f"None, one side or [height, width] in pixels, each between 1 and {MOST_WIDTH}"
        sides = (1, 1) if self.image_size is None else self.frame_size
        self.require("image_size", rule, len(sides) == 2 and all(1 <= side <= MOST_WIDTH for side in sides))
        rule = "given with peephole=True, which has one weight per pixel"
        self.require("image_size", rule, self.image_size is not None or not self.peephole)
        self.require("forget_bias", "a finite number", math.isfinite(self.forget_bias))
        rule = f"between 1 and {MOST_WIDTH}"
        self.require("prediction_length", rule, 1 <= self.prediction_length <= MOST_WIDTH)
        self.require("loss", "'mse' or 'bce'", self.loss in ("mse", "bce"))

    @property
    def frame_size(self) -> tuple[int, ...]:
        """(height, width) of the frames; empty where `image_size` is None and any size is read."""
        if self.image_size is None:
            return ()
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)

    @property
    def layer_types(self) -> list[str]:
        """Which cache layer transformers builds for each layer (see `shared_cache.py`)."""
        return ["seq_recurrent"] * self.num_hidden_layers

    def validate_layer_type(self):
        """The upstream check knows only transformers' own layer types; ours is the property above."""


__all__ = ["ConvLSTMConfig"]
