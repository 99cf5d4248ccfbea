"""Jobs that are disturbed on purpose, on a whole market of real processes: what it costs them.

`trial` runs one job under one fault and measures it against the same job left alone; `strikes`
are the faults; `python -m benchmarks.faults --minutes 5 --seed 1` draws them by a seed.
"""
