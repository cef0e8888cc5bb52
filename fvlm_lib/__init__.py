"""fvlm_lib: differential encoding and foveated vision-language models, measured.

What most users need is imported from here, such as `from fvlm_lib import load_checkpoint, FoveatedStream`; a name
imports its module when it is first asked for (PEP 562), so that a command line starts in the time its own subject
needs. The wings, from the ground up, and what each of them knows, are told by their docstrings:

* `fvlm_lib.reuse`
* `fvlm_lib.vision`, `fvlm_lib.language`, `fvlm_lib.data`
* `fvlm_lib.foveated`, `fvlm_lib.batch`
* `fvlm_lib.screens`, `fvlm_lib.gap`
* `fvlm_lib.vlm`, `fvlm_lib.figures`
* `fvlm_lib.panels`

Beside them lie `fvlm_lib.stats`, `fvlm_lib.scoring`, `fvlm_lib.timing`, `fvlm_lib.devices` and `fvlm_lib.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what completion, `help` and type checkers see; `_NAMES` is the same at run time
    from fvlm_lib.data.record import record as record
    from fvlm_lib.data.screens import ScreenSequence as ScreenSequence
    from fvlm_lib.data.screens import read_sequence as read_sequence
    from fvlm_lib.data.screens import read_sequences as read_sequences
    from fvlm_lib.data.text_screens import text_screens as text_screens
    from fvlm_lib.data.text_stream import read_text_stream as read_text_stream
    from fvlm_lib.data.videos import ProceduralVideos as ProceduralVideos
    from fvlm_lib.data.videos import open_videos as open_videos
    from fvlm_lib.errors import CheckpointError as CheckpointError
    from fvlm_lib.foveated.checkpoints import load_checkpoint as load_checkpoint
    from fvlm_lib.foveated.configuration_fvlm import FoveatedVLMConfig as FoveatedVLMConfig
    from fvlm_lib.foveated.live import LiveFrame as LiveFrame
    from fvlm_lib.foveated.live import open_live as open_live
    from fvlm_lib.foveated.live import watch_live as watch_live
    from fvlm_lib.foveated.modeling_fvlm import FoveatedVLM as FoveatedVLM
    from fvlm_lib.foveated.output import FoveatedVLMOutput as FoveatedVLMOutput
    from fvlm_lib.foveated.stream import FoveatedStream as FoveatedStream
    from fvlm_lib.gap.gap import Gap as Gap
    from fvlm_lib.gap.gap import evaluate_inference_gap as evaluate_inference_gap
    from fvlm_lib.gap.gap import open_evaluation as open_evaluation
    from fvlm_lib.gap.scaling import fit_law as fit_law
    from fvlm_lib.gap.scaling import fit_scaling_laws as fit_scaling_laws
    from fvlm_lib.language.prefill import GatedPrefill as GatedPrefill
    from fvlm_lib.language.prefill import Prefilled as Prefilled
    from fvlm_lib.stats import Estimate as Estimate
    from fvlm_lib.stats import bootstrap as bootstrap
    from fvlm_lib.vision.changes import trace_changes as trace_changes
    from fvlm_lib.vision.differential import DifferentialVisionEncoder as DifferentialVisionEncoder
    from fvlm_lib.vision.patches import compute_patch_diff as compute_patch_diff
    from fvlm_lib.vision.settings import DifferentialSettings as DifferentialSettings
    from fvlm_lib.vision.settings import read_settings as read_settings
    from fvlm_lib.vision.settings import write_settings as write_settings
    from fvlm_lib.vision.statistics import FrameStatistics as FrameStatistics
    from fvlm_lib.vision.statistics import StreamStatistics as StreamStatistics
    from fvlm_lib.vision.towers import PatchCache as PatchCache
    from fvlm_lib.vision.towers import open_tower as open_tower
    from fvlm_lib.vlm.stream import Answer as Answer
    from fvlm_lib.vlm.stream import Decoding as Decoding
    from fvlm_lib.vlm.stream import VLMStream as VLMStream
    from fvlm_lib.vlm.stream import open_encoder as open_encoder
    from fvlm_lib.vlm.text_models import TextModel as TextModel
    from fvlm_lib.vlm.text_models import load_text_model as load_text_model
    from fvlm_lib.vlm.text_stream import TextStream as TextStream
    from fvlm_lib.vlm.vlms import VLM as VLM
    from fvlm_lib.vlm.vlms import load_vlm as load_vlm

_NAMES = {
    "data.record": "record",
    "data.screens": "ScreenSequence read_sequence read_sequences",
    "data.text_screens": "text_screens",
    "data.text_stream": "read_text_stream",
    "data.videos": "ProceduralVideos open_videos",
    "errors": "CheckpointError",
    "foveated.checkpoints": "load_checkpoint",
    "foveated.configuration_fvlm": "FoveatedVLMConfig",
    "foveated.live": "LiveFrame open_live watch_live",
    "foveated.modeling_fvlm": "FoveatedVLM",
    "foveated.output": "FoveatedVLMOutput",
    "foveated.stream": "FoveatedStream",
    "gap.gap": "Gap evaluate_inference_gap open_evaluation",
    "gap.scaling": "fit_law fit_scaling_laws",
    "language.prefill": "GatedPrefill Prefilled",
    "stats": "Estimate bootstrap",
    "vision.changes": "trace_changes",
    "vision.differential": "DifferentialVisionEncoder",
    "vision.patches": "compute_patch_diff",
    "vision.settings": "DifferentialSettings read_settings write_settings",
    "vision.statistics": "FrameStatistics StreamStatistics",
    "vision.towers": "PatchCache open_tower",
    "vlm.stream": "Answer Decoding VLMStream open_encoder",
    "vlm.text_models": "TextModel load_text_model",
    "vlm.text_stream": "TextStream",
    "vlm.vlms": "VLM load_vlm",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # the next time without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
