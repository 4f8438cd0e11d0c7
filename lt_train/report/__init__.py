"""A page about finished runs: tables, plots, Markdown and HTML."""
