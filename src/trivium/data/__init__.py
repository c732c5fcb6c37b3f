"""Documents, instructions and preference pairs become typed, packed, resumable batches.

A path goes through `locations` (files, folders, globs, hub ids), `streams` (counted bytes), `readers` (rows),
`rows` (typed rows), `shards` (token ids on disk), `packing` (rows of T ids), `order` (which row when), `sources`
(batches). Objectives that hide or spoil text make tasks of it: `tasks` (one text), by `masking`, `spans` and
`denoising`, and `examples` (rows of them); `pairs` reads sources with their targets. Nothing here is imported before it
is asked for.
"""
