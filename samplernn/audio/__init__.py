"""From audio files to contiguous int16 samples: decoding, corpus, lanes. Knows nothing of the model."""
