"""`samplernn benchmark`: how fast this machine generates and trains, beside plain code and beside its limits.

`generation` and `training` measure; `results` is what both return and how it is shown, `sizes` counts
what a model multiplies, `plain` trains as one would without this package, `own_process` keeps one
variant's memory apart from another's.
"""
