"""Documents, instructions and preference pairs become typed, packed, resumable batches.

A path goes through `locations` (files, folders, globs, hub ids), `streams` (counted bytes), `readers` (rows),
`rows` (typed rows), `shards` (token ids on disk), `packing` (rows of T ids), `order` (which row when), `sources`
(batches). Nothing here is imported before it is asked for.
"""
