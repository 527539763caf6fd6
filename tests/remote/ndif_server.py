"""A stand-in for an NDIF server on this machine, in a process of its own.

It speaks the wire protocol of nnsight 0.8.1 (websocket ``/subscribe``, multipart ``/request``,
status frames, results in a frame or to be fetched) and runs each job the way a model actor has to.
Python packages named with ``--absent`` cannot be imported in it, and what a payload may import is
limited to ``ADMITTED``. What production adds (its own whitelist, queues, placement) it cannot show.

Usage: ``python ndif_server.py --absent embedlens [--stale] [--key KEY] FOLDER…``, which
prints its address.
With ``--stale`` it keeps nnsight's caches of sources between requests, as a long-lived server does.
``POST /next/FAULT`` makes the next job fail: ``drop`` (the request is not answered),
``reject``, ``crash``, ``hang-up`` (a closing frame in place of the result) or ``cut`` (none).
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import email
import hashlib
import importlib.util
import io
import json
import queue
import socket
import struct
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
import zstandard
from nnsight import TransformersModel
from nnsight.intervention.serialization import CustomCloudUnpickler
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc
from transformers import AutoProcessor

# nnsight's own wire format needs the second group, whatever is sent.
# What the sandbox of the one public NDIF server admits. It refused dataclasses, abc, enum, json,
# transformers and this package's classes.
ADMITTED = frozenset(("builtins", "numpy", "torch"))
WIRE = frozenset(("cloudpickle", "collections", "nnsight"))
MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# Larger results are left on the server to be fetched.
LARGEST_FRAME = 1 << 15


class Refused(Exception):
    """The payload names what this sandbox does not admit."""


class Sandbox(CustomCloudUnpickler):
    """Unpickles a payload and refuses what is neither admitted nor nnsight's own.

    Seen are classes and functions taken from a module, modules taken whole, and the import
    statements in the source of every function that travels by value.
    """

    def find_class(self, module: str, name: str) -> Any:
        self.admit(module, ADMITTED | WIRE)
        found = super().find_class(module, name)
        if (module.partition(".")[0], name) == ("cloudpickle", "subimport"):
            return self.checked(found, lambda imported: self.admit(imported, ADMITTED))
        if name == "_load_function":
            return self.checked(found, self.read)
        return found

    def checked(self, load: Callable[..., Any], check: Callable[[str], None]) -> Any:
        def checked_load(first: str, *rest: Any) -> Any:
            check(first)
            return load(first, *rest)

        return checked_load

    def read(self, source: str) -> None:
        for name in imports(source):
            self.admit(name, ADMITTED)

    def admit(self, module: str, admitted: frozenset[str]) -> None:
        if module.partition(".")[0] not in admitted:
            raise Refused(f"Module {module} is not whitelisted")


def imports(source: str) -> list[str]:
    """Modules that import statements name, wherever in the source they stand."""
    nodes = list(ast.walk(ast.parse(source)))
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return named + [node.module or "." for node in nodes if isinstance(node, ast.ImportFrom)]


def unpack(payload: bytes, persistent: dict[str, Any], *, compressed: bool) -> Any:
    """The tracer in a payload, ready to run, after the sandbox has seen everything it names."""
    tracer = RequestModel.deserialize(payload, persistent, compressed, Sandbox)
    code = tracer.info.frame.f_code.co_filename
    lines = sys.modules["linecache"].cache[code][2]  # the block, as deserialize left it
    for name in imports("".join(lines)):
        if name.partition(".")[0] not in ADMITTED:
            raise Refused(f"Module {name} is not whitelisted")
    return tracer


class Absent:
    """Finds no package of the given names, wherever they may be installed."""

    def __init__(self, names: list[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} on this server", name=name)


class Server:
    """Models by folder, subscribers by session, jobs run one after the other."""

    def __init__(self, folders: list[str], key: str, *, stale: bool) -> None:
        self.models = {folder: self.load(folder) for folder in folders}
        self.key, self.stale = key, stale
        self.sockets: dict[str, socket.socket] = {}
        self.results: dict[str, bytes] = {}
        self.jobs: queue.Queue[tuple[str, RequestModel, bytes, str]] = queue.Queue()
        self.fault = ""

    @staticmethod
    def load(folder: str) -> Any:
        processor = AutoProcessor.from_pretrained(folder)
        model = TransformersModel(
            folder,
            task="image-text-to-text",
            processor=processor,
            tokenizer=processor.tokenizer,
            dispatch=True,
        )
        model._module.requires_grad_(False)
        return model

    def model_of(self, key: str) -> Any:
        described = json.loads(key.partition(":")[2])
        if described["task"] != "image-text-to-text":
            return None
        return self.models.get(described["repo_id"])

    def work(self, address: str) -> None:
        """Carry out jobs for ever; on one thread, which nnsight's greenlets want."""
        while True:
            job, request, payload, fault = self.jobs.get()
            self.tell(request, ResponseModel(id=job, status=Status.QUEUED))
            if fault == "hang-up":
                self.send(request, frame(b"", opcode=8))
                continue
            if fault == "cut":
                self.sockets[request.session_id].shutdown(socket.SHUT_RDWR)
                continue
            self.tell(request, ResponseModel(id=job, status=Status.RUNNING))
            try:
                if fault == "crash":
                    raise MemoryError("out of memory on device 0")
                saved = self.run(self.model_of(request.model_key), request, payload)
            except Exception as error:
                told = "".join(traceback.format_exception(error))
                self.tell(request, ResponseModel(id=job, status=Status.ERROR, description=told))
                continue
            data: bytes | str = saved
            if len(saved) > LARGEST_FRAME:
                self.results[job] = saved
                data = f"{address}/result/{job}"
            self.tell(request, ResponseModel(id=job, status=Status.COMPLETED, data=data))

    def run(self, model: Any, request: RequestModel, payload: bytes) -> bytes:
        if not self.stale:
            SOURCES.clear()
            BLOCKS.clear()
        model._remoteable_set_env(request.env)
        persistent = model._remoteable_persistent_objects()
        tracer = unpack(payload, persistent, compressed=request.compress)
        inc()
        try:
            tracer.execute(tracer.info.code)
            held = tracer.info.frame.f_locals
            saves = {name: value for name, value in held.items() if id(value) in _saves()}
        finally:
            dec()
        buffer = io.BytesIO()
        torch.save(saves, buffer)
        data = buffer.getvalue()
        return zstandard.ZstdCompressor(level=3).compress(data) if request.compress else data

    def tell(self, request: RequestModel, response: ResponseModel) -> None:
        binary = isinstance(response.data, bytes)
        body = response.pickle() if binary else response.model_dump_json().encode()
        self.send(request, frame(body, opcode=2 if binary else 1))

    def send(self, request: RequestModel, framed: bytes) -> None:
        # A subscriber may leave at any moment, and the server stays.
        with contextlib.suppress(KeyError, OSError, ValueError):
            self.sockets[request.session_id].sendall(framed)


