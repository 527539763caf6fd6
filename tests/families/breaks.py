"""Families that end every row of an image with a token: an image's tokens are not one run.

Row breaks are text tokens with ids of their own, so the grid follows from the image's size after
the processor resized it (``image_sizes``, or the processor's own arithmetic).
"""

from __future__ import annotations

from typing import Any

import transformers as hf
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from families.family import Family, family, tokenizer
from families.parts import chat, fed_family, text_sizes, vision_sizes
from families.torchless import processors_of

TEMPLATE = (
    "<s>{% for message in messages %}[INST]{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}[IMG] {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
    "[/INST]{% endfor %}"
)


def _pixtral(patch: int, merge: int) -> tuple[Any, Any, Any]:
    """Tokenizer, processor and vision configuration of the Pixtral tower."""

    words = tokenizer(("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"))
    processor = processors_of("pixtral.processing_pixtral").PixtralProcessor(
        hf.PixtralImageProcessorPil(
            size={"longest_edge": 48}, patch_size={"height": patch, "width": patch}
        ),
        words,
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=TEMPLATE,
    )
    vision = hf.PixtralVisionConfig(**vision_sizes(image=48, patch=patch, hidden_size=32))
    return words, processor, vision


@family("mistral3")
def mistral3() -> Family:
    words, processor, vision = _pixtral(patch=4, merge=2)
    config = hf.Mistral3Config(
        vision_config=vision,
        text_config=hf.MistralConfig(**text_sizes(words, head_dim=8, sliding_window=None)),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    prompt, size = "[IMG] what is this ?", (48, 32)
    kind = hf.Mistral3ForConditionalGeneration
    return fed_family(kind, config, processor, prompt, size, "vision_tower.transformer")


@family("pixtral")
def pixtral() -> Family:
    words, processor, vision = _pixtral(patch=8, merge=1)
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=hf.MistralConfig(**text_sizes(words, head_dim=8, sliding_window=None)),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    prompt, size = "[IMG] what is this ?", (48, 32)
    kind = hf.LlavaForConditionalGeneration
    return fed_family(kind, config, processor, prompt, size, "vision_tower.transformer")


@family("lighton_ocr")
def lighton_ocr() -> Family:
    """The Pixtral tower without breaks: the family's processor puts none in."""

    words = tokenizer(
        ("<|im_start|>", "<|im_end|>"),
        image_token="<|image_pad|>",
        image_break_token="<|vision_pad|>",
        image_end_token="<|vision_end|>",
    )
    processor = hf.LightOnOcrProcessor(
        hf.PixtralImageProcessorPil(
            size={"longest_edge": 48}, patch_size={"height": 8, "width": 8}
        ),
        words,
        patch_size=4,
        spatial_merge_size=2,
        chat_template=chat("<|image_pad|>", "<|im_start|>", "<|im_end|>"),
    )
    config = hf.LightOnOcrConfig(
        vision_config=hf.PixtralVisionConfig(**vision_sizes(image=48, patch=4, hidden_size=32)),
        text_config=hf.Qwen3Config(**text_sizes(words, head_dim=8)),
        image_token_id=words.image_token_id,
        spatial_merge_size=2,
    )
    prompt, size = "<|image_pad|> what is this ?", (48, 32)
    kind = hf.LightOnOcrForConditionalGeneration
    return fed_family(kind, config, processor, prompt, size, "vision_encoder.transformer")


def _with_prefix(words: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same words, no mark special, every text opened with "▁", which the processor cuts off."""
    core = Tokenizer(WordLevel(words.get_vocab(), unk_token="<unk>"))
    core.normalizer = normalizers.Prepend("▁ ")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\|[A-Z]+\||<0x04>"), "isolated"),
            pre_tokenizers.WhitespaceSplit(),
        ]
    )
    named = {
        f"{name}_token": getattr(words, f"{name}_token") for name in ("pad", "bos", "eos", "unk")
    }
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


@family("fuyu")
def fuyu() -> Family:
    """No vision tower: patches go straight into the decoder, in front of the prompt."""

    words = _with_prefix(tokenizer(("▁", "|SPEAKER|", "|NEWLINE|", "<0x04>")))
    # The variant of the image processor on PIL hands the processor arrays it cannot use.
    images = processors_of("fuyu.image_processing_fuyu")
    processor = hf.FuyuProcessor(
        images.FuyuImageProcessor(
            size={"height": 40, "width": 64}, patch_size={"height": 8, "width": 8}
        ),
        words,
    )
    config = hf.FuyuConfig(
        image_size=64,
        patch_size=8,
        image_token_id=words.convert_tokens_to_ids("|SPEAKER|"),
        text_config=hf.PersimmonConfig(**text_sizes(words, num_key_value_heads=4)),
    )
    prompt, size = "what is this ?", (44, 32)
    return fed_family(hf.FuyuForCausalLM, config, processor, prompt, size)
