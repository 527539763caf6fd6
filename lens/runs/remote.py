"""Runs on a server, and what can go wrong on the way there and back.

A remote run fails in a dozen ways that have nothing to do with the experiment, each with an
exception of another library that says nothing about what to do. Here each becomes one line. A
failed run leaves nothing behind, so the same call can be made again.
"""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

import websocket
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.tracing.backend import Backend
from pydantic import ValidationError

from ..errors import (
    REFUSED,
    EmbedlensError,
    InputError,
    RemoteRunFailed,
    Unreached,
    Unsupported,
)

# Transformers models that are here for their structure only. (Weights on the meta device are no
# sign of it: those that accelerate offloads are there too.)
WEIGHTS_ON_SERVER: WeakSet[Any] = WeakSet()
REPEAT = "nothing was left behind: make the same call again"
UNREACHED = (ConnectionRefusedError, websocket.WebSocketAddressException)
FAILED = (RemoteError, ConnectionError, TimeoutError, ValidationError)
KEY = (
    "set the environment variable NDIF_API_KEY, or nnsight.CONFIG.set_default_api_key('…'), to a "
    "key of that server"
)


def check_identity(envoy: Any) -> None:
    """Make sure that a server can be told which model is meant."""
    known = getattr(envoy, "repo_id", None)
    try:
        envoy.to_model_key()
    # The hub's client raises what its own HTTP library raises, whichever that is.
    except Exception as error:
        reason = _first_line(error)
        if not known or isinstance(error, ValueError | TypeError) or "404" in reason:
            raise InputError(
                f"a server knows models by their hub id, and {known or 'this model'!r} is none "
                f"({type(error).__name__}: {reason}): VisualLM.load('organisation/name')"
            ) from error
        raise RemoteRunFailed(
            f"the hub could not be asked for the full name of {known!r}, which a server wants "
            f"({type(error).__name__}: {reason}); {REPEAT} with the hub in reach"
        ) from error


def destination(model: Any, remote: bool | str) -> bool | str:
    """Where a run goes: to a server by itself where the weights are not here."""
    if model not in WEIGHTS_ON_SERVER:
        return remote
    if remote == "local":
        raise InputError("remote='local' runs here, and the weights of this model are on a server")
    return remote or True


def goes_to_server(host: Any, remote: bool | str) -> bool:
    """Whether a run is sent; the server must then be told which model is meant."""
    if remote in (False, "local"):
        return False
    check_identity(host)
    return True


def need_weights(model: Any, what: str) -> Any:
    """The transformers model, if its weights are here."""
    if model in WEIGHTS_ON_SERVER:
        raise Unsupported(
            f"{what}: the weights of this model are on the server; runs and their captures come "
            "from there, but what reads the weights themselves needs VisualLM.load(name)"
        )
    return model


class ExplainingBackend(Backend):  # type: ignore[misc]
    """Sends an nnsight block through nnsight's remote backend, and says what went wrong."""

    def __init__(self, inner: RemoteBackend) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, tracer: Any = None) -> Any:
        """Run the tracer's block on the server."""
        try:
            return self.inner(tracer)
        except (*FAILED, *_http("HTTPError"), websocket.WebSocketException) as error:
            raise explained(error, self.inner) from error


def _http(name: str) -> tuple[Any, ...]:
    """An exception class of httpx, if anything has loaded it: else it cannot have been raised.

    Loading it here would draw from Python's random state, because its command line loads rich.
    """
    library = sys.modules.get("httpx")
    return () if library is None else (getattr(library, name),)


def explained(error: Exception, backend: RemoteBackend) -> EmbedlensError:
    """The one line for an exception that a remote run ended with."""
    server = urlsplit(backend.host).netloc
    cause: Any = error.__cause__ if isinstance(error, RemoteError) else error
    status = None
    if isinstance(cause, _http("HTTPStatusError")):
        status = cause.response.status_code
    elif isinstance(cause, websocket.WebSocketBadStatusException):
        status = cause.status_code
    if status is not None:
        return _answered(status, _first_line(error), server, backend)
    if isinstance(error, RemoteError) and cause is None:
        return _job_failed(str(error), server)
    if isinstance(cause, (*UNREACHED, *_http("ConnectError"))):
        return Unreached(
            f"no server answers at {server} ({_first_line(cause)}): check nnsight.CONFIG.API.HOST "
            "(or NDIF_HOST) and the network"
        )
    return Unreached(
        f"the connection to {server} was lost before the result came back "
        f"({type(cause).__name__}); {REPEAT}"
    )


def _answered(status: int, said: str, server: str, backend: RemoteBackend) -> EmbedlensError:
    """The server answered, and did not take the run."""
    said = said.removeprefix("Failed to send request: ")
    if status in (401, 403):
        given = "does not take the API key that was sent" if backend.api_key else "wants an API key"
        return Unreached(f"{server} {given} ({status}: {said}): {KEY}")
    if status == 404:
        return Unreached(
            f"{server} does not run {backend.model_key.partition(':')[2]} ({said}): "
            "nnsight.ndif_status() lists what it runs; the same call without remote= runs here"
        )
    if status in (408, 429) or status >= 500:
        return Unreached(f"{server} does not take runs now ({status}: {said}); {REPEAT} later")
    return RemoteRunFailed(f"{server} refused the run ({status}: {said})")


def _job_failed(description: str, server: str) -> EmbedlensError:
    """The server took the run, and the run failed there."""
    lines = [line.strip() for line in description.splitlines() if line.strip()]
    reason = lines[-1] if lines else "no reason given"
    if REFUSED in reason:
        return InputError(reason.partition(REFUSED)[2])
    advice = f"if it is not about this run, {REPEAT}"
    if "whitelist" in reason or "No module named" in reason:
        advice = (
            "a block may name tensors, plain values and functions over torch: values like "
            "`layers = model.layers` are made before it"
        )
    return RemoteRunFailed(f"the run failed on {server}: {reason}; {advice}")


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
