"""What the columns and the cells of preference data mean.

Take `recognise.recognise` for the reading of some rows, `convert.convert` to make a pair of a row by a reading, and
schemas.yaml for the public schemas, each with its columns, its source and made-up rows. Knows nothing of files or models.
"""
