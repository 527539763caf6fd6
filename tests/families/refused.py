"""Models that must be refused with a reason: the image never becomes rows of the decoder's input.

Some of them carry an image token id and a decoder with layers, so that code which trusts names
finds everything it looks for and reads rows that have nothing to do with the image.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from families.family import Family, family, noise, random_model, tokenizer

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CHAT = (
    "{% for message in messages %}user : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}a :{% endif %}"
)


@family("mllama")
def mllama() -> Family:
    """Gated cross-attention in layer 1; tiles 16x16 of 2x2 patches, at most 4 of them."""

    tok = tokenizer(("<|image|>", "<|python_tag|>"))
    config = hf.MllamaConfig(
        text_config=hf.MllamaTextConfig(
            **TEXT,
            vocab_size=len(tok),
            cross_attention_layers=[1],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vision_config=hf.MllamaVisionConfig(
            hidden_size=24,
            attention_heads=4,
            num_hidden_layers=2,
            num_global_layers=1,
            intermediate_size=32,
            vision_output_dim=48,
            intermediate_layers_indices=[0],
            image_size=16,
            patch_size=8,
        ),
        image_token_index=tok.convert_tokens_to_ids("<|image|>"),
    )
    model = random_model(lambda: hf.MllamaForConditionalGeneration(config))
    with torch.no_grad():  # gates start closed: the image would not reach the text at all
        for name, weight in model.named_parameters():
            if "attn_gate" in name or "mlp_gate" in name:
                weight.fill_(1.0)
    processor = hf.MllamaProcessor(
        hf.MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=4),
        tok,
        chat_template=CHAT.replace("IMAGE", "<|image|>"),
    )
    size, prompt = (32, 16), "<|image|> what is this ?"
    inputs = processor(images=noise(size), text=prompt, return_tensors="pt")
    return Family(model, processor, prompt, dict(inputs), size)


@family("florence2")
def florence2() -> Family:
    """Encoder-decoder: the visual rows stand in the encoder (one mean row, then a 2x2 grid)."""

    tok = tokenizer(image_token="<image>")
    config = hf.Florence2Config(
        text_config=hf.BartConfig(
            vocab_size=len(tok),
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
        ),
        vision_config=hf.Florence2VisionConfig(
            depths=[1, 1, 1, 1],
            embed_dim=[8, 16, 24, 32],
            num_heads=[2, 2, 2, 2],
            num_groups=[2, 2, 2, 2],
            window_size=4,
            projection_dim=32,
        ),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )
    processor = hf.Florence2Processor(
        hf.CLIPImageProcessorPil(
            size={"height": 64, "width": 64}, do_center_crop=False, image_seq_length=5
        ),
        tok,
    )
    size, prompt = (64, 64), "what is this ?"
    inputs = processor(images=noise(size), text=prompt, return_tensors="pt")
    start = torch.full((len(inputs["input_ids"]), 1), 2)
    model = random_model(lambda: hf.Florence2ForConditionalGeneration(config))
    return Family(model, processor, prompt, {**inputs, "decoder_input_ids": start}, size)


@family("blip-2-t5")
def blip2_t5() -> Family:
    """Encoder-decoder: the four queries stand in T5's encoder."""

    tok = tokenizer(("<image>",))
    config = hf.Blip2Config(
        text_config=hf.T5Config(
            vocab_size=len(tok),
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            eos_token_id=2,
            pad_token_id=0,
        ).to_dict(),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        qformer_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": len(tok),
            "encoder_hidden_size": 24,
        },
        num_query_tokens=4,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    processor = hf.Blip2Processor(
        hf.BlipImageProcessorPil(size={"height": 32, "width": 32}), tok, num_query_tokens=4
    )
    size, prompt = (48, 32), "what is this ?"
    inputs = processor(images=noise(size), text=prompt, return_tensors="pt")
    start = torch.zeros((len(inputs["input_ids"]), 1), dtype=torch.long)
    model = random_model(lambda: hf.Blip2ForConditionalGeneration(config))
    return Family(model, processor, prompt, {**inputs, "decoder_input_ids": start}, size)


@family("idefics")
def idefics() -> Family:
    """Gated cross-attention blocks in a second list of layers; no image token id in the config."""

    tok = tokenizer(("<fake_token_around_image>", "<end_of_utterance>"), image_token="<image>")
    text = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
    config = hf.IdeficsConfig(
        **text,
        vocab_size=len(tok),
        cross_layer_interval=2,
        vision_config={
            "embed_dim": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
        },
        alpha_initializer="ones",
    )
    processor = hf.IdeficsProcessor(hf.IdeficsImageProcessorPil(image_size=16), tok, image_size=16)
    size, prompt = (16, 16), "what is this ?"
    inputs = processor(images=[noise(size)], text=[prompt], return_tensors="pt")
    model = random_model(lambda: hf.IdeficsForVisionText2Text(config))
    return Family(model, processor, prompt, dict(inputs), size)


@family("llama")
def llama() -> Family:
    """A language model that has never seen an image."""

    tok = tokenizer()
    config = hf.LlamaConfig(**TEXT, vocab_size=len(tok))
    prompt = "what is this ?"
    inputs = tok(prompt, return_tensors="pt", return_token_type_ids=False)
    model = random_model(lambda: hf.LlamaForCausalLM(config))
    return Family(
        model, None, prompt, dict(inputs), why_no_processor="a text model has a tokenizer only"
    )


@family("vision-encoder-decoder")
def vision_encoder_decoder() -> Family:
    """A captioner: a ViT encoder, and a GPT-2 decoder that looks at it by cross-attention only."""

    tok = tokenizer()
    encoder = hf.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    )
    decoder = hf.GPT2Config(
        vocab_size=len(tok), n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1
    )
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    images = hf.ViTImageProcessorPil(size={"height": 16, "width": 16})
    size, prompt = (24, 16), "what is this ?"
    inputs = dict(images(noise(size), return_tensors="pt"))
    inputs["decoder_input_ids"] = tok(prompt, return_tensors="pt")["input_ids"]
    model = random_model(lambda: hf.VisionEncoderDecoderModel(config))
    return Family(
        model, None, prompt, inputs, size, why_no_processor="the family has an image processor only"
    )
