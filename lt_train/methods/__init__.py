"""One file a method.

A method owns its networks and its loss; the loop, the engines and the loaders know none of it.
"""
