"""Look at a case in 3D in the browser (`livprep view`): a server on the loopback alone, and a page around niivue."""

from livprep.viewing.scene import Scene
from livprep.viewing.server import Viewer

__all__ = ["Scene", "Viewer"]
