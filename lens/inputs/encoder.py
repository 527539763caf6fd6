"""From images and prompts to a Batch, through the model's own processor.

That the processor ran says little: images may have been cut into cells smaller than a pixel, and
tensors that somebody made without it may lack what the model needs. A Batch exists only after these
checks; that images and visual tokens fit each other is checked where they are located.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, Unsupported
from ..layout import RepeatCall, locate, video_positions
from ..layout.locate import Stated
from ..visual_tokens import VisualTokens
from .batch import Batch
from .chats import Chat, Prompts, split_prompts
from .images import Images, Videos, arrange_images, arrange_videos, refuse_ambiguous
from .own_words import own_words
from .processor import Nested, ProcessorAdapter, Remake, SameCall
from .prompt_words import PromptWords
from .prompt_writer import PromptWriter
from .prompts import Placeholders, find_placeholders
from .read_image import ImageLike, read_image
from .required_inputs import Forward, RequiredInputs
from .tensor_checks import check_form, check_pictures

__all__ = ["Encoder", "ImageLike", "Stated", "read_image"]

_COMPLETE_SIZES = ((64, 96), (112, 56))


class Prepared(NamedTuple):
    """What a processor made of images and prompts."""

    inputs: dict[str, Tensor]  # the tensors, left-padded
    prompts: list[str]  # the prompts as the processor got them, placeholders written
    images: Nested  # the images of each
    videos: list[list[NDArray[np.uint8]]]  # the videos of each, ``[frame, height, width, 3]``
    given: list[str | Chat]  # the prompts as they were given


class Encoder:
    """Applies one model's processor and chat template, and finds the visual tokens again.

    Without a processor only :meth:`batch` works; the anatomy may be set later, before a Batch is
    made. ``accepts`` are the inputs that the model's forward takes, None for whatever there is.
    ``forward`` runs the model, leaving it as it was, to measure which inputs a batch cannot lack;
    without it every input that might matter is demanded.
    """

    def __init__(
        self,
        processor: Any,
        config: Any,
        anatomy: Any = None,
        accepts: Collection[str] | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.processor = processor
        self.config = config
        self.anatomy = anatomy
        self.accepts = None if accepts is None else frozenset(accepts)
        self._adapter = ProcessorAdapter(processor, self.accepts)
        complete = None if processor is None else self._complete
        self.required = RequiredInputs(self.accepts, forward, complete)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or None."""
        return None if self.processor is None else self.processor.tokenizer

    @cached_property
    def placeholders(self) -> Placeholders:
        """How the processor is told where an image belongs, found out by experiment."""
        self._need_processor()
        ids = (getattr(self.config, name, None) for name in ("image_token_id", "image_token_index"))
        known = [i for i in ids if isinstance(i, int) and i >= 0]
        found = find_placeholders(self.processor, self._adapter.try_on, known)
        self._adapter.takes_places = found.image is not None
        return found

    @property
    def placeholder(self) -> str:
        """The text that stands for an image in a prompt, for instance ``<image>``.

        Empty where the processor puts images first by itself.
        """
        return self.placeholders.image or ""

    def tensors(
        self,
        images: Images | None,
        prompts: Prompts,
        videos: Videos | None = None,
        template: bool | None = None,
    ) -> Prepared:
        """What the model takes, as for :meth:`VisualLM.encode`; needs no anatomy.

        Raises:
            InputError: There is no processor, or images and prompts do not fit together.
            Unsupported: The model takes no videos, or no image at all.
        """
        self._need_processor()
        texts = split_prompts(prompts)
        writer = PromptWriter(self.processor, self.placeholders)
        if isinstance(prompts, str):
            for kind, given, mentioned in zip(
                ("image", "video"), (images, videos), writer.counts(prompts), strict=True
            ):
                refuse_ambiguous(kind, given, prompts, mentioned)
        nested = arrange_images(images, len(texts))
        clips = arrange_videos(videos, len(texts))
        for index, chat in enumerate(texts):
            if isinstance(chat, Chat) and (chat.images or chat.videos):
                if images is not None or videos is not None:
                    raise InputError(
                        "the messages hold pictures, and pictures are given beside them: give "
                        "them in one place (images=None)"
                    )
                nested[index] = [read_image(image) for image in chat.images]
                clips[index] = arrange_videos([chat.videos] if chat.videos else None, 1)[0]
        if any(clips) and getattr(self.processor, "video_processor", None) is None:
            raise Unsupported(
                f"{type(self.processor).__name__} has no video processor: the model takes no "
                "videos, or transformers could not load it here (most of them need torchvision)"
            )
        rendered = [
            writer.write(text, len(row), len(clip), template)
            for text, row, clip in zip(texts, nested, clips, strict=True)
        ]
        made = self._adapter.run(rendered, nested, clips)
        return Prepared(made, rendered, nested, clips, texts)

    def encode(
        self,
        images: Images | None,
        prompts: Prompts,
        videos: Videos | None = None,
        template: bool | None = None,
        layout: Stated | None = None,
    ) -> Batch:
        """See :meth:`VisualLM.encode`; ``layout`` as for :func:`embedlens.lens.layout.locate`."""
        prepared = self.tensors(images, prompts, videos, template)
        tensors, written, nested, clips, _ = prepared
        self.anatomy.check_ids(tensors, self.tokenizer)
        again = SameCall(self._adapter, tuple(written), clips)
        has_images, has_videos = any(nested), any(clips)
        if not (has_images or has_videos):
            self.required.check_text(tensors)
        frames = [[len(clip) for clip in row] for row in clips] if has_videos else None
        mask: Tensor = self.anatomy.visual_mask(tensors)
        visual = self._locate(tensors, mask, nested if has_images else None, layout, again, frames)
        _check_sizes(visual, nested)
        return Batch(
            tensors,
            visual,
            tuple(written),
            tuple(tuple(row) for row in nested),
            tuple(len(row) for row in nested),
            videos_per_row=tuple(len(row) for row in clips) if has_videos else (),
            remake=Remake(again, nested),
            words=self._words(prepared, mask, template),
        )

    def _words(self, prepared: Prepared, mask: Tensor, template: bool | None) -> PromptWords:
        """Which token is which part of the prompts' text."""
        writer = PromptWriter(self.processor, self.placeholders)
        own = [
            own_words(writer, given, written, (len(row), len(clip)), template)
            for given, written, row, clip in zip(
                prepared.given, prepared.prompts, prepared.images, prepared.videos, strict=True
            )
        ]
        names = [name for name, _ in writer.kinds()]
        visual = mask.cpu().numpy()
        return PromptWords.of(self.tokenizer, prepared.prompts, names, prepared.inputs, visual, own)

    def batch(self, inputs: Mapping[str, Tensor], layout: Stated | None = None) -> Batch:
        """See :meth:`VisualLM.batch`; ``layout`` as for :func:`embedlens.lens.layout.locate`."""
        check_form(inputs, self.accepts)
        # Labels are for training: with them the model computes a loss.
        tensors = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        self.anatomy.check_ids(tensors, self.tokenizer)
        visual_mask: Tensor = self.anatomy.visual_mask(tensors)
        videos = video_positions(tensors, visual_mask, self.config)
        images = visual_mask & ~videos
        check_pictures(tensors, images, videos)
        try:
            visual = self._locate(tensors, visual_mask, None, layout)
        except InputError:
            # A missing grid is the better reason for a layout that does not fit.
            self.required.check(tensors, images, videos, 1)
            raise
        of_video = videos.cpu().numpy()[visual.sample, visual.position]
        n = len(images)
        images_per_row, videos_per_row = (
            tuple(
                len(np.unique(visual.image[(visual.sample == i) & (of_video == moving)]))
                for i in range(n)
            )
            for moving in (False, True)
        )
        self.required.check(tensors, images, videos, max(images_per_row))
        return Batch(
            tensors,
            visual,
            ("",) * n,
            ((),) * n,
            images_per_row,
            videos_per_row=videos_per_row if any(videos_per_row) else (),
        )

    def _complete(self, n_samples: int, n_images: int) -> Mapping[str, Tensor]:
        """Tensors of pictures of different forms and prompts of different lengths."""
        rng = np.random.default_rng(1)
        sides = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _COMPLETE_SIZES]
        rows = [[sides[(i + j) % 2] for j in range(n_images)] for i in range(n_samples)]
        place = f"{self.placeholder} " * n_images
        prompts = [f"{place}a" + " b" * (2 * i) for i in range(n_samples)]
        template = False if self.placeholder else None
        return self.tensors(rows, prompts, template=template).inputs

    def _locate(
        self,
        inputs: Mapping[str, Tensor],
        mask: Tensor,
        images: Nested | None,
        layout: Stated | None,
        again: RepeatCall | None = None,
        frames: list[list[int]] | None = None,
    ) -> VisualTokens:
        return locate(
            inputs,
            mask,
            images,
            config=self.config,
            processor=self.processor,
            latents="resampler" in self.anatomy.capabilities,
            layout=layout,
            repeat_call=again,
            frames_per_video=frames,
        )

    def _need_processor(self) -> None:
        if self.processor is None:
            raise InputError(
                "this model comes without a processor, which turning images and prompts into "
                "tensors needs: VisualLM(hf_model, processor), or make the tensors yourself and "
                "use batch(inputs)"
            )


def _check_sizes(visual: VisualTokens, nested: Nested) -> None:
    """Refuse images that the model cuts into cells narrower than a pixel."""
    for sample, row in enumerate(nested):
        for index, image in enumerate(row):
            here = visual.placed & (visual.sample == sample) & (visual.image == index)
            if not here.any():
                continue
            cells = visual.col[here].max() + 1, visual.row[here].max() + 1
            box = visual.box[here]
            # The largest, because cells at a padded border show less of the image.
            sides = (box[:, 2:] - box[:, :2])[np.isfinite(box).all(1)]
            sides = sides.max(0) if len(sides) else np.divide(image.size, cells)
            if sides.min() < 1 - 1e-6:
                raise InputError(
                    f"an image of {image.size[0]}x{image.size[1]} pixels is too small: the model "
                    f"cuts it into {cells[0]}x{cells[1]} cells"
                )
