"""What data sets read their sources with: folders, lists, pickles, images, pools, subsets."""
