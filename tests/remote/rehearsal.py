"""What test_rehearsed_runs.py runs in a process of its own, against an installed wheel.

Runs a plan locally and as a rehearsed remote run, and lists everything the payloads would make a
server import. Prints one JSON object.
"""

from __future__ import annotations

import ast
import json
import sys
from typing import Any

import torch
from nnsight.intervention.serialization import CustomCloudUnpickler, loads
from nnsight.schema.request import RequestModel

import embedlens
import tiny
from embedlens import (
    AblateAttention,
    BlockAttention,
    InjectTokens,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)

payloads: list[bytes] = []
imported: set[str] = set()


class Recorder(CustomCloudUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        imported.add(f"{module}:{name}")
        return super().find_class(module, name)


def record_payloads() -> None:
    serialize = RequestModel.serialize.__func__

    def recording(cls: type, tracer: Any, compress: bool = False) -> bytes:
        payload = serialize(cls, tracer, compress)
        payloads.append(payload)
        return payload

    RequestModel.serialize = classmethod(recording)


def main() -> None:
    record_payloads()
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    batch = model.encode(
        [[tiny.image(0)], [tiny.image(1), tiny.image(2)]],
        [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]],
    )
    plan = Plan(
        AblateAttention(layers="0-1"),
        ZeroFFN(layers=[1], tokens="text", phase="all"),
        PatchTokens(source=0, target=2, tokens="box[0:2, 0:2]"),
        BlockAttention(queries="text", keys="visual", layers=2),
        BlockAttention(queries="text", keys="visual", layers=3, renormalise=False),
        BlockAttention(queries="last", keys="box[0:2, 0:2]", layers=3, renormalise=False),
        InjectTokens(layer=1, norm="rescaled", tokens="box[2:4, 0:2]"),
        ReplaceTokens(by="noise", layers=3, tokens="box[0:1, 0:2] | text", seed=1, phase="all"),
        ReplaceTokens(by="mean", layers=3, tokens="box[1:2, 0:2]"),
        ScaleTokens(norm_of="text", layers=2, tokens="box[2:4, 2:4]"),
        PatchTokens(source=1, target=2, site="attention", tokens="box[2:4, 2:4]"),
    )
    shorter = Plan(PruneTokens(tokens="box[0:2, 0:4]", method="remove"))
    later = Plan(WithdrawTokens(tokens="box[0:2, 0:4]", layer=1, method="remove"))
    differences: dict[str, float] = {}
    here, there = (model.run(batch, plan, capture="residual", remote=r) for r in (False, "local"))
    differences["run"] = float((here.logits - there.logits).abs().max())
    differences["capture"] = max(
        float((here.residual[layer] - there.residual[layer]).abs().max()) for layer in here.residual
    )
    pruned = [model.run(batch, shorter, remote=r).logits for r in (False, "local")]
    differences["pruned"] = float((pruned[0] - pruned[1]).abs().max())
    left = [model.run(batch, later, remote=r).logits for r in (False, "local")]
    differences["withdrawn"] = float((left[0] - left[1]).abs().max())
    texts = [model.generate(batch, plan, max_new_tokens=4, remote=r) for r in (False, "local")]
    scores = [model.score(batch, ["a b", "red"], plan, remote=r) for r in (False, "local")]
    differences["score"] = float((scores[0].logprob - scores[1].logprob).abs().max())
    layers = model.layers
    with model.trace(batch, plan):
        local = layers[2].output.save()
    with model.trace(batch, plan, remote="local"):
        remote = layers[2].output.save()
    differences["trace"] = float((local - remote).abs().max())
    clean = model.run(batch)
    nested = []
    for payload in payloads:
        persistent = model.nn._remoteable_persistent_objects()
        _, (source, _, _) = loads(payload, persistent, Recorder)
        nested += [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.With)]
    sys.stdout.write(
        json.dumps(
            {
                "package": embedlens.__file__,
                "differences": differences,
                "moved": float((clean.logits - here.logits).abs().max()),
                "texts_equal": texts[0] == texts[1],
                "payloads": len(payloads),
                "largest": max(map(len, payloads)),
                "imported": sorted(imported),
                "nested_with": len(nested),
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
