"""Videos of screens: pixels change where the event says and nowhere else, and captions say what the pixels show."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT

from fvlm_lib.data.drawn_events import (
    SHOWN,
    Window,
    after_event,
    draw_event,
    draw_window,
    event_cells,
    event_stream,
    possible_events,
)
from fvlm_lib.data.drawn_screens import BLANK, CELL, LABELS, OFF, ON, contents, draw
from fvlm_lib.data.options import ScreenData
from fvlm_lib.data.screen_events import DIGITS, EVENT_KINDS, EVENTS, FIELD_LABELS, PHRASES, SWITCH_LABELS, WORDS, Event
from fvlm_lib.data.screen_videos import ScreenVideos, write_screen_video
from fvlm_lib.data.screens import read_sequence
from fvlm_lib.data.videos import open_videos

VIDEOS = ScreenVideos("test")
SEEDS = range(30)


def window(seed: int = 0) -> Window:
    return draw_window(np.random.default_rng(seed))


def changed_cells(before: Window, after: Window) -> np.ndarray:
    """bool (rows, columns): cells in which a pixel differs."""
    differs = (draw(before.screen) != draw(after.screen)).any(axis=2)
    rows, columns = before.screen.grid
    return differs.reshape(rows, CELL, columns, CELL).any(axis=(1, 3))


def steps(seed: int, frames: int = 12) -> list[tuple[Window, Window, Event]]:
    stream = list(event_stream(np.random.default_rng(seed), frames, num_themes=4))
    return [(before, after, event) for (before, _), (after, event) in itertools.pairwise(stream)]


# ---- what changes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_frames_differ_within_the_widget_of_the_event_and_are_equal_where_nothing_happened(seed):
    for before, after, event in steps(seed):
        changed = changed_cells(before, after)
        assert not (changed & ~event_cells(before.screen, after.screen, event)).any(), event
        assert changed.any() == (event.kind != "nothing"), event


def test_every_kind_of_event_comes_and_each_phrase_is_of_one_event():
    events = [event for seed in SEEDS for _, _, event in steps(seed)]
    assert {event.kind for event in events} == set(EVENT_KINDS)
    assert len(set(PHRASES)) == len(PHRASES) == len(EVENTS) == 59
    assert 0.1 < np.mean([event.kind == "nothing" for event in events]) < 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_phrases_say_what_the_pixels_show(seed):
    """Read from the cells that are drawn, without the state: digits, ticks, the thumb of the scroll bar, the title of a
    dialog. `test_drawn_screens.py` has that cells are drawn as they are."""
    for before, after, event in steps(seed):
        old, new = contents(before.screen), contents(after.screen)
        where = [(r, c) for r, c in np.ndindex(before.screen.grid) if old[r][c] != new[r][c]]
        words = event.phrase.split()
        if words[0] == "typed":
            ((row, column),) = where
            assert new[row][column] == words[1] and old[row][column] in DIGITS
            assert new[row][column - 2 : column] == [words[3], ":"]
        elif words[0] == "switched":
            ((row, column),) = where
            assert new[row][column - 2] == words[1]
            assert (old[row][column], new[row][column]) == ((OFF, ON) if words[2] == "on" else (ON, OFF))
        elif words[0] == "clicked":
            assert not where  # it is the same word, on another ground
            (row,) = {row for row, _ in np.argwhere(changed_cells(before, after)).tolist()}
            columns = [column for _, column in np.argwhere(changed_cells(before, after)).tolist()]
            assert "".join(new[row][column] for column in columns) == words[1]
        elif words[0] == "scrolled":
            left, top = before.screen.listed[0].cell[1], before.screen.listed[0].cell[0]
            shown = [["".join(cells[top + i][left : left + 4]) for i in range(SHOWN)] for cells in (old, new)]
            assert (shown[0][1:] == shown[1][:-1]) == (words[1] == "down")
            assert (shown[0][:-1] == shown[1][1:]) == (words[1] == "up")
            assert (thumb(after) > thumb(before)) == (words[1] == "down")
        elif words[0] == "dialog":
            shorter, longer = (old, new) if words[1] == "closed" else (new, old)
            assert sum(c == BLANK for line in shorter for c in line) != sum(c == BLANK for line in longer for c in line)
            assert (before.screen.dialog is None, after.screen.dialog is None) == (
                words[1] == "opened",
                words[1] == "closed",
            )
        else:
            assert not where and event.phrase == "nothing"


def thumb(of: Window) -> float:
    """The mean row of the dark pixels in the column of the scroll bar, in pixels from its upper end."""
    (row, column), frame = of.screen.listed[0].cell, draw(of.screen).astype(int)
    bar = frame[row * CELL : (row + SHOWN) * CELL, (column + 5) * CELL + CELL // 2]
    ground = frame[row * CELL, (column + 5) * CELL]  # beside the bar
    return float(np.abs(bar - ground).sum(axis=1).argsort(kind="stable")[-10:].mean())


@pytest.mark.parametrize("seed", SEEDS)
def test_an_event_and_its_opposite_lead_back_to_the_same_frame(seed):
    """And a digit typed anew to where it was; so a frame is a function of what happened."""
    rng, start = np.random.default_rng(seed), window(seed)
    opposites = {"on": "off", "off": "on", "up": "down", "down": "up"}
    for event in possible_events(start):
        there = after_event(start, event, rng)
        if event.kind == "opened":
            back = Event("closed")
        elif event.kind == "typed":
            back = replace(event, state=next(f.value for f in start.screen.fields if f.label == event.name))
        else:
            back = replace(event, state=opposites.get(event.state, ""))
        assert not np.array_equal(draw(there.screen), draw(start.screen)), event
        assert np.array_equal(draw(after_event(there, back, rng).screen), draw(start.screen)), event


def test_while_a_dialog_is_open_things_happen_in_it_alone():
    for seed in SEEDS:
        opened = after_event(window(seed), Event("opened"), np.random.default_rng(seed))
        label = opened.screen.dialog.field.label
        assert label not in {field.label for field in opened.screen.fields}
        assert {event.kind for event in possible_events(opened)} == {"typed", "closed"}
        assert {event.name for event in possible_events(opened)} == {label, ""}


def test_the_list_ends_at_both_ends():
    for first, said in ((0, {"down"}), (1, {"up", "down"}), (3, {"up"})):
        start = next(w for w in map(window, range(100)) if w.first == first)
        assert {event.state for event in possible_events(start) if event.kind == "scrolled"} == said


def test_half_of_what_happens_is_where_the_last_thing_happened():
    start, rng = window(), np.random.default_rng(0)
    box = start.screen.boxes[0]
    last = Event("switched", box.label, "on" if box.on else "off")
    drawn = [draw_event(rng, start, last) for _ in range(2000)]
    drawn = [event for event in drawn if event.kind != "nothing"]
    # of the half that goes anywhere, one in five kinds is a switch, and one of two switches this one
    assert np.mean([event.name == last.name for event in drawn]) == pytest.approx(0.5 + 0.5 / 5 / 2, abs=0.04)


# ---- sets, batches and words ---------------------------------------------------------------------------


def test_a_sample_is_the_same_however_batched_and_splits_and_seeds_are_apart():
    whole = VIDEOS.batch(0, 9)
    for start, stop in ((0, 1), (3, 9), (8, 9)):
        part = VIDEOS.batch(start, stop)
        assert all(torch.equal(part[key], whole[key][start:stop]) for key in whole)
    sets = [ScreenVideos(split, seed) for split in ("train", "validation", "test") for seed in (0, 1)]
    firsts = [draw(videos.sample(i)[0][0].screen).tobytes() for videos in sets for i in range(20)]
    assert len(set(firsts)) == len(firsts) == 120


def test_a_batch_holds_frames_and_a_phrase_for_each_but_the_first():
    batch = ScreenVideos("test", num_frames=5).batch(2, 4)
    assert batch["pixel_values"].shape == (2, 5, 3, 128, 128) and batch["input_ids"].shape == (2, 5)
    assert batch["pixel_values"].abs().max() == 1
    sample = ScreenVideos("test", num_frames=5).sample(2)
    pixels = torch.from_numpy(np.stack([draw(window.screen) for window, _ in sample])).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(batch["pixel_values"][0], pixels)
    text = VIDEOS.tokenizer().decode(batch["input_ids"][0], skip_special_tokens=True)
    assert text == ", ".join(event.phrase for _, event in sample[1:])


def test_the_tokenizer_reads_what_it_writes_and_is_kept(tmp_path):
    from transformers import AutoTokenizer

    VIDEOS.tokenizer().save_pretrained(tmp_path)
    batch = VIDEOS.batch(0, 8)["input_ids"]
    for tokenizer in (VIDEOS.tokenizer(), AutoTokenizer.from_pretrained(tmp_path)):
        texts = tokenizer.batch_decode(batch)
        assert tokenizer(texts)["input_ids"] == batch.tolist()
        VIDEOS.check_words(tokenizer)
    assert VIDEOS.tokenizer()("clicked save, dialog closed, scrolled down, waved")["input_ids"][-1] == 0
    with pytest.raises(ValueError, match=r"\(kind is screens\) have captions of 61 words, .* numbers 59 otherwise"):
        VIDEOS.check_words(open_videos({"kind": "procedural"}).tokenizer())


def test_sizes_are_those_that_options_say():
    batch = VIDEOS.batch(0, 1)
    assert batch["pixel_values"].shape[-2:] == (VIDEOS.image_size,) * 2
    assert (VIDEOS.num_words, VIDEOS.num_positions) == (len(VIDEOS.vocabulary), 8 + batch["input_ids"].shape[1])
    assert VIDEOS.pixel_rms == pytest.approx(
        VIDEOS.batch(0, 16)["pixel_values"].square().mean().sqrt().item(), abs=0.05
    )
    assert open_videos({"kind": "screens", "split": "test"}) == VIDEOS
    VIDEOS.check_model(128, 61, 16)
    assert {draw(w.screen)[2, 2].tobytes() for w, _ in ScreenVideos(num_themes=1).sample(0)} == {
        draw(ScreenVideos(num_themes=1).sample(1)[0][0].screen)[2, 2].tobytes()
    }
    assert {ScreenVideos(num_themes=4).sample(i)[0][0].screen.theme for i in range(40)} == set(range(4))


def test_names_are_apart():
    assert set(FIELD_LABELS + SWITCH_LABELS) <= set(LABELS) and not set(FIELD_LABELS) & set(SWITCH_LABELS)
    assert len({word[0] for word in WORDS}) == len(WORDS) and {len(word) for word in WORDS} == {4}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VIDEOS.batch(3, 3), "samples 3 to 3 are asked for; 0 <= start < stop must hold"),
        (lambda: ScreenVideos(num_frames=1), "num_frames is 1; it must be at least 2"),
        (lambda: ScreenVideos(num_themes=5), "num_themes is 5; it must be at most 4"),
        (lambda: open_videos({"kind": "screens", "grid": 4}), "unknown key 'grid'; known are split, seed, num_frames"),
        (
            lambda: Event("clicked", "shut"),
            "no event 'clicked' with name 'shut' and state ''; names are 'save', 'open'",
        ),
        (lambda: Event("typed", "K", "x"), "no event 'typed' with name 'K' and state 'x'"),
        (lambda: Event("waved"), "no event 'waved' .* there are clicked, typed, switched, scrolled, opened, closed"),
        (
            lambda: after_event(window(), Event("closed"), np.random.default_rng(0)),
            "'dialog closed' cannot happen on this screen",
        ),
        (
            lambda: event_cells(window().screen, window().screen, Event("closed")),
            "the screen has no widget of which 'dialog closed' can be said",
        ),
        (
            lambda: ScreenData().check_model(32, 61, 64),
            "kind is screens, frames of 128 x 128 pixels, but the model sees 32 x 32",
        ),
        (
            lambda: ScreenData().check_model(128, 60, 64),
            "kind is screens, captions of 61 words, but the model knows 60",
        ),
        (
            lambda: ScreenData().check_model(128, 61, 15),
            "num_frames is 8, which with the caption takes 16 positions, but the model has 15",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message if ".*" in message else re.escape(message)):
        call()


def test_the_shipped_screen_is_a_test_video(tmp_path):
    """But for single pixels of glyphs, which another version of the library that draws them may draw otherwise."""
    videos = ScreenVideos("test", num_frames=24)
    made = read_sequence(write_screen_video(tmp_path / "screen-events", videos, 5))
    shipped = read_sequence(ROOT / "data" / "screen-events")
    assert shipped.actions == made.actions and shipped.about == made.about
    pixels = videos.batch(5, 6)["pixel_values"][0]  # (T, 3, H, W)
    for frame, other, seen in zip(made, shipped, pixels, strict=True):
        assert (np.abs(frame.astype(int) - other) > 64).mean() < 0.01
        assert np.array_equal(frame, ((seen + 1) * 127.5).round().byte().movedim(0, -1))
