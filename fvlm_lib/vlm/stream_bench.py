"""`fvlm bench-stream`: what a frame of a foveated stream costs by how much of it changed, beside a plain stream and
beside vision-language models with all patch tokens.

What is timed of the foveated model is the subject of `foveated/bench.py`. What takes seconds to import is imported
behind the options.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvlm_lib.data.screens import ScreenSequence, read_sequence
from fvlm_lib.foveated.random_models import RANDOM, random_model
from fvlm_lib.options import Parser, add_device, add_pack, add_threads, option, pack_options, run
from fvlm_lib.schema import Count, CountOrNone, FrameRate, Share
from fvlm_lib.vision.settings import DifferentialSettings, read_settings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import Cache

    from fvlm_lib.vlm.vlms import VLM

SHARES = [0.0, 0.01, 0.05, 0.2, 0.5, 1.0]
REPEATS = 20


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `options.run` for its exit codes."""
    parser = Parser(
        prog="fvlm bench-stream",
        description="Time the frames of a foveated stream whose cache is updated where patches changed, by the share "
        "of patches that changed, beside others, in turn: a stream that encodes every frame in full; one position of "
        "the language model, which every frame costs in any case; and a vision-language model of the same tower and "
        "language model that encodes a frame in full and prefills all its patch tokens on an empty cache. Frames are "
        "random, or those of a recording. Prints medians in ms with quartiles, the ratio to the plain stream round by "
        "round, and how many positions the language model reads of a frame and of a minute; the last line is JSON.",
        epilog="example: fvlm bench-stream --checkpoint random:dinov2-small-224 --recording data/screens/jupyter",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help=f"folder, state dict file or hub id; or, of random weights and real size, one of {', '.join(RANDOM)}",
    )
    add(
        "--shares",
        type=option(Share),
        nargs="+",
        metavar="X",
        help="of the patches that change from one random frame to the next; default 0 0.01 0.05 0.2 0.5 1",
    )
    add(
        "--recording",
        type=Path,
        metavar="DIR",
        help="a folder of screenshots, in natural order of names, in place of random frames: squashed to the model's "
        "size, each timed once, in bins of the share of patches that changed",
    )
    add("--frames", type=option(Count), metavar="N", help="only the first N of the recording")
    add(
        "--vlm",
        metavar="FOLDER",
        help="a vision-language model, such as a LLaVA, to time beside: folder or hub id. Its own code encodes an "
        "image and prefills its tokens on an empty cache, without a question",
    )
    add("--fps", type=option(FrameRate), default=1.0, help="frames a second that are watched; default %(default)s")
    add("--settings", type=Path, metavar="FILE.yaml", help="of the differential encoder; default: defaults")
    add_pack(parser)
    add("--repeats", type=option(Count), help=f"rounds of random frames that are timed; default {REPEATS}")
    add("--warmup", type=option(CountOrNone), default=3, help="rounds before what is timed; default %(default)s")
    add_threads(parser, 1)
    add_device(parser, default="cpu")
    args = parser.parse_args(argv)
    return run(parser.prog, lambda: _measure(args))


def image_inputs(vlm: VLM, screenshot: np.ndarray) -> dict[str, Any]:
    """What the model's processor makes of a screenshot uint8 (H, W, 3) and of a text that is one image alone: its image
    tokens, and what the processor puts around them."""
    from PIL import Image

    processor = vlm.processor
    made = processor(images=Image.fromarray(screenshot), text=processor.image_token, return_tensors="pt")
    return dict(made.to(vlm.model.device, vlm.model.dtype))


def read_image(vlm: VLM, inputs: dict[str, Any]) -> Cache:
    """Encode an image and prefill its tokens by the model's own `forward`; returns the cache, which was empty."""
    return vlm.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values


