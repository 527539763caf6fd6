"""Families that cut an image into tiles: processors forget the tiling, only markers remember it.

Tiny real models with processors whose images make several tiles in a grid that is not square, so
that a layout read in the wrong order cannot pass.
"""

from __future__ import annotations

from typing import Any

import transformers as hf

from families.family import Family, family, random_model, tokenizer
from families.parts import chat, fed, offline, text_sizes, vision_sizes
from families.torchless import processors_of


@family("internvl")
def internvl() -> Family:
    from transformers.models.got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.internvl import InternVLVisionConfig
    from transformers.models.qwen2 import Qwen2Config

    words = tokenizer(
        ("<|im_start|>", "<|im_end|>", "\n"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = offline(hf.InternVLProcessor)(
        image_processor=GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}),
        tokenizer=words,
        video_processor=processors_of("internvl.video_processing_internvl").InternVLVideoProcessor(
            size={"height": 24, "width": 24}
        ),
        image_seq_length=9,
        chat_template=chat("<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"),
    )
    config = hf.InternVLConfig(
        vision_config=InternVLVisionConfig(**vision_sizes(image=24, patch=4)),
        text_config=Qwen2Config(**text_sizes(words)),
        image_token_id=words.context_image_token_id,
        image_seq_length=9,
    )
    model = random_model(
        lambda: hf.InternVLForConditionalGeneration(config), calm=("projection_layer", "fc2")
    )
    prompt, size = "<IMG_CONTEXT> what is this ?", (72, 48)
    return Family(model, processor, prompt, fed(processor, prompt, size), size)


def _idefics(kind: str) -> Family:
    from transformers.models.idefics3 import (
        Idefics3Config,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.llama import LlamaConfig
    from transformers.models.smolvlm import (
        SmolVLMConfig,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
        processing_smolvlm,
    )
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    words = tokenizer(
        (
            "<|im_start|>",
            "<end_of_utterance>",
            "<fake_token_around_image>",
            "<image>",
            "<video>",
            "<global-img>",
            *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
            "\n",
        )
    )
    template = chat("<image>", "<|im_start|>", "<end_of_utterance>")
    sizes = {"size": {"longest_edge": 72}, "max_image_size": {"longest_edge": 24}}
    vision = vision_sizes(image=24, patch=4)
    common = {
        "text_config": LlamaConfig(**text_sizes(words)),
        "image_token_id": words.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": words.pad_token_id,
    }
    processor: Any
    if kind == "smolvlm":
        # Asked for when the processor is made, used only to spell the number of video frames.
        vars(processing_smolvlm)["num2words"] = processing_smolvlm.num2words or str
        films = processors_of("smolvlm.video_processing_smolvlm").SmolVLMVideoProcessor(
            size={"longest_edge": 24},
            max_image_size={"longest_edge": 24},
            video_sampling={"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 24}},
        )
        processor = offline(SmolVLMProcessor)(
            SmolVLMImageProcessorPil(**sizes), words, films, image_seq_len=9, chat_template=template
        )
        small = SmolVLMConfig(vision_config=SmolVLMVisionConfig(**vision), **common)
        make: Any = lambda: hf.SmolVLMForConditionalGeneration(small)  # noqa: E731
    else:
        processor = Idefics3Processor(
            Idefics3ImageProcessorPil(**sizes), words, image_seq_len=9, chat_template=template
        )
        config = Idefics3Config(vision_config=Idefics3VisionConfig(**vision), **common)
        make = lambda: hf.Idefics3ForConditionalGeneration(config)  # noqa: E731
    model = random_model(make, calm=("vision_model.encoder",))
    prompt, size = "<image> what is this ?", (72, 48)
    return Family(model, processor, prompt, fed(processor, prompt, size), size)


@family("idefics3")
def idefics3() -> Family:
    return _idefics("idefics3")


@family("smolvlm")
def smolvlm() -> Family:
    return _idefics("smolvlm")


@family("aya_vision")
def aya_vision() -> Family:
    from transformers.models.aya_vision import AyaVisionConfig, AyaVisionProcessor
    from transformers.models.cohere2 import Cohere2Config
    from transformers.models.got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.siglip import SiglipVisionConfig

    words = tokenizer(
        (
            "<image>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_PATCH|>",
            "<|IMG_LINE_BREAK|>",
            "TILE",
            "TILE_GLOBAL",
            *(f"TILE_{i}" for i in range(1, 13)),
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
        )
    )
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}),
        words,
        patch_size=4,
        img_size=24,
        downsample_factor=2,
        chat_template=chat("<image>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    )
    config = AyaVisionConfig(
        vision_config=SiglipVisionConfig(**vision_sizes(image=24, patch=4, vision_use_head=False)),
        text_config=Cohere2Config(**text_sizes(words, layers=4, sliding_window=16)),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    model = random_model(
        lambda: hf.AyaVisionForConditionalGeneration(config), calm=("vision_tower.encoder",)
    )
    prompt, size = "<image> what is this ?", (72, 48)
    return Family(model, processor, prompt, fed(processor, prompt, size), size)


@family("cohere2_vision")
def cohere2_vision() -> Family:
    from transformers.models.cohere2 import Cohere2Config
    from transformers.models.cohere2_vision import Cohere2VisionConfig, Cohere2VisionProcessor
    from transformers.models.siglip import SiglipVisionConfig

    words = tokenizer(
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    images = processors_of("cohere2_vision.image_processing_cohere2_vision")
    processor = Cohere2VisionProcessor(
        # This patch size is the side of a tile in tokens; the tower's own is another number.
        images.Cohere2VisionImageProcessor(size={"height": 24, "width": 24}, patch_size=3),
        words,
        chat_template=chat("<|IMG_PATCH|>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    )
    config = Cohere2VisionConfig(
        vision_config=SiglipVisionConfig(**vision_sizes(image=24, patch=4, vision_use_head=False)),
        text_config=Cohere2Config(**text_sizes(words, layers=4, sliding_window=16)),
        image_token_id=words.image_token_id,
        alignment_intermediate_size=64,
    )
    model = random_model(
        lambda: hf.Cohere2VisionForConditionalGeneration(config), calm=("vision_tower.encoder",)
    )
    prompt, size = "<|IMG_PATCH|> what is this ?", (72, 48)
    return Family(model, processor, prompt, fed(processor, prompt, size), size)


@family("ovis2")
def ovis2() -> Family:
    from transformers.models.ovis2 import Ovis2Config, Ovis2ImageProcessorPil, Ovis2Processor
    from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig
    from transformers.models.qwen2 import Qwen2Config

    indicators = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    words = tokenizer(("<image>", "<IMG_ATOM>", *indicators, "<|im_start|>", "<|im_end|>"))
    processor = Ovis2Processor(
        Ovis2ImageProcessorPil(size={"height": 24, "width": 24}, crop_to_patches=True),
        words,
        image_seq_length=9,
        chat_template=chat("<image>", "<|im_start|>", "<|im_end|>"),
    )
    config = Ovis2Config(
        vision_config=Ovis2VisionConfig(
            **vision_sizes(image=24, patch=4, vocab_size=45, hidden_stride=2)
        ),
        text_config=Qwen2Config(**text_sizes(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids(list(indicators)),
        vocab_size=len(words),
        hidden_size=32,
    )
    model = random_model(lambda: hf.Ovis2ForConditionalGeneration(config), calm=("encoder.layers",))
    prompt, size = "<image> what is this ?", (72, 48)
    return Family(model, processor, prompt, fed(processor, prompt, size), size)
