"""More families that take any resolution, each with a twist on the grid of `families.grids`.

The twist is where code written for Qwen goes wrong: images that are not merged though videos are,
patches that arrive in rows, images padded on the right and below instead of stretched, type ids of
a second kind that route tokens to experts.
"""

from __future__ import annotations

import transformers as hf

from families.family import Family, family, tokenizer
from families.grids import (
    AREAS,
    CALM,
    CELL,
    MERGE,
    PADS,
    PATCH,
    SIZE,
    TURNS,
    ids_of,
    qwen,
    rope,
    tower,
)
from families.parts import fed_family, offline, text_sizes
from families.rasters import begins, chat_of
from families.torchless import processors_of


@family("video_llama_3")
def video_llama_3() -> Family:
    tok = tokenizer(special=(*PADS, *TURNS))
    marks = ids_of(tok)
    config = hf.VideoLlama3Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": PATCH,
        },
        text_config=text_sizes(tok, model_type="qwen2"),
        image_token_id=marks["image_token_id"],
        video_token_id=marks["video_token_id"],
    )
    prompt, size = (
        "<|im_start|>user\n<|image_pad|>\nwhat is this ?<|im_end|>\n",
        (5 * PATCH, 4 * PATCH),
    )
    made = offline(hf.VideoLlama3Processor)(
        # As released: stills are not merged, frames of videos are.
        image_processor=hf.VideoLlama3ImageProcessorPil(patch_size=PATCH, merge_size=1, size=AREAS),
        tokenizer=tok,
        video_processor=None,
        chat_template=chat_of("<|image_pad|>\n", "<|video_pad|>\n"),
    )
    return fed_family(hf.VideoLlama3ForConditionalGeneration, config, made, prompt, size, *CALM)


@family("ernie4_5_vl_moe")
def ernie4_5_vl_moe() -> Family:
    marks = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    tok = tokenizer(**marks)
    sizes = tower()
    del sizes["temporal_patch_size"], sizes["out_hidden_size"]
    config = hf.Ernie4_5_VLMoeConfig(
        vision_config=sizes,
        text_config=text_sizes(
            tok,
            rope_parameters=rope(1, 1, 2),
            moe_intermediate_size=[16, 16],
            moe_num_experts=4,
            moe_k=2,
            moe_num_shared_experts=1,
        ),
        tie_word_embeddings=True,
        **{f"{name}_id": tok.convert_tokens_to_ids(token) for name, token in marks.items()},
    )
    image = "Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
    prompt = f"user : {image}what is this ?\na :"
    made = offline(hf.Ernie4_5_VLMoeProcessor)(
        image_processor=hf.Ernie4_5_VLMoeImageProcessorPil(
            patch_size=PATCH, merge_size=MERGE, size=AREAS
        ),
        tokenizer=tok,
        video_processor=None,
        chat_template=chat_of(image, "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>", "", ""),
    )
    return fed_family(hf.Ernie4_5_VLMoeForConditionalGeneration, config, made, prompt, SIZE, *CALM)


@family("kimi_k25")
def kimi_k25() -> Family:

    images = processors_of("kimi_k25.image_processing_kimi_k25")
    marks = ("<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>")
    video = "<|kimi_k25_video_placeholder|>"
    tok = tokenizer(special=(*marks, video, "<|im_user|>", "<|im_middle|>", "<|im_end|>"))
    config = hf.Kimi_K25Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": PATCH,
            "merge_kernel_size": [MERGE, MERGE],
            "pos_emb_height": 8,
            "pos_emb_width": 8,
        },
        text_config=text_sizes(
            tok,
            model_type="deepseek_v3",
            num_key_value_heads=4,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            moe_intermediate_size=16,
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
        ),
        projection_hidden_size=32,
        image_token_id=tok.convert_tokens_to_ids("<|media_pad|>"),
        video_token_id=tok.convert_tokens_to_ids(video),
        vision_start_token_id=tok.convert_tokens_to_ids("<|media_begin|>"),
        vision_end_token_id=tok.convert_tokens_to_ids("<|media_end|>"),
    )
    image = "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
    prompt = f"<|im_user|>user<|im_middle|>{image}what is this ?<|im_end|>"
    # Not a multiple of a cell: the last column and row of cells are padded, not stretched.
    size = (4 * CELL - 4, 3 * CELL - 8)
    made = offline(hf.Kimi_K25Processor)(
        image_processor=images.Kimi_K25ImageProcessor(
            patch_size=PATCH,
            merge_size=MERGE,
            max_patches=256,
            size={"max_height": 16, "max_width": 16},
        ),
        tokenizer=tok,
        video_processor=None,
        chat_template=chat_of(image, video, "<|im_user|>", "<|im_end|>"),
    )
    return fed_family(
        hf.Kimi_K25ForConditionalGeneration, config, made, prompt, size, "wo.", "out_proj"
    )


