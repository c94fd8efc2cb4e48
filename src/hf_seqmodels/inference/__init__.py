"""Ready to use: pipelines, and sessions that read a stream."""

from .pipelines import Seq2SeqGenerationPipeline, register_pipelines
from .session import StreamingSession
from .session_file import SessionFileError

__all__ = ["Seq2SeqGenerationPipeline", "SessionFileError", "StreamingSession", "register_pipelines"]
