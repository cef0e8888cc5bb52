"""What a config's `data` may say of the videos of an evaluation: the kinds, and the options of each.

`videos.open_videos` turns this into videos. Imports nothing heavy, since the Snakefile checks it at every start.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from fvlm_lib.data.screen_events import PHRASES
from fvlm_lib.schema import AsTuple, Count, Pixels, Positive, Seed, Share, Threads, settings

Split = Literal["train", "validation", "test"]
Sampling = Literal["uniform", "1fps"]
Crop = Literal["centre", "squash"]
Frames = Annotated[int, Field(strict=True, ge=1, le=10_000)]
Glyphs = Annotated[int, Field(strict=True, ge=0, le=10_000)]
Skew = Annotated[float, Field(strict=True, ge=0, le=10)]

CELL = 8  # pixels on a side of a cell of the procedural grid
SCREEN_SIZE = 128  # pixels on a side of a screen of the videos of such
BLOCK = 16  # procedural samples of one random stream; any slice of the set is made of whole blocks, then cut
PROCEDURAL_SAMPLES = 512  # of videos without end, where it is not said how many
LARGEST_BLOCK = 4e9  # bytes of float32 frames


@settings
class DrawnData(ABC):
    """What the kinds of videos that the library draws have in common (`drawn_videos.DrawnVideos`)."""

    split: Split = "train"
    """Random streams of the splits are apart for every seed."""
    seed: Seed = 0
    num_frames: Annotated[int, Field(strict=True, ge=2, le=10_000)] = 8

    @property
    @abstractmethod
    def called(self) -> str:
        """The option that decides on the size of frames, as an error says it."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Height and width of a frame in pixels."""

    @property
    @abstractmethod
    def num_words(self) -> int:
        """Words that the captions know, special ones included."""

    @property
    @abstractmethod
    def num_positions(self) -> int:
        """Positions of a language model that frames and caption take."""

    def check_model(self, image_size: int, vocab_size: int, positions: int) -> None:
        """Raise ValueError where a checkpoint cannot have been trained on such videos, or cannot read them.

        image_size: of its frames, in pixels. vocab_size, positions: of its language model. Other frames it would take
        by resized position embeddings, other words by ids that mean something else, so both are refused.
        """
        if image_size != self.image_size:
            raise ValueError(
                f"{self.called}, frames of {self.image_size} x {self.image_size} pixels, but the model sees "
                f"{image_size} x {image_size}"
            )
        if vocab_size < self.num_words:
            raise ValueError(f"{self.called}, captions of {self.num_words} words, but the model knows {vocab_size}")
        if positions < self.num_positions:
            raise ValueError(
                f"num_frames is {self.num_frames}, which with the caption takes {self.num_positions} positions, but "
                f"the model has {positions}"
            )


@settings
class ProceduralData(DrawnData):
    """Objects that cross a grid (`videos.ProceduralVideos`). Raises ValueError for sizes that cannot be drawn."""

    num_objects: Count = 4
    """That cross the grid, each in a lane of its own; with a skew, the most that do."""
    grid: Annotated[int, Field(strict=True, ge=2, le=128)] = 4
    """Cells on a side, of 8 x 8 pixels each."""
    noise_std: Share = 0.08
    """Of the pixels, in [0, 1]."""
    num_glyphs: Glyphs = 0
    """Kinds of glyphs that objects wear; with 0 they wear shapes in one of 8 colours, all as likely."""
    skew: Skew = 0.0
    """Exponent of Zipf's law, by which glyphs, the target's track and the number of objects are drawn: the one of rank
    r with a probability in proportion to r ** -skew. With 0 each is as likely, and all videos have `num_objects`."""
    kind: Literal["procedural"] = "procedural"

    def __post_init__(self) -> None:
        if self.num_objects > 4 * self.grid:
            raise ValueError(
                f"num_objects is {self.num_objects}; a grid of {self.grid} has lanes for at most {4 * self.grid}"
            )
        size = BLOCK * self.num_frames * 3 * self.image_size**2 * 4
        if size > LARGEST_BLOCK:
            raise ValueError(
                f"num_frames {self.num_frames} of {self.image_size} x {self.image_size} pixels (grid {self.grid}) take "
                f"{size / 1e9:.0f} GB for {BLOCK} videos; at most {LARGEST_BLOCK / 1e9:.0f} GB are drawn at a time"
            )

    @property
    def called(self) -> str:
        return f"grid is {self.grid}" + (f", num_glyphs {self.num_glyphs}" if self.num_glyphs else "")

    @property
    def image_size(self) -> int:
        return self.grid * CELL

    @property
    def num_words(self) -> int:
        return 6 + self.grid + (self.num_glyphs or 8)  # 2 special ones, 4 directions, a lane each row; what is worn

    @property
    def num_positions(self) -> int:
        return 2 * self.num_frames + 2  # frames; direction, lane, later frames' colours, end


