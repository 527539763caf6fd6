"""Families that cut an image into tiles: processors forget the tiling, only markers remember it.

Tiny real models with processors whose images make several tiles in a grid that is not square, so
that a layout read in the wrong order cannot pass.
"""

from __future__ import annotations

from typing import Any

import transformers as hf

from families.family import Family, family, random_model, tokenizer
from families.parts import chat, fed, fed_family, offline, text_sizes, vision_sizes
from families.torchless import processors_of


@family("internvl")
def internvl() -> Family:
    words = tokenizer(
        ("<|im_start|>", "<|im_end|>", "\n"),
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = offline(hf.InternVLProcessor)(
        image_processor=hf.GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}),
        tokenizer=words,
        video_processor=processors_of("internvl.video_processing_internvl").InternVLVideoProcessor(
            size={"height": 24, "width": 24}
        ),
        image_seq_length=9,
        chat_template=chat("<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>"),
    )
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**vision_sizes(image=24, patch=4)),
        text_config=hf.Qwen2Config(**text_sizes(words)),
        image_token_id=words.context_image_token_id,
        image_seq_length=9,
    )
    prompt, size = "<IMG_CONTEXT> what is this ?", (72, 48)
    kind = hf.InternVLForConditionalGeneration
    return fed_family(kind, config, processor, prompt, size, "projection_layer", "fc2")


def _idefics(kind: str) -> Family:
    from transformers.models.smolvlm import (
        SmolVLMConfig,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
        processing_smolvlm,
    )

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
        "text_config": hf.LlamaConfig(**text_sizes(words)),
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
        small = SmolVLMConfig(vision_config=hf.SmolVLMVisionConfig(**vision), **common)
        make: Any = lambda: hf.SmolVLMForConditionalGeneration(small)  # noqa: E731
    else:
        processor = hf.Idefics3Processor(
            hf.Idefics3ImageProcessorPil(**sizes), words, image_seq_len=9, chat_template=template
        )
        config = hf.Idefics3Config(vision_config=hf.Idefics3VisionConfig(**vision), **common)
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
    processor = hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}),
        words,
        patch_size=4,
        img_size=24,
        downsample_factor=2,
        chat_template=chat("<image>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    )
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(
            **vision_sizes(image=24, patch=4, vision_use_head=False)
        ),
        text_config=hf.Cohere2Config(**text_sizes(words, layers=4, sliding_window=16)),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    prompt, size = "<image> what is this ?", (72, 48)
    kind = hf.AyaVisionForConditionalGeneration
    return fed_family(kind, config, processor, prompt, size, "vision_tower.encoder")


@family("cohere2_vision")
def cohere2_vision() -> Family:
    words = tokenizer(
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    images = processors_of("cohere2_vision.image_processing_cohere2_vision")
    processor = hf.Cohere2VisionProcessor(
        # This patch size is the side of a tile in tokens; the tower's own is another number.
        images.Cohere2VisionImageProcessor(size={"height": 24, "width": 24}, patch_size=3),
        words,
        chat_template=chat("<|IMG_PATCH|>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    )
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(
            **vision_sizes(image=24, patch=4, vision_use_head=False)
        ),
        text_config=hf.Cohere2Config(**text_sizes(words, layers=4, sliding_window=16)),
        image_token_id=words.image_token_id,
        alignment_intermediate_size=64,
    )
    prompt, size = "<|IMG_PATCH|> what is this ?", (72, 48)
    kind = hf.Cohere2VisionForConditionalGeneration
    return fed_family(kind, config, processor, prompt, size, "vision_tower.encoder")


@family("ovis2")
def ovis2() -> Family:
    indicators = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    words = tokenizer(("<image>", "<IMG_ATOM>", *indicators, "<|im_start|>", "<|im_end|>"))
    processor = hf.Ovis2Processor(
        hf.Ovis2ImageProcessorPil(size={"height": 24, "width": 24}, crop_to_patches=True),
        words,
        image_seq_length=9,
        chat_template=chat("<image>", "<|im_start|>", "<|im_end|>"),
    )
    config = hf.Ovis2Config(
        vision_config=hf.Ovis2VisionConfig(
            **vision_sizes(image=24, patch=4, vocab_size=45, hidden_stride=2)
        ),
        text_config=hf.Qwen2Config(**text_sizes(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=words.convert_tokens_to_ids(list(indicators)),
        vocab_size=len(words),
        hidden_size=32,
    )
    prompt, size = "<image> what is this ?", (72, 48)
    return fed_family(
        hf.Ovis2ForConditionalGeneration, config, processor, prompt, size, "encoder.layers"
    )
