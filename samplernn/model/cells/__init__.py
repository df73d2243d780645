"""Recurrent cells of the frame-level tiers, one file for each (docs/cells.md lists them).

`rnn.RNN` stacks layers of one cell and is all that the network knows. `pointwise.PointwiseCell` is the base
of our own cells, `torch_layer.TorchLayer` that of the two that PyTorch has.
"""

from samplernn.model.cells.rnn import CELLS, RNN, RecurrentLayer

__all__ = ["CELLS", "RNN", "RecurrentLayer"]
