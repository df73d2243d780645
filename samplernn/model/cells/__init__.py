"""Recurrent cells of the frame-level tiers, behind one interface (docs/cells.md lists them).

`rnn.RNN` stacks layers of one cell and is all that the network knows. `base.Cell` is what a layer can do;
`torch_backed` holds those of PyTorch, `simple`, `gated` and `mingru` our own, `recurrence` how these train.
"""

from samplernn.model.cells.base import Cell
from samplernn.model.cells.rnn import RNN, Matrices, matrices

__all__ = ["RNN", "Cell", "Matrices", "matrices"]
