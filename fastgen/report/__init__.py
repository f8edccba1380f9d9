"""A run as one page to look at: figures gathered in one reading of the log, drawn as SVG, put into one HTML file.

The way of the data: `gather` (one pass, bounded samples) gives `RunFigures`; `verbs` and `diversity` measure samples of
it; `sections` turn figures into HTML with `charts`, `sunburst` and `markup`; `page` makes a document of them. Reads
only; needs no network, neither for making the page nor for looking at it.
"""
