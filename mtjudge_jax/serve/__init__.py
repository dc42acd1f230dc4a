"""A judge behind HTTP: `mtjudge serve`."""
