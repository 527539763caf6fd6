"""Words to token ids."""

from embedlens.lens.scenes import IMAGE_SIZE, PATCH_SIZE, VOCABULARY

IDS = {word: index for index, word in enumerate(VOCABULARY)}
PAD, BOS, EOS, UNKNOWN, IMAGE = (IDS[w] for w in ("<pad>", "<bos>", "<eos>", "<unk>", "<image>"))
FIRST_WORD = IMAGE + 1
VISUAL_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2


def encode(text: str) -> list[int]:
    """Ids of blank-separated words, all of which must be known."""
    return [IDS[word] for word in text.split()]


USER = [BOS, *encode("user :")]
ASSISTANT = encode("assistant :")