@settings
class ScreenData(DrawnData):
    """Screens at which someone works, captioned by what happened (`screen_videos.ScreenVideos`)."""

    num_frames: Annotated[int, Field(strict=True, ge=2, le=1000)] = 8
    num_themes: Annotated[int, Field(strict=True, ge=1, le=4)] = 1
    """Of how many themes a screen has one; with the first two all are light."""
    kind: Literal["screens"] = "screens"

    @property
    def called(self) -> str:
        return "kind is screens"

    @property
    def image_size(self) -> int:
        return SCREEN_SIZE

    @property
    def num_words(self) -> int:
        return 2 + len(PHRASES)  # 2 special ones

    @property
    def num_positions(self) -> int:
        return 2 * self.num_frames  # frames; what happened before each but the first, end


@settings
class FrameOptions:
    """How a video becomes `pixel_values`. Raises ValueError naming an option with a value that cannot be."""

    sampling: Sampling = "uniform"
    """uniform spreads max_frames over the whole video, first and last frame included; 1fps takes what is shown at 0 s,
    1 s, 2 s ..., and of these the first max_frames. A short video gives fewer."""
    max_frames: Frames = 8
    frame_rate: Annotated[float, Field(strict=True, ge=1e-3, le=1000, allow_inf_nan=False)] = 1.0
    """Frames a second of a video that is stored as images, which have no times of their own."""
    still_frames: Frames = 1
    """How often a video of a single frame is repeated (models were trained with 8, some of them)."""
    crop: Crop = "centre"
    """centre cuts the largest centred square out of a frame, squash takes all of it and changes its proportions; either
    is then resized to image_size (bicubic, antialiased)."""
    image_size: Pixels = 224
    """Pixels on a side; by default what the checkpoint wants."""
    image_mean: Annotated[tuple[float, float, float], AsTuple] = (0.485, 0.456, 0.406)
    """Subtracted from the RGB values in [0, 1]; by default what the checkpoint wants, else ImageNet's."""
    image_std: Annotated[tuple[Positive, Positive, Positive], AsTuple] = (0.229, 0.224, 0.225)
    """The RGB values are divided by these."""


@settings
class _FileData(FrameOptions):
    """What folders and tar shards have in common; see `video_files.VideoFiles`."""

    prompt: str = ""
    """Text before every caption that brings none of its own; it is not scored."""
    max_text_tokens: Count | None = None
    """Of prompt, caption and end; null: as many as the model has positions for."""
    skip_bad: bool = False
    """Leave out, and name, samples that cannot be used; false makes the first of them an error."""
    workers: Threads = 1
    """Threads that decode videos; the pixels do not depend on it."""


@settings
class FolderData(_FileData):
    """Videos of a folder with captions.jsonl."""

    path: str = field(kw_only=True)
    """The folder."""
    kind: Literal["folder"] = field(default="folder", kw_only=True)


@settings
class WebDatasetData(_FileData):
    """Videos of WebDataset tar shards."""

    path: str | Annotated[list[str], Field(min_length=1)] = field(kw_only=True)
    """Shards by name, with braces and wildcards (test-{000..015}.tar), or a list of such."""
    kind: Literal["webdataset"] = field(default="webdataset", kw_only=True)


FileData = FolderData | WebDatasetData
DrawnKind = Annotated[ProceduralData | ScreenData, Field(discriminator="kind")]
"""The videos of a training."""
Data = Annotated[ProceduralData | ScreenData | FolderData | WebDatasetData, Field(discriminator="kind")]
"""The videos of an evaluation."""
