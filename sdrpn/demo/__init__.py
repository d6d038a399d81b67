"""The scene shipped with the package, and a picture of how it was answered. Pillow and NumPy only; runs no model."""

from __future__ import annotations

from sdrpn.demo.picture import Told, draw_demo
from sdrpn.demo.scene import DemoScene, shipped_scene

__all__ = ["DemoScene", "Told", "draw_demo", "shipped_scene"]
