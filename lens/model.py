"""A multimodal LLM on nnsight: encode, trace, run, generate and score, with or without a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .inputs.batch import Batch
from .inputs.encoder import Stated
from .inputs.images import Images, Videos
from .opened import Opened
from .progress import Progress, silent
from .runs.captures import by_layer, capture_positions, capture_sites, lowest_layer
from .runs.many import Question, ask
from .runs.program import Intervention, Pass
from .runs.reading import read_sites
from .runs.run import Run, Scores, Site
from .runs.scoring import AnswerTokens, check_unseen
from .runs.tracing import generate_ids, trace_forward

nnsight.register(read_sites.__module__)


class VisualLM(Opened):
    """A multimodal LLM whose visual tokens can be read and changed.

    The model stays as its owner has it: weights, training flags, gradients, hooks, configuration,
    and what a forward pass would leave behind. Every pass happens in evaluation mode. What does
    stay on each module, and does nothing outside a trace, are the two entries by which nnsight
    reaches it (``lens/opening/wrapping.py`` names them).

    Args:
        model: A multimodal model of transformers, in memory; an nnsight model around one, which
            is then used as it is (its weights are loaded if they are not); or a
            :class:`~embedlens.lens.loading.Checkpoint`, whose weights are loaded when needed.
        processor: Its processor, of which a copy is used; without one the nnsight model's, or
            the one that belongs to the model's ``name_or_path``. A model without any processor
            takes batches made from tensors only.
        name: What to call it in results.
        anatomy: Arguments of :meth:`Anatomy.of`, for a model whose parts are not found or do not
            add up, for instance ``{"norm": "model.final_norm"}``.

    Raises:
        InputError: The processor is none, or the model is none.
        Unsupported: The model does not put visual tokens into a decoder's sequence, or its
            parts could not be found and verified.
    """

    def encode(
        self,
        images: Images | None,
        prompts: str | Sequence[str],
        *,
        videos: Videos | None = None,
        template: bool | None = None,
        layout: Stated | None = None,
    ) -> Batch:
        """Turn images and prompts into a batch, through the model's own processor.

        Args:
            images: One image for all prompts, one per prompt, a list per prompt, or None. An
                image is a PIL image, a file or a uint8 array ``[height, width, 3]``.
            prompts: One prompt or several; shorter ones are padded on the left.
            videos: Likewise, where the model takes videos: a video is a list of images or a
                uint8 array ``[frame, height, width, 3]``.
            template: None takes a prompt that contains the image placeholder as it stands and
                puts any other through the chat template, images first. True always applies the
                template (placeholders then mark where the images go), False never.
            layout: One for all images, or per prompt one for each of its images, where the
                layout of the visual tokens is not understood by itself.

        Raises:
            InputError: An unreadable image, a number of images or a layout that does not fit,
                or a model without a processor.
            Unsupported: The model takes no videos.
        """
        self._need_processor()
        return self._open.encode(images, prompts, videos, template, layout)

    def batch(self, inputs: Mapping[str, Tensor], *, layout: Stated | None = None) -> Batch:
        """A batch from tensors as the model's processor returns them, padded on the left.

        Raises:
            InputError: ``attention_mask`` or another tensor that changes results is missing, or
                tensors (or the ``layout``, as for :meth:`encode`) do not fit together.
        """
        return self._open.batch(inputs, layout)

    def trace(
        self,
        batch: Batch,
        plan: Intervention | None = None,
        *,
        remote: bool | str = False,
        grad: bool = False,
        **forward: Any,
    ) -> Any:
        """An nnsight tracing context over one forward pass, with the plan in force.

        Inside it, ordinary nnsight works on ``model.layers[i]`` and ``model.nn``; what is read
        there has the plan's changes in it. A remote block takes along what it names, so there
        write ``layers = model.layers`` before it and use ``layers[i]`` inside.

        Args:
            batch: The inputs.
            plan: What to change; nothing when None.
            remote: False runs here, ``"local"`` rehearses a remote run in this process, True
                sends it to NDIF.
            grad: Whether to record gradients (local runs only; remote ones never do).
            **forward: More arguments for the model's forward.
        """
        target = self._edited(batch, plan, Pass("forward", remote=remote, traced=True))
        return trace_forward(target, self.hf, batch.inputs, remote=remote, grad=grad, **forward)

    @torch.no_grad()
    def run(
        self,
        batch: Batch,
        plan: Intervention | None = None,
        *,
        capture: Site | Collection[Site] = (),
        layers: Collection[int] | Literal["all"] = "all",
        tokens: Literal["visual", "all"] | NDArray[np.bool_] = "visual",
        logits: Literal["last", "all"] | None = "last",
        remote: bool | str = False,
    ) -> Run:
        """One forward pass, returning logits and activations.

        Args:
            batch: The inputs.
            plan: What to change; nothing when None.
            capture: ``residual`` (the stream entering a layer), ``attention``, ``ffn`` (what
                they add to it).
            layers: Layers to keep; for ``residual`` 0 to ``n_layers`` inclusive.
            tokens: The visual tokens, in the order of ``batch.visual``; every position that is
                not padding; or a mask ``[sample, token]``.
            logits: Which positions' logits to keep.
            remote: As in :meth:`trace`.

        Raises:
            InputError: A site or layer that does not exist.
        """
        return self.run_many(
            batch,
            [plan],
            capture=capture,
            layers=layers,
            tokens=tokens,
            logits=logits,
            remote=remote,
        )[0]

    @torch.no_grad()
    def run_many(
        self,
        batch: Batch,
        plans: Sequence[Intervention | None],
        *,
        capture: Site | Collection[Site] = (),
        layers: Collection[int] | Literal["all"] = "all",
        tokens: Literal["visual", "all"] | NDArray[np.bool_] = "visual",
        logits: Literal["last", "all"] | None = "last",
        at_once: int | None = None,
        remote: bool | str = False,
        progress: Progress = silent,
    ) -> list[Run]:
        """One run per plan on the same batch, each with the numbers of its own :meth:`run`.

        What the runs have in common is computed once: the vision tower and all else in front of
        the decoder, and, where it pays, the layers below the first one that a plan touches or
        that is captured. Several plans go through the model in one pass, stacked along the batch;
        plans that shorten the sequence have a pass of their own. All of this is compared with a
        single run when a model does it for the first time, and left out where the numbers differ.

        Args:
            batch: The inputs.
            plans: What to change in each run; None leaves the model untouched.
            capture: As for :meth:`run`, like ``layers``, ``tokens`` and ``logits``.
            layers: Layers to keep.
            tokens: Tokens to keep.
            logits: Which positions' logits to keep.
            at_once: Most plans in one pass, which bounds the memory. None takes as many as have
                1024 tokens on a CPU, 16384 elsewhere, and at least one.
            remote: As in :meth:`trace`; the tower then runs once per pass.
            progress: Called with what is being done, the plans done, and the plans in all.

        Raises:
            InputError: A site or layer that does not exist, a plan that cannot be carried out, or
                ``at_once`` below 1.
        """
        wanted = capture_sites(self.anatomy, capture, layers)
        rows, columns = capture_positions(batch, tokens)

        def read(out: Tensor, found: dict[str, Tensor], _: int) -> Run:
            scores = None if logits is None else out[:, -1].clone() if logits == "last" else out
            return Run(scores, rows, columns, **by_layer(found, self.anatomy, batch, self.name))

        question = Question(
            inputs=batch.inputs,
            during=Pass("forward", remote=remote, positions=bool(wanted) or logits == "all"),
            forward={} if logits == "all" else self.anatomy.last_logits(1),
            wanted=wanted,
            lowest=lowest_layer(wanted, self.n_layers),
            rows=rows,
            columns=columns,
            read=read,
        )
        return ask(self, batch, plans, question, at_once=at_once, progress=progress)

    def entry(self, batch: Batch) -> Float[Tensor, "visual d"]:
        """The visual tokens as they enter the language model, rows as in ``batch.visual``."""
        return self.run(batch, capture="residual", layers=[0], logits=None).residual[0]

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        plan: Intervention | None = None,
        *,
        max_new_tokens: int = 20,
        remote: bool | str = False,
        **generation: Any,
    ) -> list[str]:
        """Continue each prompt greedily; returns the new text only.

        Args:
            batch: The inputs.
            plan: What to change during prefill, decoding or both, as its operations say.
            max_new_tokens: Length limit.
            remote: As in :meth:`trace`.
            **generation: More arguments for transformers' ``generate``.
        """
        tokenizer = self._need_processor().tokenizer
        target = self._edited(batch, plan, Pass("generation", remote=remote))
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, **generation}
        ids = generate_ids(target, self.hf, batch.inputs, remote=remote, **settings)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def score(
        self,
        batch: Batch,
        answers: Sequence[str],
        plan: Intervention | None = None,
        *,
        end: bool = False,
        remote: bool | str = False,
    ) -> Scores:
        """Log-probability of given answers after the prompts, in one forward pass.

        Operations of phase ``decode`` act on the answer's tokens, as they would if the model
        had generated them.

        Args:
            batch: The prompts.
            answers: One per sample.
            plan: What to change.
            end: Whether the end-of-sequence token belongs to the answer.
            remote: As in :meth:`trace`.

        Raises:
            InputError: Not one answer per sample, or an answer without tokens.
            Unsupported: The prompt's tokens would see the answer.
        """
        return self.score_many(batch, answers, [plan], end=end, remote=remote)[0]

    @torch.no_grad()
    def score_many(
        self,
        batch: Batch,
        answers: Sequence[str],
        plans: Sequence[Intervention | None],
        *,
        end: bool = False,
        at_once: int | None = None,
        remote: bool | str = False,
        progress: Progress = silent,
    ) -> list[Scores]:
        """The answers' probabilities under each plan, with the numbers of :meth:`score`.

        Args:
            batch: The prompts.
            answers: One per sample.
            plans: What to change in each run; None leaves the model untouched.
            end: Whether the end-of-sequence token belongs to the answer.
            at_once: As for :meth:`run_many`, where the sharing of work is described.
            remote: As in :meth:`trace`.
            progress: Called with what is being done, the plans done, and the plans in all.

        Raises:
            InputError: As for :meth:`score` and :meth:`run_many`.
            Unsupported: The prompt's tokens would see the answer.
        """
        tokenizer = self._need_processor().tokenizer
        answered = AnswerTokens.of(tokenizer, answers, len(batch), end=end)
        nothing = torch.zeros(0, dtype=torch.long)

        def read(out: Tensor, _: dict[str, Tensor], plan: int) -> Scores:
            if not self._unseen and "bidirectional_image" in self.anatomy.capabilities:
                alone = self.run(batch, plans[plan], remote=remote).logits
                check_unseen(alone, out, answered.length)
                self._unseen = True
            return answered.scores(out)

        question = Question(
            inputs=answered.append_to(batch.inputs, self.hf),
            during=Pass("scoring", answered.length, remote),
            forward=self.anatomy.last_logits(answered.length + 1),
            wanted=[],
            lowest=self.n_layers,
            rows=nothing,
            columns=nothing,
            read=read,
        )
        return ask(self, batch, plans, question, at_once=at_once, progress=progress)

    def _edited(self, batch: Batch, plan: Intervention | None, during: Pass) -> Any:
        return self.nn if plan is None else plan.compile(self, batch, during).apply(self.nn)
