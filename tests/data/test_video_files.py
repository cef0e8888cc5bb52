"""Captioned videos on disk: the same samples from every store, padded batches, and bad samples by name."""

from __future__ import annotations

import json
import tarfile

import pytest
import torch
from captioned import VIDEOS, add, encoded, procedural, write_folder, write_tar, write_video
from conftest import DEMO, ROOT, tiny_model
from PIL import Image

from fvlm_lib.data.options import FrameOptions
from fvlm_lib.data.video_files import FolderSource, TarSource, VideoFiles
from fvlm_lib.data.videos import open_videos
from fvlm_lib.foveated.checkpoints import load_tokenizer
from fvlm_lib.gap.evaluation import float64_copy

TOKENIZER = VIDEOS.tokenizer()
EOS = TOKENIZER.eos_token_id
DATA = {"image_size": 16, "max_frames": 8}


def open_folder(path, **options) -> VideoFiles:
    return open_videos({"kind": "folder", "path": str(path), **DATA, **options}, TOKENIZER)


def open_tar(path, **options) -> VideoFiles:
    return open_videos({"kind": "webdataset", "path": str(path), **DATA, **options}, TOKENIZER)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Ten videos as a folder, and as tar shards of 4, 4 and 2."""
    folder = tmp_path_factory.mktemp("stored")
    write_folder(folder, 10)
    write_tar(folder, 10, shards=3)
    return folder


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---- samples and batches -----------------------------------------------------------------------------


def test_folder_and_tar_shards_hold_the_same_samples(stored):
    folder, shards = open_folder(stored), open_tar(stored / "{0,1,2}.tar")
    assert len(folder) == len(shards) == 10
    for one, other in zip(folder.batches(0, 10, 4), shards.batches(0, 10, 4), strict=True):
        assert one.samples == other.samples
        assert equal(one.inputs, other.inputs)
    assert [name[-10:] for name in other.names] == [".tar:00008", ".tar:00009"]


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_a_sample_is_the_same_wherever_reading_begins(stored, kind):
    videos = open_folder(stored) if kind == "folder" else open_tar(stored / "*.tar")
    whole = videos.batch(0, 10)
    for start, stop in ((0, 1), (3, 5), (4, 8), (9, 10)):
        part = videos.batch(start, stop)
        for i in range(start, stop):
            frames, tokens = whole["frame_mask"][i].sum(), whole["attention_mask"][i].sum()
            assert torch.equal(part["pixel_values"][i - start, :frames], whole["pixel_values"][i, :frames])
            assert torch.equal(part["input_ids"][i - start, :tokens], whole["input_ids"][i, :tokens])


def test_a_batch_pads_frames_and_text_behind(stored):
    batch = open_folder(stored).batch(0, 4)
    assert batch["pixel_values"].shape == (4, 8, 3, 16, 16)
    assert batch["frame_mask"].sum(dim=1).tolist() == [8, 8, 5, 8]
    assert batch["attention_mask"].sum(dim=1).tolist() == [10, 10, 7, 10]
    assert batch["input_ids"][2].tolist()[6:] == [EOS] * 4  # its own, then pads of the same id
    assert batch["labels"][2].tolist()[6:] == [EOS, -100, -100, -100]
    assert (batch["pixel_values"][2, 5:] == 0).all()


def test_the_text_is_the_caption_and_eos(stored):
    batch = open_folder(stored).batch(0, 1)
    caption = procedural(1)[0][1]
    assert TOKENIZER.decode(batch["input_ids"][0]) == f"{caption} <eos>"
    assert torch.equal(batch["labels"], batch["input_ids"])


def test_a_prompt_precedes_and_is_not_scored(stored, tmp_path):
    plain, prompted = (open_folder(stored, prompt=prompt).batch(0, 3) for prompt in ("", "red green "))
    assert TOKENIZER.decode(prompted["input_ids"][0, :2]) == "red green"
    assert (prompted["labels"][:, :2] == -100).all()
    assert torch.equal(prompted["labels"][:, 2:], plain["labels"])
    write_folder(tmp_path, 1)
    lines = tmp_path / "captions.jsonl"
    lines.write_text(json.dumps({**json.loads(lines.read_text()), "prompt": "blue"}))
    own = open_folder(tmp_path, prompt="red green").batch(0, 1)
    assert TOKENIZER.decode(own["input_ids"][0, :2]) == "blue " + procedural(1)[0][1].split()[0]
    assert own["labels"][0, 0] == -100
    assert own["labels"][0, 1] != -100


def test_batch_mates_padding_and_prompts_are_not_felt(stored):
    """A video of 5 frames in a batch with longer ones has the loss it has alone; a prompt is not counted."""
    text_config = tiny_model().config.text_config
    text_config.vocab_size = len(VIDEOS.vocabulary)
    model = float64_copy(tiny_model(text_config=text_config))
    videos = open_folder(stored, prompt="red")
    batch, alone = videos.batch(0, 4), videos.batch(2, 3)
    for inputs in (batch, alone):
        inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        for forward in (model.forward_captioning, model.forward_autoregressive):
            together, single = forward(**batch), forward(**alone)
            torch.testing.assert_close(together.nll[2:3], single.nll, rtol=0, atol=1e-9)
            assert together.num_tokens.tolist() == [10, 10, 7, 10]


def test_threads_do_not_change_a_batch(stored):
    assert equal(open_folder(stored).batch(0, 10), open_folder(stored, workers=4).batch(0, 10))


def test_frame_folders_and_videos_mix(tmp_path):
    frames, caption = procedural(1)[0]
    write_video(tmp_path / "a.mkv", frames)
    (tmp_path / "b").mkdir()
    for i, frame in enumerate(frames):
        (tmp_path / "b" / f"{i}.png").write_bytes(encoded(frame))
    lines = [json.dumps({"file": file, "caption": caption}) for file in ("a.mkv", "b")]
    (tmp_path / "captions.jsonl").write_text("\n\n".join(lines) + "\n")
    batch = open_folder(tmp_path).batch(0, 2)
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])


def test_tar_samples_with_a_video_and_a_json_caption(stored, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "__index__/clips", {"json": b"{}"})  # WebDataset passes over such names
        entry = {"caption": procedural(1)[0][1], "prompt": "red", "width": 32}
        add(archive, "clips/a", {"mkv": (stored / "0.mkv").read_bytes(), "json": json.dumps(entry).encode()})
    read, expected = open_tar(tmp_path / "a.tar").batch(0, 1), open_folder(stored, prompt="red").batch(0, 1)
    assert equal(read, expected)


def test_tar_files_are_read_in_the_given_order_and_only_from_where_they_are_needed(stored, monkeypatch):
    source = TarSource([f"{stored}/2.tar", f"{stored}/0.tar"])
    assert source.counts == [2, 4]
    names = [video.name.rpartition("/")[2] for video in source.read(1)]
    assert names == ["2.tar:00009", "0.tar:00000", "0.tar:00001", "0.tar:00002", "0.tar:00003"]
    source.shards[0] = "gone.tar"
    assert next(source.read(3)).name.endswith("0.tar:00001")
    assert next(source.read(6), None) is None


# ---- bad samples -------------------------------------------------------------------------------------


def bad_folder(folder) -> dict[int, str]:
    """Five videos of which 1 to 3 cannot be used; what is said of each."""
    write_folder(folder, 5, captions={1: "  ", 2: "red " * 50})
    (folder / "3.mkv").write_bytes((folder / "3.mkv").read_bytes()[:3000])
    return {
        1: "its caption is empty",
        2: "its 5 frames and 51 text tokens are more than the language model's 32 positions",
        3: "3.mkv: is not a readable video",
    }


def test_bad_samples_are_named_or_skipped_and_the_others_keep_their_numbers(tmp_path):
    problems = bad_folder(tmp_path)
    data = {"kind": "folder", "path": str(tmp_path), **DATA}
    videos = open_videos(data, TOKENIZER, max_positions=32)
    for number, problem in problems.items():
        with pytest.raises(ValueError) as raised:
            videos.batch(number, number + 1)
        assert f"sample {number}, {number}.mkv: " in str(raised.value)
        assert problem in str(raised.value)
        assert "skip_bad: true" in str(raised.value)
    lenient = open_videos({**data, "skip_bad": True}, TOKENIZER, max_positions=32)
    first, second = lenient.batches(0, 5, 3)
    assert (first.samples, second.samples) == ([0], [4])
    assert first.inputs["pixel_values"].shape[0] == 1
    skipped = [*first.skipped, *second.skipped]
    assert [(s.sample, s.name) for s in skipped] == [(i, f"{i}.mkv") for i in problems]
    assert all(problem in s.reason for s, problem in zip(skipped, problems.values(), strict=True))
    (nothing,) = lenient.batches(1, 4, 3)
    assert nothing.inputs == {}


def test_a_caption_or_prompt_of_unknown_words_cannot_be_used(tmp_path):
    write_folder(tmp_path, 4, captions={1: "a dog runs", 2: "red dog green"})
    lines = (tmp_path / "captions.jsonl").read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "prompt": "What? red"})
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    problems = {
        1: "the tokenizer does not know 3 of the 3 words of the caption: a, dog, runs",
        2: "the tokenizer does not know 1 of the 3 words of the caption: dog",
        3: "the tokenizer does not know 1 of the 2 words of the prompt: What?",
    }
    for number, problem in problems.items():
        with pytest.raises(ValueError) as raised:
            open_folder(tmp_path).batch(number, number + 1)
        assert str(raised.value).startswith(f"sample {number}, {number}.mkv: {problem}; ")
        assert "skip_bad: true" in str(raised.value)
    (batch,) = open_folder(tmp_path, skip_bad=True).batches(0, 4, 4)
    assert batch.samples == [0]
    assert {skipped.sample: skipped.reason for skipped in batch.skipped} == problems


def test_a_prompt_for_all_of_unknown_words_is_refused_at_once(stored):
    with pytest.raises(ValueError, match=r"^the tokenizer does not know 2 of the 3 words of the prompt: "):
        open_folder(stored, prompt="Describe it. red", skip_bad=True)


def test_a_limit_of_ones_own_on_text(stored):
    with pytest.raises(ValueError, match=r"sample 0, .*its text has 10 tokens, more than max_text_tokens, 9"):
        open_folder(stored, max_text_tokens=9).batch(0, 1)
    open_folder(stored, max_text_tokens=10).batch(0, 1)


def test_a_damaged_image_in_the_middle_of_a_shard_is_named(tmp_path):
    write_tar(tmp_path, 6, shards=2, broken=4)
    with pytest.raises(ValueError, match=r"sample 4, .*1\.tar:00004: .*00004\.002\.png: is not a readable image"):
        list(open_tar(tmp_path / "*.tar").batches(0, 6, 3))
    batches = list(open_tar(tmp_path / "*.tar", skip_bad=True).batches(0, 6, 3))
    assert [batch.samples for batch in batches] == [[0, 1, 2], [3, 5]]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"000.png": b""}, "it has no caption, neither .txt nor .json"),
        ({"000.png": b"", "json": b"{"}, "its caption cannot be read"),
        ({"000.png": b"", "json": b"[]"}, r"its caption cannot be read \(its .json holds a list"),
        ({"000.png": b"", "json": b"[" * 100_000}, r"its caption cannot be read \(.*nested too deeply"),
        ({"000.png": b"", "json": b'{"caption": 3}'}, "it has no caption"),
        ({"000.png": b"", "json": b'{"caption": "red", "prompt": 3}'}, "its prompt is 3"),
        ({"000.png": b"", "txt": b"\xff"}, "its caption cannot be read"),
        ({"000.png": b"", "txt": b" \n"}, "its caption is empty"),
        ({"txt": b"red"}, "it has no frames"),
    ],
)
def test_a_tar_sample_that_cannot_be_used_is_named(tmp_path, files, problem):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "x", files)
    with pytest.raises(ValueError, match=f"sample 0, .*a.tar:x: {problem}"):
        open_tar(tmp_path / "a.tar").batch(0, 1)


def test_a_tar_file_that_is_cut_short_is_named_even_with_skip_bad(tmp_path):
    write_tar(tmp_path, 4, shards=1)
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(ValueError, match=r"0\.tar is not a readable tar file"):
        len(open_tar(tmp_path / "0.tar", skip_bad=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not a readable tar file \(it is empty\)"),
        (b"no tar file at all " * 100, r"is not a readable tar file \(it is no archive\)"),
        (b"\0" * 10240, r"holds no samples; it must hold files such as 0001\.mp4 and 0001\.txt"),
    ],
)
def test_a_shard_without_samples_is_named(tmp_path, content, message):
    write_tar(tmp_path, 2, shards=1)
    (tmp_path / "1.tar").write_bytes(content)
    with pytest.raises(ValueError, match=rf"1\.tar {message}"):
        len(open_tar(tmp_path / "*.tar", skip_bad=True))


def test_a_gif_is_a_video_and_an_animated_image_is_refused(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "white", "black")]
    lines = []
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        lines.append(json.dumps({"file": name, "caption": "red"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    (batch,) = open_folder(tmp_path, skip_bad=True).batches(0, 3, 3)
    assert batch.inputs["pixel_values"].shape[:2] == (1, 3)
    assert [skipped.reason.rpartition("/")[2][:21] for skipped in batch.skipped] == [
        "a.webp: holds 3 image",
        "a.png: holds 3 images",
    ]


@pytest.mark.parametrize("limit", ["positions", "max_text_tokens"])
def test_a_prompt_that_leaves_no_room_is_refused_at_once(stored, limit):
    data = {"kind": "folder", "path": str(stored), **DATA, "prompt": "red " * 30}
    room = {"positions": {"max_positions": 31}, "max_text_tokens": {}}[limit]
    data |= {} if room else {"max_text_tokens": 30}
    with pytest.raises(ValueError, match=r"the prompt has 30 tokens.* (31 positions|max_text_tokens, 30)"):
        open_videos(data, TOKENIZER, **room)


def test_two_files_of_the_same_name_in_a_sample_name_the_shard(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "x", {"txt": b"red", "000.png": b""})
        add(archive, "x", {"txt": b"red"})
    with pytest.raises(ValueError, match=r"a\.tar: the shard cannot be read .*duplicate file name"):
        open_tar(tmp_path / "a.tar").batch(0, 1)


# ---- what is refused at once -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no captions.jsonl"),
        ("\n", "lists no videos"),
        ('{"file": "0.mkv", "caption": "red"}\n{"file"', "line 2 is not valid JSON"),
        ('{"caption": "red"}', "line 1 names no file"),
        ("[]", "line 1 holds a list"),
        ("[" * 100_000, "line 1 is not valid JSON"),
    ],
)
def test_a_wrong_list_of_captions_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "captions.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        FolderSource(tmp_path)


def test_captions_are_utf_8(tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"file": "0.mkv", "caption": "red\u2028dog"}\n', encoding="utf-8")
    assert FolderSource(tmp_path).videos[0].caption == "red\u2028dog"
    (tmp_path / "captions.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"captions\.jsonl is not UTF-8 text"):
        FolderSource(tmp_path)


def test_a_pattern_that_matches_nothing_is_named(stored):
    with pytest.raises(ValueError, match=r"no file matches '.*/3.tar' \(of '.*/\{0..3\}.tar'\)"):
        TarSource(f"{stored}/{{0..3}}.tar")
    with pytest.raises(ValueError, match=r"no file matches '.*/x\*.tar'"):
        TarSource([f"{stored}/0.tar", f"{stored}/x*.tar"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "folder"}, "^data lacks path$"),
        (
            {"kind": "folder", "path": "x", "grid": 4},
            "data has the unknown key 'grid'; known are sampling, max_frames",
        ),
        ({"kind": "folder", "path": "nowhere"}, r"nowhere has no captions\.jsonl"),
        ({"kind": "webdataset", "path": "x.tar", "crop": "left"}, "data: crop is 'left'"),
        ({"kind": "folder", "path": "{stored}", "workers": 0}, "data: workers is 0; it must be at least 1"),
        ({"kind": "folder", "path": "{stored}", "skip_bad": "yes"}, "data: skip_bad is 'yes'; it must be true"),
    ],
)
def test_wrong_options_are_named(stored, data, message):
    data = {key: str(stored) if value == "{stored}" else value for key, value in data.items()}
    with pytest.raises(ValueError, match=message):
        open_videos(data, TOKENIZER)


def test_captions_take_a_tokenizer_with_eos(stored):
    with pytest.raises(ValueError, match="take the checkpoint's tokenizer"):
        open_videos({"kind": "folder", "path": str(stored)})
    without = VIDEOS.tokenizer()
    without.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        open_videos({"kind": "folder", "path": str(stored)}, without)


def test_samples_beyond_the_last_are_refused(stored):
    with pytest.raises(ValueError, match="samples 8 to 11 are asked for; the set has 10"):
        list(open_folder(stored).batches(8, 11, 2))


def test_the_shipped_clips_are_what_their_script_makes_of_words_that_the_demo_knows():
    source = FolderSource(ROOT / "data" / "clips")
    options = FrameOptions(image_size=32, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    shipped = VideoFiles(source, options, load_tokenizer(DEMO / "S-S" / "step_3000")).batch(0, 6)
    drawn = VIDEOS.batch(0, 6)
    assert torch.equal(shipped["input_ids"], drawn["input_ids"])
    assert (shipped["pixel_values"] - drawn["pixel_values"]).abs().max() <= 1 / 255 + 1e-6  # half a grey level of 2/255
