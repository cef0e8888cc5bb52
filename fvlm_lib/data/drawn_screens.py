"""Desktop-like frames, drawn from a state that says what stands on them.

    screen = draw_state(np.random.default_rng(0))
    frame = draw(screen)                           # uint8 (160, 160, 3)

A screen is a window of rows, in an order of its own: rows of fields (`K: 42`), of check boxes, a progress bar, and a
list of fields of which one is selected. A dialog may cover a part of it. It has one of several themes, a mouse pointer
and a caret, and is shifted by up to `MOST_SHIFT` pixels. Labels are single letters, each used once; values have two or
three characters of `VALUE_CHARACTERS`, which are no labels. Screens of `drawn_events.py` are smaller, and have buttons
and a scroll bar too.

Everything that is read stands in cells of 16 pixels, `GRID` of them, one character a cell: `contents` says which. So
no character crosses the border of a 16-pixel patch, and frames of text in other sizes and places are not what a
model learns here. What changes from one frame to the next is the subject of `drawn_streams.py`, what can be asked of
`screen_questions.py`. This module knows nothing of models.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 16  # pixels
GRID = (10, 10)  # rows, columns
SIZE = (GRID[0] * CELL, GRID[1] * CELL)  # height, width in pixels
MOST_SHIFT = 2  # pixels
FONT = "DejaVuSansMono-Bold.ttf"
FONT_SIZE = 14  # pixels
VALUE_CHARACTERS = "0123456789BGIOSZ"
LABELS = "ACDEFHJKLMNPQRTUVWXY"
FLIPS = {"0": "O", "1": "I", "2": "Z", "3": "8", "5": "S", "6": "G", "8": "B"}
"""Characters that look alike, a pair each."""

BLANK, COLON, ON, OFF = " ", ":", "on", "off"
"""Contents of cells besides the characters of labels and values: nothing to read, and a ticked and an empty box."""

FIELD_WIDTH = 5  # cells: a label, a colon and a value
BOX_WIDTH = 3  # cells: a label, a colon and a box
BAR_WIDTH = 8  # cells

Cell = tuple[int, int]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Field:
    """A label and a value, from its cell (row, column) to the right. number: the value is a number of two digits."""

    label: str
    value: str
    cell: Cell

    @property
    def number(self) -> bool:
        """Whether the value is a number of two digits, as those that are compared are."""
        return len(self.value) == 2 and self.value.isdigit()


@dataclass(frozen=True)
class Box:
    """A label and a check box, from its cell (row, column) to the right."""

    label: str
    on: bool
    cell: Cell


@dataclass(frozen=True)
class Button:
    """A button with a word on it, a letter a cell, from its cell (row, column) to the right. pressed: whether it is
    held down."""

    word: str
    pressed: bool
    cell: Cell


@dataclass(frozen=True)
class Dialog:
    """A window over the others: its upper left cell, its size in cells (rows, columns), and the field in it."""

    cell: Cell
    size: tuple[int, int]
    field: Field

    def covers(self, cell: Cell) -> bool:
        """Whether a cell (row, column) lies under the dialog."""
        return all(first <= at < first + size for at, first, size in zip(cell, self.cell, self.size, strict=True))


@dataclass(frozen=True)
class Screen:
    """What stands on a frame.

    fields: of the form. listed: of the list, from its upper row to the lower. selected: which of these is, counted from
    0. bar: row of the progress bar, and how much of it is full, in cells; None for none. caret: the label of the field
    at whose end it blinks; caret_shown: whether it shows. pointer: (x, y) in pixels. theme: of `THEMES`. brightness:
    what all colours are multiplied with. shift: pixels (down, right) of all that is drawn. scrollbar: right of the
    list, (first, total): how many rows it scrolls through, and which of them is listed first, counted from 0; None for
    none. grid: cells of the frame, (rows, columns).
    """

    fields: tuple[Field, ...]
    boxes: tuple[Box, ...]
    listed: tuple[Field, ...]
    selected: int
    bar: tuple[int, int] | None
    dialog: Dialog | None
    caret: str
    caret_shown: bool
    pointer: tuple[int, int]
    theme: int
    brightness: float
    shift: tuple[int, int]
    buttons: tuple[Button, ...] = ()
    scrollbar: tuple[int, int] | None = None
    grid: Cell = GRID

    def shown_fields(self) -> list[Field]:
        """The fields that nothing covers, in reading order."""
        found = [field for field in (*self.fields, *self.listed) if not self._covered(field.cell, FIELD_WIDTH)]
        found += [self.dialog.field] if self.dialog else []
        return sorted(found, key=lambda field: field.cell)

    def shown_boxes(self) -> list[Box]:
        """The check boxes that nothing covers, in reading order."""
        return [box for box in self.boxes if not self._covered(box.cell, BOX_WIDTH)]

    def _covered(self, cell: Cell, width: int) -> bool:
        row, column = cell
        return self.dialog is not None and any(self.dialog.covers((row, column + i)) for i in range(width))


@dataclass(frozen=True)
class Theme:
    """Colours of the desk behind the window, the window, its title and selected rows, text and labels."""

    desk: Colour
    window: Colour
    accent: Colour
    text: Colour
    label: Colour


THEMES = (
    Theme((205, 214, 224), (255, 255, 255), (120, 175, 235), (20, 20, 20), (0, 70, 160)),
    Theme((226, 222, 214), (250, 246, 238), (225, 180, 110), (40, 30, 20), (150, 50, 10)),
    Theme((24, 26, 30), (45, 48, 54), (60, 90, 140), (235, 235, 235), (130, 190, 255)),
    Theme((10, 20, 16), (22, 38, 32), (40, 100, 70), (220, 240, 225), (240, 200, 90)),
)
"""Two light and two dark ones."""


def draw_state(rng: np.random.Generator, items: int | None = None, dialog: bool | None = None) -> Screen:
    """A screen at random. items: most fields and boxes besides those of the list, None for all that fit; dialog:
    whether there is one, None for one in four."""
    labels = iter(rng.permutation(list(LABELS)).tolist())
    kinds = rng.permutation(["fields"] * 3 + ["boxes"] * 2 + ["bar", "list"]).tolist()
    top = {}
    row = 1  # below the title
    rows: dict[str, list[int]] = {"fields": [], "boxes": []}
    for kind in kinds:
        if kind in rows:
            rows[kind].append(row)
        else:
            top[kind] = row
        row += 3 if kind == "list" else 1
    places = [("field", (row, column)) for row in rows["fields"] for column in (0, FIELD_WIDTH)]
    places += [("box", (row, column)) for row in rows["boxes"] for column in range(0, 3 * BOX_WIDTH, BOX_WIDTH)]
    places = [places[i] for i in rng.permutation(len(places))[:items]]
    fields = [Field(next(labels), random_value(rng), cell) for kind, cell in places if kind == "field"]
    boxes = [Box(next(labels), bool(rng.random() < 0.5), cell) for kind, cell in places if kind == "box"]
    indent = int(rng.integers(0, GRID[1] - FIELD_WIDTH + 1))
    listed = [Field(next(labels), random_value(rng), (top["list"] + i, indent)) for i in range(3)]
    screen = Screen(
        fields=tuple(sorted(fields, key=lambda field: field.cell)),
        boxes=tuple(sorted(boxes, key=lambda box: box.cell)),
        listed=tuple(listed),
        selected=int(rng.integers(3)),
        bar=(top["bar"], int(rng.integers(BAR_WIDTH + 1))),
        dialog=None,
        caret=str(rng.choice([field.label for field in (*fields, *listed)])),
        caret_shown=bool(rng.random() < 0.5),
        pointer=(0, 0),
        theme=int(rng.integers(len(THEMES))),
        brightness=1.0,
        shift=(int(rng.integers(-MOST_SHIFT, MOST_SHIFT + 1)), int(rng.integers(-MOST_SHIFT, MOST_SHIFT + 1))),
    )
    if dialog or (dialog is None and rng.random() < 0.25):
        screen = replace(screen, dialog=random_dialog(rng, next(labels)))
    return replace(screen, pointer=free_pointer(rng, screen))


def random_value(rng: np.random.Generator) -> str:
    """A value of a field: a number of two digits in half of them, else two or three characters of any kind."""
    if rng.random() < 0.5:
        return str(int(rng.integers(10, 100)))
    return "".join(rng.choice(list(VALUE_CHARACTERS), int(rng.integers(2, 4))).tolist())


def random_dialog(rng: np.random.Generator, label: str, grid: Cell = GRID) -> Dialog:
    """A dialog of 3 rows and 6 to 8 columns somewhere on a screen of `grid` cells, with a field of that label."""
    rows, columns = 3, int(rng.integers(6, 9))
    cell = int(rng.integers(1, grid[0] - rows + 1)), int(rng.integers(0, grid[1] - columns + 1))
    column = cell[1] + int(rng.integers(0, columns - FIELD_WIDTH + 1))
    return Dialog(cell, (rows, columns), Field(label, random_value(rng), (cell[0] + 1, column)))


def free_pointer(rng: np.random.Generator, screen: Screen) -> tuple[int, int]:
    """Where the mouse pointer may be so that it hides nothing: (x, y) of a cell in which nothing stands."""
    free = np.argwhere(np.array(contents(screen)) == BLANK)
    row, column = free[int(rng.integers(len(free)))].tolist()
    return column * CELL + 3, row * CELL + 2


def contents(screen: Screen) -> list[list[str]]:
    """What is to be read in each cell, rows of columns: a character, `COLON`, `ON`, `OFF` or `BLANK`."""
    cells = [[BLANK] * screen.grid[1] for _ in range(screen.grid[0])]

    def put(field: Field) -> None:
        row, column = field.cell
        for i, character in enumerate((field.label, COLON, *field.value)):
            cells[row][column + i] = character

    for field in (*screen.fields, *screen.listed):
        put(field)
    for box in screen.boxes:
        row, column = box.cell
        cells[row][column : column + BOX_WIDTH] = [box.label, COLON, ON if box.on else OFF]
    for button in screen.buttons:
        row, column = button.cell
        cells[row][column : column + len(button.word)] = button.word
    if screen.dialog:
        for row, column in itertools.product(*map(range, screen.grid)):
            if screen.dialog.covers((row, column)):
                cells[row][column] = BLANK
        put(screen.dialog.field)
    return cells


def draw(screen: Screen) -> np.ndarray:
    """The frame, uint8 (height, width, 3)."""
    theme = THEMES[screen.theme]
    rows, columns = screen.grid
    image = Image.new("RGB", (columns * CELL, rows * CELL), theme.desk)
    pen = ImageDraw.Draw(image)
    down, right = screen.shift

    def area(cell: Cell, size: tuple[int, int], inset: int = 0) -> tuple[int, int, int, int]:
        (row, column), (rows, columns) = cell, size
        x, y = column * CELL + right, row * CELL + down
        return x + inset, y + inset, x + columns * CELL - 1 - inset, y + rows * CELL - 1 - inset

    def window(cell: Cell, size: tuple[int, int]) -> None:
        pen.rectangle(area(cell, size), fill=theme.window, outline=theme.text)
        pen.rectangle(area(cell, (1, size[1]), 1), fill=theme.accent)
        for i in range(3):  # the buttons of its title
            x, y, _, _ = area(cell, (1, 1))
            pen.ellipse((x + 4 + 7 * i, y + 6, x + 8 + 7 * i, y + 10), fill=theme.window, outline=theme.text)

    window((0, 0), screen.grid)
    pen.rectangle(area(screen.listed[0].cell, (3, FIELD_WIDTH), 0), outline=theme.accent)
    selected = area(screen.listed[screen.selected].cell, (1, FIELD_WIDTH), 1)
    pen.rectangle(selected, fill=theme.accent)
    if screen.scrollbar:
        first, total = screen.scrollbar
        row, column = screen.listed[0].cell
        x, y, x_end, y_end = area((row, column + FIELD_WIDTH), (len(screen.listed), 1), 2)
        pen.rectangle((x, y, x_end, y_end), outline=theme.accent)
        top, bottom = (y + (y_end - y) * at // total for at in (first, first + len(screen.listed)))
        pen.rectangle((x, top, x_end, bottom), fill=theme.text)
    if screen.bar:
        row, full = screen.bar
        pen.rectangle(area((row, 1), (1, BAR_WIDTH), 4), outline=theme.text)
        if full:
            pen.rectangle(area((row, 1), (1, full), 5), fill=theme.label)
    for button in screen.buttons:
        fill = theme.accent if button.pressed else theme.window
        pen.rectangle(area(button.cell, (1, len(button.word)), 1), fill=fill, outline=theme.text)
    for field in screen.fields:  # underlined where one would type
        row, column = field.cell
        x, _, x_end, y_end = area((row, column + 2), (1, FIELD_WIDTH - 2))
        pen.line((x, y_end, x_end, y_end), fill=theme.accent)
    if screen.dialog:
        window(screen.dialog.cell, screen.dialog.size)
    labels = {field.label for field in screen.shown_fields()} | {box.label for box in screen.boxes}
    for row, line in enumerate(contents(screen)):
        for column, content in enumerate(line):
            x, y, x_end, y_end = area((row, column), (1, 1))
            if content in (ON, OFF):
                pen.rectangle((x + 2, y + 2, x_end - 2, y_end - 2), fill=theme.window, outline=theme.text)
                if content == ON:
                    pen.line((x + 5, y + 8, x + 7, y + 11, x + 11, y + 4), fill=theme.text, width=2)
            elif content != BLANK:
                colour = theme.label if content in labels else theme.text
                pen.text((x + CELL // 2, y + CELL - 3), content, colour, _font(), anchor="ms")
    shown = {field.label: field for field in screen.shown_fields()}
    if screen.caret_shown and screen.caret in shown:
        field = shown[screen.caret]
        x, y, _, _ = area((field.cell[0], field.cell[1] + 2 + len(field.value)), (1, 1))
        pen.line((x - 3, y + 2, x - 3, y + CELL - 3), fill=theme.text)  # off the window's border
    x, y = screen.pointer
    pen.polygon([(x, y), (x, y + 11), (x + 3, y + 8), (x + 8, y + 8)], fill=(255, 255, 255), outline=(0, 0, 0))
    frame = np.asarray(image)
    if screen.brightness != 1:
        frame = np.clip(frame * screen.brightness, 0, 255).round().astype(np.uint8)
    return frame


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return font(FONT)


def font(name: str) -> ImageFont.FreeTypeFont:
    """A font that matplotlib ships, at the size that screens are drawn with. Raises ValueError where it is missing."""
    import matplotlib

    path = f"{matplotlib.get_data_path()}/fonts/ttf/{name}"
    try:
        return ImageFont.truetype(path, FONT_SIZE)
    except OSError as error:
        raise ValueError(f"the font {path}, which comes with matplotlib, cannot be read ({error})") from error
