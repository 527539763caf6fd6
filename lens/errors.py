"""What embedlens raises when it refuses: one readable line that says what to do instead."""


class EmbedlensError(Exception):
    """Base of every refusal; the command line prints it as one line and exits with code 2."""


class InputError(EmbedlensError, ValueError):
    """Something the user gave (an image, a prompt, a name, a layer) cannot be used."""


class Unsupported(EmbedlensError):
    """This model cannot do what was asked, for the reason in the message."""
