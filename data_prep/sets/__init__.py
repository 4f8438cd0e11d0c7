"""One file a data set: what it is made of and how its source is read."""
