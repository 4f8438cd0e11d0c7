"""How a method is trained: the loop, engines, checkpoints. Nothing here comes from a paper."""
