"""What an operation shows when somebody looks: its settings and its own methods.

It is a pydantic model, with some fifty names of that in every completion and page of help, and with
validators in its signature.
"""

from __future__ import annotations

from abc import ABC
from inspect import Parameter, Signature
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

_MACHINERY = {"model_config"}
_PLAIN = (str, int, float, tuple, type(None))


class PlainNames(ModelMetaclass):
    """A class of models whose ``dir`` leaves out what comes from pydantic and from Python."""

    def __dir__(self) -> list[str]:
        ours = [kind for kind in self.__mro__ if kind not in (*BaseModel.__mro__, ABC)]
        fields = getattr(self, "__pydantic_fields__", {})
        names = {name for kind in ours for name in (*vars(kind), *fields)}
        return sorted(name for name in names if not name.startswith("_") and name not in _MACHINERY)


def plain_signature(kind: type[BaseModel]) -> Signature:
    """The settings with their defaults as they are written, an operation's own before all others'.

    ``op`` is left out: the class says which operation it is.
    """
    fields = {name: field for name, field in kind.model_fields.items() if name != "op"}
    own = [name for name in fields if name not in ("phase", "allow_empty")]
    parameters = []
    for name in (*own, *(name for name in fields if name not in own)):
        default = fields[name].get_default(call_default_factory=True)
        if fields[name].is_required():
            default = Parameter.empty
        elif not isinstance(default, _PLAIN):
            default = str(default)
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default))
    return Signature(parameters)
