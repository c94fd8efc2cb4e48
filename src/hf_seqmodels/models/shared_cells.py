"""The cells that an architecture with the option `cell` is built from."""

from .modeling_gru import GRULayer
from .modeling_lstm import LSTMLayer
from .modeling_rnn import RNNLayer

CELLS = {"rnn": RNNLayer, "lstm": LSTMLayer, "gru": GRULayer}
