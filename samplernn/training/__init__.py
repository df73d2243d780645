"""Training under PyTorch Lightning. Only this room knows Lightning."""
