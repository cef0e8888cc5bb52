"""A study of tiny models, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TINY_STUDY: dict[str, Any] = {
    "sizes": {
        "S": {"text_width": 16, "text_layers": 1, "text_mlp_width": 16, "text_heads": 2, "learning_rate": 0.002},
        "M": {"text_width": 16, "text_layers": 2, "text_mlp_width": 16, "text_heads": 2, "learning_rate": 0.001},
    },
    "recipes": {"plain": {}, "multi": {"recipe": {"kind": "multi_fine"}}},
    "seeds": [3],
    "training": {
        "vision_width": 16, "vision_layers": 1, "vision_heads": 2, "videos": {"num_frames": 4}, "batch_size": 4,
        "steps": 6, "warmup_steps": 2, "checkpoint_steps": [2, 6], "state_every": 2,
    },
    "evaluation": {
        "num_samples": 6, "batch_size": 4, "num_fine": [1, 2], "floor_samples": 0, "jacobi": {"norm_samples": 2},
    },
    "lengths": {"num_frames": [6], "sizes": ["S"], "recipes": ["plain"], "seeds": [3]},
}  # fmt: skip


def write_study(folder: Path, **changes: Any) -> Path:
    """Write a tiny study's config into a folder, its output beside it; sections that are mappings are changed key by
    key."""
    config = {**TINY_STUDY, "output": str(folder / "study")}
    for key, value in changes.items():
        config[key] = {**config[key], **value} if key in ("training", "evaluation", "lengths") and value else value
    (folder / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder / "study.yaml"
