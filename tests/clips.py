"""Makes data/clips: six captioned videos on disk that the demo's checkpoints know the words of.

    .venv/bin/python tests/clips.py

They are the first test videos of the procedural kind, coded without loss, as a folder with captions.jsonl. Their frames
are 32 x 32 pixels, as the demo's vision towers see them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from captioned import procedural, write_video

CLIPS = Path(__file__).resolve().parents[1] / "data" / "clips"
COUNT = 6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/clips.py", description=__doc__.split("\n\n")[0])
    parser.parse_args()
    CLIPS.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (frames, caption) in enumerate(procedural(COUNT, cut=False)):
        write_video(CLIPS / f"{i}.mp4", frames, codec="libx264rgb", pixels="rgb24", fps=2)
        lines.append(json.dumps({"file": f"{i}.mp4", "caption": caption}) + "\n")
    (CLIPS / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{COUNT} videos in {CLIPS}")


if __name__ == "__main__":
    main()
