"""What lmms-eval finds by the entry point ``embedlens`` in its group ``lmms_eval.models``.

It imports nothing else: of the plug-ins that lmms-eval finds, one that raises on import takes all
others with it.
"""

from lmms_eval.models.registry_v2 import ModelManifest

_CLASSES = f"{__package__}.harness_models"
MANIFEST = ModelManifest(
    model_id="embedlens",
    simple_class_path=f"{_CLASSES}.SimpleHarnessModel",
    chat_class_path=f"{_CLASSES}.ChatHarnessModel",
)
