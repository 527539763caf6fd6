"""The words of the world, and the colours, kinds and places they name."""

SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "green": (32, 165, 55),
    "blue": (38, 70, 225),
    "yellow": (245, 222, 30),
    "purple": (135, 40, 175),
    "orange": (250, 138, 15),
    "cyan": (40, 215, 228),
    "pink": (250, 140, 195),
}
"""Colour word to RGB, 0 to 255; a drawn object is a slightly jittered version of it."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
# I and O are left out: they cannot be told from 1 and 0 at this size.
LETTERS = tuple("ABCDEFGHJKLMNPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
KINDS = SHAPES + LETTERS + DIGITS
CATEGORIES = ("shape", "letter", "digit")

BACKGROUNDS = ("plain", "noisy", "striped", "checkered")
ROWS = ("top", "upper", "middle", "lower", "bottom")
COLUMNS = ("farleft", "left", "center", "right", "farright")
NUMBERS = ("zero", "one", "two", "three", "four")

_WORDS = """
, . 0 1 2 3 4 5 6 7 8 9 : ? A B C D E F G H J K L M N P Q R S T U V W X Y Z a above after and
animal anna apple are assistant at background ball banana beach bear below ben big bird black
blood blue bottom box bracelet bread buys cake carl carries carrot cat center checkered cheese
cherry church circle city coal coin cold color comes cow cross cyan day describe diamond digit
digits do does dog donut dora draws duck eats emma evening farleft farright finds fish
flamingo food forest four fox fred friday frog garden gina goes grape grass green heart horse
hot house how hugo ice image in is kite lagoon leaf left lemon letter letters like likes lion
looks love lower make many market mean means middle milk monday morning mountain mouse near
night no noisy nothing number object objects of on one opposite or orange paints pig pink
place plain plum plus pumpkin purple pyramid red rice right ring river roof rose school sea
sees sells shape shapes sheep sheriff shown shows sky small snow soup square star station
striped sun sunday symbol the there three tiger to today tomato tomorrow top triangle two
upper user wants what wheel where white window wolf yellow yes yesterday zero
"""

VOCABULARY: tuple[str, ...] = (*SPECIAL_WORDS, *_WORDS.split())
"""Every word a model of this world knows, in token-id order. Written out, never sampled:
the ids are baked into the shipped weights. The words that name nothing in a picture (foods,
animals, people) are there so that reading a visual token as a word can go wrong."""


def category_of(kind: str) -> str:
    """The category ("shape", "letter" or "digit") of a kind such as "circle" or "A"."""
    if kind in SHAPES:
        return "shape"
    return "letter" if kind in LETTERS else "digit"
