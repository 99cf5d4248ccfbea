"""How good and how fast the market clears, beside the optimum and beside simpler ways to match.

`python -m benchmarks.market.NAME [--quick]` prints one table and keeps it in `results/`;
`python -m benchmarks.market.report` makes the README's tables and plots from those.
"""
