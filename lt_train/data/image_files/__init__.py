"""Image files as they lie anywhere: found, read, and judged before anybody uses them."""