@family("paddleocr_vl")
def paddleocr_vl() -> Family:
    start, end = "<|IMAGE_START|>", "<|IMAGE_END|>"
    tok = begins(tokenizer(image_token="<|IMAGE_PLACEHOLDER|>", special=(start, end, "<video>")))
    config = hf.PaddleOCRVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 4 * CELL,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
        },
        text_config=text_sizes(tok, head_dim=8, rope_parameters=rope(2, 1, 1)),
        image_token_id=tok.image_token_id,
        video_token_id=tok.convert_tokens_to_ids("<video>"),
        vision_start_token_id=tok.convert_tokens_to_ids(start),
        vision_end_token_id=tok.convert_tokens_to_ids(end),
    )
    image = f"{start}<|IMAGE_PLACEHOLDER|>{end}"
    prompt = f"user : {image}what is this ?\na :"
    made = hf.PaddleOCRVLProcessor(
        image_processor=hf.PaddleOCRVLImageProcessorPil(
            patch_size=PATCH, merge_size=MERGE, size=AREAS
        ),
        tokenizer=tok,
        chat_template=chat_of(image, "", "", ""),
    )
    return fed_family(hf.PaddleOCRVLForConditionalGeneration, config, made, prompt, SIZE, *CALM)


@family("exaone4_5")
def exaone4_5() -> Family:

    tok = tokenizer(special=(*PADS, *TURNS))
    marks = ids_of(tok)
    config = hf.Exaone4_5_Config(
        vision_config=tower(num_key_value_heads=1, window_size=2 * CELL, fullatt_block_indexes=[1]),
        text_config=text_sizes(
            tok,
            model_type="exaone4",
            num_hidden_layers=4,
            sliding_window=8,
            sliding_window_pattern=4,
        ),
        image_token_id=marks["image_token_id"],
        video_token_id=marks["video_token_id"],
    )
    return qwen(hf.Exaone4_5_ForConditionalGeneration, config, hf.Exaone4_5_Processor, tok)


@family("qwen2_5_omni_thinker")
def qwen2_5_omni_thinker() -> Family:
    marks = {
        "image_token": "<|IMAGE|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    tok = tokenizer(special=TURNS, **marks)
    ids = {name: tok.convert_tokens_to_ids(token) for name, token in marks.items()}
    config = hf.Qwen2_5OmniThinkerConfig(
        vision_config=tower(window_size=2 * CELL, fullatt_block_indexes=[1]),
        audio_config={
            "num_mel_bins": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "max_source_positions": 50,
            "output_dim": 32,
        },
        text_config=text_sizes(tok, rope_parameters=rope(2, 1, 1)),
        audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        user_token_id=tok.convert_tokens_to_ids("user"),
    )
    image = "<|vision_bos|><|IMAGE|><|vision_eos|>"
    prompt = f"<|im_start|>user\n{image}what is this ?<|im_end|>\n<|im_start|>assistant\n"
    made = offline(hf.Qwen2_5OmniProcessor)(
        image_processor=hf.Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=AREAS),
        video_processor=None,
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=16),
        tokenizer=tok,
        chat_template=chat_of(image, "<|vision_bos|><|VIDEO|><|vision_eos|>"),
    )
    return fed_family(
        hf.Qwen2_5OmniThinkerForConditionalGeneration, config, made, prompt, SIZE, *CALM
    )
