"""Raw images in, webdataset shards with a manifest out: ``python -m data_prep --help``."""
