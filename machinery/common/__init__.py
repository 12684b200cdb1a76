"""What several rooms use: files that are kept whole, text made safe, rows in tokens, intervals and tests, errors.

Goes along with any room that is taken into another project. Uses no room.
"""
