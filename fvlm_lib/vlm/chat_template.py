"""Chat templates rendered within bounds: they are programs that come with a model, and may be wrong or never end.

transformers renders them in Jinja's sandbox, which keeps attributes and files from them, and one loop from being too
long, but neither loops within loops nor `'a' * 10**10`. So they are rendered here, by the same function of
transformers, in a process of its own, whose processor time, memory and text are limited. That process starts in under
a second, since that function needs no torch. This module knows nothing of images and models.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import signal
import subprocess
import sys
import time
from typing import Any

CPU_SECONDS = 2  # that rendering may take; templates of models take milliseconds
WALL_SECONDS = 60  # of the whole process, where the processor is busy with others
MEMORY = 4 << 30  # bytes of address space
LONGEST = 1_000_000  # characters of a rendered prompt


def render_chat(template: str, messages: list[dict[str, Any]], special_tokens: dict[str, Any]) -> str:
    """What a processor's `apply_chat_template` gives for these messages, with the generation prompt behind them.

    Raises ValueError, saying why, for a template that is no template, refuses the messages, reaches for what the
    sandbox forbids, or does not end within CPU_SECONDS, MEMORY and LONGEST.
    """
    return _render(template, json.dumps(messages), json.dumps(special_tokens))


@functools.lru_cache(maxsize=64)
def _render(template: str, messages: str, special_tokens: str) -> str:
    asked = json.dumps([template, json.loads(messages), json.loads(special_tokens)])
    try:
        # -P: the folder of this file is no place for imports
        command = [sys.executable, "-P", __file__]
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it does not end within {WALL_SECONDS} seconds") from None
    if done.returncode == -signal.SIGXCPU:
        raise ValueError(f"it does not end within {CPU_SECONDS} seconds")
    if done.returncode:
        raise ValueError(f"rendering it ended with exit code {done.returncode}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["text"]


def main() -> None:
    """Render what stdin asks for, in this process, within the limits."""
    template, messages, special_tokens = json.load(sys.stdin)
    from transformers.utils.chat_template_utils import render_jinja_template

    seconds = int(time.process_time()) + 1 + CPU_SECONDS
    for kind, limit in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # where the system does not have this limit, or a lower one
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    answer: dict[str, str]
    try:
        rendered: Any = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=True, **special_tokens
        )
        text: str = rendered[0][0]  # of the first conversation
        answer = {"text": text}
        if len(text) > LONGEST:
            answer = {"error": f"it gives {len(text):,} characters, of which {LONGEST:,} are allowed"}
    except MemoryError:
        answer = {"error": f"it needs more than {MEMORY >> 30} GiB of memory"}
    except Exception as error:  # whatever a template may raise
        line = getattr(error, "lineno", None)
        words = " ".join(str(error).split()) or type(error).__name__
        answer = {"error": words[:200] + (f", line {line}" if line else "")}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
