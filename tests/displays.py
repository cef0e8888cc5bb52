"""Virtual screens, and desktops on them that do as they are told."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class VirtualScreen:
    """display: its address, as DISPLAY has it. server: the process that it goes away with."""

    display: str
    server: subprocess.Popen


@contextlib.contextmanager
def virtual_screen() -> Iterator[VirtualScreen]:
    """A screen of 640 x 400 pixels; the test is skipped where there is no Xvfb."""
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "640x400x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write_end], stderr=subprocess.DEVNULL)
    os.close(write_end)
    try:
        ready, _, _ = select.select([read_end], [], [], 20)
        number = os.read(read_end, 16).decode().strip() if ready else ""
        if not number:
            pytest.skip("Xvfb does not start here")
        yield VirtualScreen(f":{number}", server)
    finally:
        server.terminate()
        server.wait()
        os.close(read_end)


class Desktop:
    """Windows of one colour each, without a window manager. They stay until the process ends; so must the screen."""

    def __init__(self, display: str) -> None:
        library = ctypes.util.find_library("X11")
        if library is None:
            pytest.skip("libX11 is not installed")
        self.x11 = ctypes.CDLL(library)
        self.x11.XOpenDisplay.restype = ctypes.c_void_p
        self.connection = ctypes.c_void_p(self.x11.XOpenDisplay(display.encode()))
        self.x11.XDefaultRootWindow.restype = self.x11.XCreateSimpleWindow.restype = ctypes.c_ulong

    def open(self, title: str, box: tuple[int, int, int, int], colour: int) -> ctypes.c_ulong:
        """Show a window at x, y, of width and height, above all others; colour 0xRRGGBB."""
        x, y, width, height = box
        root, pixel = ctypes.c_ulong(self.x11.XDefaultRootWindow(self.connection)), ctypes.c_ulong(colour)
        window = ctypes.c_ulong(
            self.x11.XCreateSimpleWindow(self.connection, root, x, y, width, height, 0, pixel, pixel)
        )
        self.x11.XStoreName(self.connection, window, title.encode())
        self.x11.XMapRaised(self.connection, window)
        self._done()
        return window

    def move(self, window: ctypes.c_ulong, box: tuple[int, int, int, int]) -> None:
        self.x11.XMoveResizeWindow(self.connection, window, *box)
        self._done()

    def paint(self, window: ctypes.c_ulong, colour: int) -> None:
        self.x11.XSetWindowBackground(self.connection, window, ctypes.c_ulong(colour))
        self.x11.XClearWindow(self.connection, window)
        self._done()

    def hide(self, window: ctypes.c_ulong) -> None:
        self.x11.XUnmapWindow(self.connection, window)
        self._done()

    def _done(self) -> None:
        self.x11.XSync(self.connection, 0)
