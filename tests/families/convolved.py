"""Families whose tokens come out of convolutions: what a token sees overlaps with its neighbours.

The raster is as square as any, but a token answers to a field around its cell, and in got_ocr2 the
middle of that field lies above and to the left of the middle of the cell.
"""

from __future__ import annotations

import torch
import transformers as hf

from families.family import Family, family, noise, random_model, tokenizer
from families.parts import fed_family, text_sizes
from families.rasters import PATCH, PIXELS, SIDE, chat_of, clip_images


@family("fast_vlm")
def fast_vlm() -> Family:
    tok = tokenizer(image_token="<image>", special=("<|im_start|>", "<|im_end|>"))
    # The released tower, FastViT, comes with timm; ConvNeXt has the same face: maps of features
    # [image, channel, row, column] at a fraction of the resolution.
    tower = hf.ConvNextConfig(
        hidden_sizes=[16, 24], depths=[1, 1], num_stages=2, patch_size=4, image_size=PIXELS
    )
    tower.hidden_size = 24
    config = hf.FastVlmConfig(
        vision_config=tower,
        text_config=hf.Qwen2Config(**text_sizes(tok)),
        image_token_index=tok.image_token_id,
        image_seq_length=SIDE * SIDE,
    )
    prompt, size = "<image> what is this ?", (32, 32)
    made = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(**clip_images()),
        tokenizer=tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_of("<image>\n"),
    )
    return fed_family(hf.FastVlmForConditionalGeneration, config, made, prompt, size, "pwconv2")


@family("got_ocr2")
def got_ocr2() -> Family:
    tok = tokenizer(special=("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"))
    config = hf.GotOcr2Config(
        vision_config=hf.GotOcr2VisionConfig(
            hidden_size=24,
            output_channels=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=4 * PIXELS,
            patch_size=PATCH,
            mlp_dim=32,
            window_size=4,
            global_attn_indexes=[1],
        ),
        text_config=hf.Qwen2Config(**text_sizes(tok)),
        image_token_index=tok.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=True,
    )
    prompt, size = "<|im_start|>user\n<img><imgpad></img>\nwhat is this ?<|im_end|>", (128, 96)
    made = hf.GotOcr2Processor(
        image_processor=hf.GotOcr2ImageProcessorPil(
            size={"height": 4 * PIXELS, "width": 4 * PIXELS}
        ),
        tokenizer=tok,
        chat_template=chat_of("<img><imgpad></img>\n"),
    )
    # The processor takes the number of tokens per image as an argument of the call: 256 in the
    # released model, which has no setting for it, so the class attribute is set for this one.
    made.num_image_tokens = SIDE * SIDE
    model = random_model(
        lambda: hf.GotOcr2ForConditionalGeneration(config), calm=("attn.proj", "mlp.lin2")
    )
    with torch.no_grad():
        for kernel in model.parameters():
            if kernel.shape[2:] == (3, 3):  # a token then shows mostly the middle of its field
                kernel[:, :, 1, 1] *= 8
    # Not `fed`: this processor takes images in one flat list and refuses one list per sample.
    inputs = dict(made(images=[noise(size)], text=[prompt], return_tensors="pt"))
    return Family(model, made, prompt, inputs, size)
