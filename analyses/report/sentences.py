"""Sentences whose words visual tokens are compared with: the built-in ones, or one's own."""

from pathlib import Path

from ...lens.errors import InputError


def read_sentences(path: Path) -> list[str]:
    """A text bank from a file, one sentence a line.

    Raises:
        InputError: No such file, no plain text, or nothing in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not plain UTF-8 text: one sentence a line") from None
    except OSError as error:
        raise InputError(f"cannot read the sentences in {path}: {error.strerror}") from None
    if not any(line.strip() for line in lines):
        raise InputError(f"{path} is empty: one sentence a line")
    return lines


def everyday_sentences() -> list[str]:
    """The built-in text bank: plain English captions of everyday scenes."""
    path = Path(__file__).with_name("everyday_sentences.txt")
    return path.read_text(encoding="utf-8").splitlines()
