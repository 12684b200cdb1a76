"""A script many times over: grids of settings and seeds, runs side by side, losses and their figures.

Take `grid.run_grid` for finished runs that are not repeated. Uses runs/, training/, watching/ and common/.
"""
