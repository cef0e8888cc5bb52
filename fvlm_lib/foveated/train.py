"""Trains the demo ladder: small foveated VLMs on videos that the library draws, from one config file.

`fvlm train config/ladder.yaml --run S-S --seed 0 --out checkpoints/retrained/S-S` trains one
run; the loss is that of the config's recipe (`recipes/`). Left behind in OUT: a folder `step_NNNN` (weights, config,
tokenizer, training.json) at each step the config asks for, and `losses.csv`. An interrupted run goes on from its
last saved state; a finished one is never overwritten.

This module knows the models and the drawn videos; how well a checkpoint does is `gap.py`'s subject.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
    from fvlm_lib.__main__ import run_as

    run_as("train")

import csv
import functools
import hashlib
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import Dinov2Config, LlamaConfig

from fvlm_lib.data.drawn_videos import DrawnVideos
from fvlm_lib.data.videos import draw_videos
from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.flops import count_flops
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM
from fvlm_lib.foveated.recipe_options import RecipeOptions
from fvlm_lib.foveated.recipes import training_loss
from fvlm_lib.foveated.training_config import MAX_POSITIONS, TrainingConfig, training_identity
from fvlm_lib.foveated.training_state import load_state, save_state
from fvlm_lib.outputs import whole

STATE = "state.safetensors"
IDENTITY = "run.json"


def build_model(config: TrainingConfig, videos: DrawnVideos, seed: int) -> FoveatedVLM:
    """A new model of the config's sizes, its weights drawn from `seed`."""
    torch.manual_seed(seed)
    vocabulary = videos.vocabulary
    model = FoveatedVLM(
        FoveatedVLMConfig(
            vision_config=Dinov2Config(
                hidden_size=config.vision_width,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                mlp_ratio=config.vision_mlp_ratio,
                image_size=videos.image_size,
                patch_size=videos.patch_size,
                use_mask_token=False,
                layerscale_value=1.0,
            ),
            text_config=LlamaConfig(
                hidden_size=config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                num_key_value_heads=config.text_heads,
                intermediate_size=config.text_mlp_width,
                vocab_size=len(vocabulary),
                max_position_embeddings=MAX_POSITIONS,
                pad_token_id=vocabulary.index("<pad>"),
                eos_token_id=vocabulary.index("<eos>"),
                bos_token_id=None,
            ),
        )
    )
    initialize(model, config.position_std, videos.pixel_rms)
    return model


