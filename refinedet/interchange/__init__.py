"""What was found, in the formats of other libraries and annotation tools: a file for each format.

Our boxes are 0-based pixels, and the last one belongs to the box (`refinedet.evaluation.pixels`): a box over the first
pixel alone is 0, 0, 0, 0. Formats that know edges, not pixels, have 0, 0, 1, 1 for it, and VOC 1, 1, 1, 1. So a data
set that is written here, read by `refinedet.data` and measured by `refinedet evaluate` has the boxes that went in.
docs/interchange.md has the table.
"""
