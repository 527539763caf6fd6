"""What embedlens raises when it refuses: one readable line that says what to do instead."""

# How shipped code, which knows no class of ours, marks what is to become an InputError.
REFUSED = "REFUSED: "


class EmbedlensError(Exception):
    """Base of every refusal; the command line prints it as one line and exits with code 2."""


class InputError(EmbedlensError, ValueError):
    """Something the user gave (an image, a prompt, a name, a layer) cannot be used."""


class RemoteRunFailed(EmbedlensError):
    """A run that was sent to a server did not come back with a result; it can be repeated."""


class Unreached(RemoteRunFailed):
    """The server did not answer, did not take the run, or was lost before the result came back."""


class Unsupported(EmbedlensError):
    """This model cannot do what was asked, for the reason in the message."""


class NotFinite(Unsupported):
    """Numbers became NaN or infinite; the message says where, and what helps."""
