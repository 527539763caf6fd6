"""Models that turn an image into words of their vocabulary: codes of a VQ-GAN.

Every code has a cell in the image, but its row is a text embedding: a row says which of a few codes
was chosen, never how far the pixels moved, and two cells with one code have the same row.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

from families.family import Family, family, noise, random_model, tokenizer
from families.parts import text_sizes
from tiny import CHAT


def near_sighted(codec: Any, *sizes: Any) -> None:
    """Let a VQ-GAN see one cell at a time and know 64 colours, so that a code shows its own cell.

    A random code book answers any change with another code, or none: rows of far cells would move
    as much as the own one. Convolutions average inside their cell, residual branches are closed,
    and the norm that would tell every cell of every other is left out.
    """
    with torch.no_grad():
        for name, weight in codec.encoder.named_parameters():
            if weight.ndim >= 4 and weight.shape[-1] == 3:
                own = slice(0, 2) if "downsample" in name else slice(1, 2)
                kept = torch.zeros_like(weight)
                mean = weight[..., own, own].mean((-1, -2), keepdim=True)
                kept[..., own, own] = 3 / (own.stop - own.start) * mean
                weight.copy_(kept)
            if "conv2" in name or "proj_out" in name or "out_proj" in name:
                weight.zero_()
        codec.encoder.norm_out = torch.nn.Identity()
        levels = torch.tensor([-0.75, -0.25, 0.25, 0.75])
        colours = torch.cartesian_prod(levels, levels, levels).T.view(1, 3, 8, 8)
        seen: list[torch.Tensor] = []
        watch = codec.quantize.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        codec.encode(colours.repeat_interleave(8, -1).repeat_interleave(8, -2), *sizes)
        watch.remove()
        answers = seen[0].reshape(codec.quantize.embedding.embedding_dim, 64).T
        codec.quantize.embedding.weight.copy_(answers)


@family("chameleon")
def chameleon() -> Family:
    """The image becomes words of the vocabulary: codes of a VQ-GAN, whose logits are masked."""

    codes = [f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z" for i in range(64)]
    tok = tokenizer(
        codes,
        image_token="<image>",
        boi_token="<racm3:break>",
        eoi_token="<eoss>",
        sep_token="<reserved08706>",
    )
    tok.padding_side = "left"
    config = hf.ChameleonConfig(
        **text_sizes(tok),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 64,
            "latent_channels": 8,
            "resolution": 48,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
        },
        vocabulary_map={
            word: tok.convert_tokens_to_ids(word) for word in ("<image>", "<eoss>", *codes)
        },
    )
    processor = hf.ChameleonProcessor(
        hf.ChameleonImageProcessorPil(
            size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
        ),
        tok,
        image_seq_length=36,
    )
    processor.chat_template = CHAT
    size, prompt = (64, 48), "<image> what is this ?"
    inputs = processor(images=noise(size), text=prompt, return_tensors="pt")
    model = random_model(lambda: hf.ChameleonForConditionalGeneration(config))
    near_sighted(model.model.vqmodel)
    return Family(model, processor, prompt, dict(inputs), size)


@family("emu3")
def emu3() -> Family:
    """Codes of a VQ-GAN as rows of text embeddings; each line ends in a newline of the same id."""

    codes = [f"<|visual token {i:06}|>" for i in range(64)]
    tok = tokenizer(
        (*codes, "<|extra_200|>", "*"),
        image_token="<image>",
        boi_token="<|image start|>",
        eoi_token="<|image end|>",
        image_wrapper_token="<|image token|>",
        eof_token="<|extra_201|>",
    )
    tok.padding_side = "left"
    config = hf.Emu3Config(
        text_config=text_sizes(tok, attention_dropout=0.0),
        vq_config={
            "codebook_size": 64,
            "embed_dim": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "hidden_size": 32,
        },
        vocabulary_map={
            word: tok.convert_tokens_to_ids(word) for word in ("<image>", "<|extra_200|>", *codes)
        },
    )
    processor = hf.Emu3Processor(
        hf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64), tok, chat_template=CHAT
    )
    size, prompt = (48, 32), "<image> what is this ?"
    inputs = processor(images=noise(size), text=prompt, return_tensors="pt")
    model = random_model(lambda: hf.Emu3ForConditionalGeneration(config))
    near_sighted(model.model.vqmodel, [(64, 64)])
    return Family(model, processor, prompt, dict(inputs), size)
