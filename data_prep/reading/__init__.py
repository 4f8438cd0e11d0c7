"""What data sets read their sources with: lists, pickles, images."""
