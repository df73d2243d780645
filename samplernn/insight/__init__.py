"""Looking at models and corpora: evaluation and, later, reports and benchmarks."""
