"""Fewer channels: follow them through the graph, say what each is worth, build what is left.

`pruning` is the front; `tracing` follows channels by the `rules` of layers and `operations`,
`importance` and `costs` weigh them, `choosing` and `planning` decide, `rebuilding` builds.
"""