def _read_recording(args: argparse.Namespace) -> ScreenSequence | None:
    """The recording, if there is one. Raises ValueError for options that do not go with it, or with random frames."""
    if args.recording is None:
        if args.frames is not None:
            raise ValueError("--frames is of a --recording; leave it out, or name one")
        return None
    for name in ("shares", "repeats"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is of random frames; leave it or --recording out")
    recording = read_sequence(args.recording)
    return recording.head(args.frames) if args.frames else recording


def _check_length(args: argparse.Namespace, recording: ScreenSequence | None, positions: int) -> None:
    """Raise ValueError for more frames than the language model has positions."""
    if recording is None:
        needed = (args.repeats + args.warmup) * len(args.shares) + 1
        what, less = "so many rounds and shares", ""
    else:
        needed = len(recording) + args.warmup
        what, less = f"{args.recording} and the warm-up", "; take fewer of them (--frames)"
    if needed > positions:
        raise ValueError(f"{what} are {needed} frames; the language model has {positions} positions{less}")


def _check_changes(
    recording: ScreenSequence, size: tuple[int, int], patch_size: int, settings: DifferentialSettings
) -> None:
    """Raise ValueError for a recording in which no patch changes."""
    from fvlm_lib.screens.loaded_towers import squash
    from fvlm_lib.vision.changes import ChangeTracker, trace_changes

    tracker = ChangeTracker(settings.diff_threshold, settings.metric, settings.reference)
    frames = (squash(frame, size) for frame in recording)
    if not any(step.changed for step in trace_changes(frames, patch_size, tracker)):
        raise ValueError(
            f"{recording.name}: no patch changes in {len(recording)} frames of {size[1]} x {size[0]} pixels; take more "
            "frames, or a recording in which something changes"
        )


def _measure(args: argparse.Namespace) -> None:
    packing = pack_options(args)
    settings = read_settings(args.settings) if args.settings else DifferentialSettings()
    recording = _read_recording(args)
    if recording is None:
        args.shares, args.repeats = args.shares or SHARES, args.repeats or REPEATS
    if args.checkpoint.startswith("random:") and args.checkpoint not in RANDOM:
        raise ValueError(f"there is no {args.checkpoint}; there are {', '.join(RANDOM)}")

    import numpy as np
    import torch

    from fvlm_lib.devices import pick_device
    from fvlm_lib.foveated import bench
    from fvlm_lib.foveated.checkpoints import load_checkpoint
    from fvlm_lib.foveated.stream import FoveatedStream
    from fvlm_lib.screens.loaded_towers import LoadedTower
    from fvlm_lib.vlm.vlms import load_vlm

    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    model = random_model(args.checkpoint) if args.checkpoint in RANDOM else load_checkpoint(args.checkpoint)
    model.to(device)  # type: ignore[arg-type]
    config, size = model.config, model.config.image_size
    patch_size = config.vision_config.patch_size
    num_patches = (size // patch_size) ** 2
    most = config.text_config.max_position_embeddings
    _check_length(args, recording, most)
    mean, std = tuple(config.image_mean), tuple(config.image_std)
    tower = LoadedTower(args.checkpoint, model.encoder.dino, (size, size), mean, std)
    if recording is not None:
        _check_changes(recording, tower.image_size, patch_size, settings)

    updated, plain = FoveatedStream(model, settings, **packing), FoveatedStream(model)
    ways: dict[str, Callable[[Tensor], object]] = {
        bench.PLAIN: plain.push,
        bench.ALONE: bench.language_model_alone(model),
    }
    positions = {}
    if num_patches <= most:
        ways[bench.PATCHES], positions[bench.PATCHES] = functools.partial(bench.prefill_patches, model), num_patches
    else:
        print(f"no row of {bench.PATCHES}: a frame has {num_patches}, and the language model {most} positions")
    if args.vlm:
        vlm = load_vlm(args.vlm, device)
        grey = np.full((size, size, 3), 128, dtype=np.uint8)
        inputs = image_inputs(vlm, grey if recording is None else recording[0])
        ways[name := f"{bench.PATCHES} of {args.vlm}"] = lambda _: read_image(vlm, inputs)
        positions[name] = inputs["input_ids"].shape[1]

    if recording is None:
        counts = {f"{100 * share:g}% changed": math.ceil(round(share * num_patches, 6)) for share in args.shares}
        times = bench.time_shares(updated, ways, counts, args.repeats, args.warmup)
    else:
        frames = (tower.pixel_values(frame)[0].to(model.device, model.dtype) for frame in recording)
        times = bench.time_recording(updated, ways, frames, args.warmup)
    table = bench.summarize_stream(times, positions, args.fps)

    assert updated.encoder is not None
    taken = {path: count for path, count in updated.encoder.statistics.frames.items() if count}
    kept = updated.encoder.nbytes
    sizes = (sum(p.numel() for p in part.parameters()) for part in (model.encoder.dino, model.llm))
    print(
        "{} (tower {:,} parameters, language model {:,}, {}), frames {} x {}, {} patches, {} thread(s), {}".format(
            args.checkpoint, *sizes, model.dtype, size, size, num_patches, args.threads, device
        )
    )
    print(table.round(3).astype(object).where(table.notna(), "").to_markdown())
    print(f"frames by path: {taken}; {kept / 1e6:.0f} MB kept")
    facts = {"benchmark": "stream", **vars(args), "frames_by_path": taken, "kept_bytes": kept}
    if recording is not None:
        facts |= {
            "all_ms": times.loc[times["changed_patches"].notna(), "ms"].sum(),
            "all_ms_plain": times.loc[times["name"] == bench.PLAIN, "ms"].sum(),
        }
        print(
            "{}: {} frames after the first, {:.2f} s in all, by the plain stream {:.2f} s".format(
                recording.name, len(recording) - 1, facts["all_ms"] / 1e3, facts["all_ms_plain"] / 1e3
            )
        )
    rows = {name: row.dropna().round(4).to_dict() for name, row in table.iterrows()}
    print(json.dumps(facts | rows, default=str))


if __name__ == "__main__":
    sys.exit(main())
