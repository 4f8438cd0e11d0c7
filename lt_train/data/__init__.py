"""From shards on disk to batches on the device."""