@torch.no_grad()
def initialize(model: FoveatedVLM, position_std: float, pixel_rms: float) -> None:
    """Draw weights at which models this small learn within minutes. pixel_rms: root mean square of the frames' pixels.

    Transformers' std of 0.02 is meant for widths near 1000. Here linear layers get std d_in^-1/2, so that
    each keeps its input's size; the patch projection gives unit output on pixels in [-1, 1]; positions
    weigh as much as content, since at std 0.5 the lane is never learnt.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0)
    embeddings = model.encoder.dino.embeddings
    nn.init.normal_(embeddings.position_embeddings, std=position_std)
    nn.init.normal_(embeddings.cls_token, std=1.0)
    projection = embeddings.patch_embeddings.projection
    nn.init.normal_(projection.weight, std=projection.weight[0].numel() ** -0.5 / pixel_rms)


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to `last_rate` of the peak at the last step. Steps count from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * (config.last_rate + (1 - config.last_rate) * cosine)


def step_generator(seed: int, index: int) -> torch.Generator:
    """Random numbers of a step by its index from 0, the same whenever it is taken."""
    mixed = np.random.SeedSequence([seed, index]).generate_state(1)  # torch's CPU generator takes 32 bits of a seed
    return torch.Generator().manual_seed(int(mixed[0]))


def library_hash() -> str:
    """Hash of the library's source files, to tell which code trained a checkpoint."""
    digest = hashlib.sha256()
    library = Path(__file__).parents[1]
    for path in sorted(library.rglob("*.py")):
        digest.update(path.relative_to(library).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def holds_finished(config: TrainingConfig, out: Path, seed: int, name: str) -> bool:
    """Whether `out` holds a run to its last checkpoint. Raises ValueError where it holds one of another config or
    seed."""
    if not (out / IDENTITY).exists():
        return False
    if json.loads((out / IDENTITY).read_text()) != training_identity(config, seed, name):
        raise ValueError(f"{out} holds a run of another config or seed; choose another --out or remove it")
    return (out / f"step_{config.steps:04d}").exists()


def train(config: TrainingConfig, out: Path, seed: int = 0, name: str = "run", device: str = "cpu") -> None:
    """Train one run into the folder `out`, going on from its last state if it was interrupted.

    Raises FileExistsError where `out` holds a finished run, ValueError where it holds one of another config
    or seed, FloatingPointError where the loss is no longer a number (the state before it stays).
    """
    identity = training_identity(config, seed, name)
    identity_file = out / IDENTITY
    if holds_finished(config, out, seed, name):
        raise FileExistsError(f"{out} holds this run, finished; choose another --out or remove it")
    if not identity_file.exists() and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty and is not a training run; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    identity_file.write_text(json.dumps(identity, indent=1) + "\n")

    videos = draw_videos(config.drawn_videos(seed))
    model = build_model(config, videos, seed)
    model.to(torch.device(device))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    first_batch = {key: value.to(device) for key, value in videos.batch(0, config.batch_size).items()}

    @functools.cache
    def flops(recipe: RecipeOptions) -> int:
        return count_flops(lambda: training_loss(model, first_batch, recipe, step_generator(seed, 0))[0].backward())

    def mean_flops(recipe: RecipeOptions) -> float:
        return statistics.mean(map(flops, recipe.equivalents()))

    start, seconds = load_state(out / STATE, model, optimizer) if (out / STATE).exists() else (0, 0.0)

    losses_file = out / "losses.csv"
    rows: list[dict[str, Any]] = []
    if start:  # rows written after the last state belong to steps that are taken again
        with losses_file.open() as file:
            rows = [dict(row) for row in csv.DictReader(file) if int(row["step"]) <= start]
    names = [name for recipe in config.recipes for name in recipe.parts]
    columns = [*dict.fromkeys(["step", "learning_rate", "gradient_norm", "loss", *names])]
    with losses_file.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc=name, mininterval=1.0)
        for index in bar:
            began = time.monotonic()
            batch = videos.batch(index * config.batch_size, (index + 1) * config.batch_size)
            batch = {key: value.to(device) for key, value in batch.items()}
            loss, parts = training_loss(model, batch, config.recipe_at(index), step_generator(seed, index))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {index + 1}")
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            rate = learning_rate_at(index, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            step, seconds = index + 1, seconds + time.monotonic() - began
            row = {"step": step, "learning_rate": rate, "gradient_norm": norm.item(), "loss": loss.item(), **parts}
            writer.writerow({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()})
            bar.set_postfix({k: f"{v:.3f}" for k, v in parts.items()}, refresh=False)
            if step in config.checkpoint_steps:
                taken = [config.recipe_at(before) for before in range(step)]
                about = {
                    **identity,
                    "step": step,
                    "training_flops": round(sum(map(mean_flops, taken))),
                    "multi_fine": any(recipe.multi_fine for recipe in taken),
                    "seconds_per_step": round(seconds / step, 4),
                }
                _save_checkpoint(out / f"step_{step:04d}", model, videos, about)
            if step % config.state_every == 0 or step == config.steps:
                file.flush()
                save_state(out / STATE, model, optimizer, step, seconds)
    (out / STATE).unlink()


def _save_checkpoint(folder: Path, model: FoveatedVLM, videos: DrawnVideos, about: dict[str, Any]) -> None:
    """A checkpoint that `from_pretrained` reads, with its tokenizer and where it comes from, which `about` begins."""
    tokenizer = videos.tokenizer()
    provenance = {
        **about,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_text_parameters": sum(p.numel() for p in model.llm.parameters()),
        "library_hash": library_hash(),
        "torch": torch.__version__,
    }
    with whole(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "training.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