def frame(body: bytes, opcode: int) -> bytes:
    """One unmasked websocket frame, as a server sends it (RFC 6455, section 5.2)."""
    size = len(body)
    if size < 126:
        length = struct.pack("!B", size)
    elif size < 1 << 16:
        length = struct.pack("!BH", 126, size)
    else:
        length = struct.pack("!BQ", 127, size)
    return bytes([0x80 | opcode]) + length + body


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    """A request handler bound to one server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            if self.path == "/subscribe":
                self.subscribe()
            elif self.path.startswith("/result/"):
                self.answer(200, server.results.pop(self.path.rpartition("/")[2]))
            else:
                self.answer(404, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.startswith("/next/"):
                server.fault = self.path.rpartition("/")[2]
                self.answer(200, b"{}")
            else:
                self.request_job(body)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int, detail: str) -> None:
            self.answer(status, json.dumps({"detail": detail}).encode())

        def subscribe(self) -> None:
            nonce = self.headers["Sec-WebSocket-Key"]
            digest = hashlib.sha1(f"{nonce}{MAGIC}".encode()).digest()
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
            self.end_headers()
            session = str(uuid.uuid4())
            server.sockets[session] = self.connection
            self.wfile.write(frame(json.dumps({"session_id": session}).encode(), opcode=1))
            # A subscriber sends nothing but its wish to close, which wants an answer.
            if self.rfile.read(1):
                self.wfile.write(frame(b"", opcode=8))
            del server.sockets[session]
            self.close_connection = True

        def request_job(self, body: bytes) -> None:
            fault, server.fault = server.fault, ""
            if self.headers.get("ndif-api-key", "") != server.key:
                return self.refuse(401, "Invalid or missing API key")
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                for part in email.message_from_bytes(head + body).get_payload()
            }
            request = RequestModel(**json.loads(parts["data"]))
            if server.model_of(request.model_key) is None:
                return self.refuse(404, f"Model {request.model_key} is not deployed")
            if fault == "reject":
                return self.refuse(503, "The queue of this model is full")
            if fault == "drop":
                self.close_connection = True
                return None
            job = str(uuid.uuid4())
            server.jobs.put((job, request, parts["blob"], fault))
            received = ResponseModel(id=job, status=Status.RECEIVED)
            self.answer(200, received.model_dump_json().encode())
            return None

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--absent", action="append", default=[])
    parser.add_argument("--key", default="")
    parser.add_argument("--stale", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.meta_path.insert(0, Absent(given.absent))
    for name in given.absent:
        try:
            importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        sys.exit(f"{name} can be imported here")
    server = Server(given.folders, given.key, stale=given.stale)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler(server))
    listener.daemon_threads = True
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{listener.server_port}"
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
    server.work(address)


if __name__ == "__main__":
    main()
