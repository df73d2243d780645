"""Ablations: rows of options trained at an equal budget, seed by seed, and the table that comes of it.

`tables` says what is compared, `study` trains and measures it (in processes of `worker`), `results` makes
table and picture.
"""
