# What `lazy_loader` imports from here when it is used, and what type checkers see.
from .extracted_states import ExtractedStates, StatesBlock, read_states
from .extraction import Extraction
from .write_states import extract, forecast_extraction

__all__ = [
    "ExtractedStates",
    "Extraction",
    "StatesBlock",
    "extract",
    "forecast_extraction",
    "read_states",
]
