"""What several test modules share: tiny random models, and the demo checkpoints."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, LlamaConfig

from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig
from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "checkpoints" / "demo"

# One thread, here and in the processes that tests start: the models are too small to gain by more, and two workers
# with two threads each would wait for each other. OMP_NUM_THREADS=2 and the like are obeyed.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


def tiny_model(seed: int = 0, **config) -> FoveatedVLM:
    """A random model of 16x16 frames, 4 patches, 2 layers each; weights large enough to matter."""
    torch.manual_seed(seed)
    text = config.pop("text_config", None) or LlamaConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        vocab_size=20,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    vision = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=16,
        patch_size=8,
        use_mask_token=False,
    )
    model = FoveatedVLM(FoveatedVLMConfig(vision_config=vision, text_config=text, query_dim=12, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.shape[0] > 1 else 1.0)
    return model.eval()


def tiny_batch(seed: int = 0, size: int = 3, frames: int = 5, length: int = 6, dtype=torch.float64) -> dict:
    """A batch of full-length random videos and captions for `tiny_model`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(size, frames, 3, 16, 16, generator=generator, dtype=dtype),
        "input_ids": torch.randint(2, 20, (size, length), generator=generator),
    }


@pytest.fixture(scope="session")
def trained():
    """The demo checkpoint whose modes differ most, loaded once."""
    from fvlm_lib.foveated.checkpoints import load_checkpoint

    return load_checkpoint(DEMO / "S-S" / "step_3000")


class Made(dict):
    """What is made by its name where it is first asked for."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> Any:
        self[name] = self.make(name)
        return self[name]


@pytest.fixture(scope="session")
def vlm_folders(tmp_path_factory):
    """Folders of a tiny random model of each architecture, saved where they are asked for."""
    from vlm_folders import SAVERS

    root = tmp_path_factory.mktemp("vlms")
    return Made(lambda name: SAVERS[name](root / name))


@pytest.fixture(scope="session")
def vlms(vlm_folders):
    """The models in those folders, loaded once."""
    from fvlm_lib.vlm.vlms import load_vlm

    return Made(lambda name: load_vlm(str(vlm_folders[name])))


@contextlib.contextmanager
def disk_of(size: int, from_the_first_forward: bool = False) -> Iterator[None]:
    """Files of this process take no more than `size` bytes, as on a disk that fills; from the start, or from when a
    model is first run."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(fill) if from_the_first_forward else fill()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if hook:
            hook.remove()


def exit_code(main, *arguments: object) -> int:
    """Of a command's `main`, whether it returns the code or its options are refused."""
    try:
        return main([str(argument) for argument in arguments]) or 0
    except SystemExit as end:
        return end.code
