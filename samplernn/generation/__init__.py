"""From a checkpoint to new audio: engines that advance streams, and what is built on them."""
