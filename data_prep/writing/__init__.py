"""From a source to shards: plan, tars, manifest."""
