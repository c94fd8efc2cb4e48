"""RNN, LSTM, GRU, attention-RNN and Transformer as first-class Hugging Face models.

Importing this package registers its architectures with transformers' Auto classes, and its pipeline:

    import hf_seqmodels
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder)
"""

from .inference import StreamingSession, register_pipelines
from .models import ARCHITECTURES, Architecture, register_all
from .models.configuration_attention_rnn import *
from .models.configuration_attention_rnn_seq2seq import *
from .models.configuration_conv_lstm import *
from .models.configuration_gru import *
from .models.configuration_lstm import *
from .models.configuration_rnn import *
from .models.configuration_transformer import *
from .models.configuration_transformer_decoder import *
from .models.configuration_transformer_encoder import *
from .models.modeling_attention_rnn import *
from .models.modeling_attention_rnn_seq2seq import *
from .models.modeling_conv_lstm import *
from .models.modeling_gru import *
from .models.modeling_lstm import *
from .models.modeling_rnn import *
from .models.modeling_transformer import *
from .models.modeling_transformer_decoder import *
from .models.modeling_transformer_encoder import *

__version__ = "0.1.0"
__all__ = ["ARCHITECTURES", "Architecture", "StreamingSession", "register_all"]
__all__ += [cls.__name__ for each in ARCHITECTURES.values() for cls in (each.config, *each.models.values())]

register_all()
register_pipelines()
