"""See, change and measure what the visual tokens of a multimodal LLM carry."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
