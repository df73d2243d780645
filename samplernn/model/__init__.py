"""The network, quantizers, heads, baselines, checkpoints. Knows nothing of audio files."""
