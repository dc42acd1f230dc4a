"""The data sets that `mtjudge prepare` can read, by name."""

READERS = {}
