"""`make gpu-report`: what a GPU does with this package, in one run of under nine minutes (docs/profiling.md).

``python benchmarks/gpu_report``, by any interpreter with torch. `parts` says what is done in which order and how long
each may take, `runner` runs a part in a process of its own, `stages` holds what these processes do, `document` is the
report, `page` its Markdown.
"""
