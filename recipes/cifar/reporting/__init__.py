"""Finished runs laid out as the paper lays out its own: rows, tables, figures, and a page that holds them."""
